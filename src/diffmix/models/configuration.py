"""The configuration of every diffmix model."""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from diffmix.ops.coefficients import check_coefficients, heat, personalized_pagerank
from diffmix.patterns import SparsePattern

MIXERS = ("neighbor", "softmax", "heat_kernel", "attention_diffusion")
POSITION_EMBEDDINGS = ("rotary", "learned", "none")
POOLINGS = ("mean", "max", "mean_max", "attention", "first")
NORMS = ("layer", "batch")
NORM_PLACEMENTS = ("pre", "post")
ALPHA_MODES = ("fixed", "channel", "learned", "residual")
UPDATES = ("mix_then_mlp", "mlp_then_mix")
BOUNDARIES = ("zero", "wrap")
HEAT_FORMS = ("dot", "squared", "normalized")
HEAT_TIME_MODES = ("fixed", "learned", "adaptive")


class DiffmixConfig(PretrainedConfig):
    """Configuration of a diffmix model: `mixer` says how tokens exchange information, the rest is shared.

    Args:
        mixer: `"neighbor"` (attention-free diffusion steps), `"heat_kernel"` (transformer blocks whose attention is a heat
            kernel), `"attention_diffusion"` (blocks whose sparse attention is diffused over several hops) or `"softmax"` (the
            baseline).
        vocab_size: number of token ids.
        hidden_size: D, channels of a token's state.
        num_hidden_layers: blocks; for `neighbor` T, the number of diffusion steps.
        num_attention_heads: heads of the attention mixers.
        num_key_value_heads: heads of keys and values, a divisor of num_attention_heads; None: as many.
        intermediate_size: hidden width of the MLP; None: 4·hidden_size.
        gated_mlp: whether its hidden layer is GELU(W h) ⊙ V h (Shazeer 2020) instead of GELU(W h).
        max_position_embeddings: the longest sequence, padding included, that a model with learned positions takes, and what
            tokenizers cut at.
        position_embedding: `"rotary"`, `"learned"` or `"none"`; None: rotary for attention mixers, none for neighbor.
        hidden_dropout: on the update of each block.
        attention_dropout: on attention weights.
        attention_qk_norm: whether queries and keys pass an RMS norm of their own before they meet.
        attention_init_temperature: τ > 0: attention starts as softmax(q·k / τ) would, since query weights start √d / τ times as
            large, and is trained as softmax(q·k / √d). None: they start as other weights do.
        embedding_dropout: on channels of the embedded tokens.
        token_dropout: probability that a token's whole embedding is zeroed in training (word dropout).
        classifier_dropout: inside the classification head.
        noise_std: σ of the Gaussian noise added to the embeddings in training (equation 1 of the paper).
        embedding_std: standard deviation of freshly drawn embeddings.
        embedding_ngrams: sizes n of grams, as in [3, 5]: the embedding of the n ids that end with a token, hashed into a table,
            is added to the token's own. For bytes, which alone say little. Not in causal models, whose cache holds no ids;
            embeddings given as `inputs_embeds` stay as they are.
        embedding_buckets: rows of that table.
        norm: `"layer"` or `"batch"` (over real tokens only; not in causal models).
        norm_eps: added to variances.
        norm_placement: `"post"`: Norm(α h + (1-α) f(h)); `"pre"`: α h + (1-α) f(Norm(h)), one more norm at the end.
            None: post for neighbor (the paper), pre for attention mixers.
        pooling: how tokens become one vector: `"mean"`, `"max"`, `"mean_max"` (both, side by side), `"attention"` (weights
            from a learned query) or `"first"`. Real tokens only.
        pooling_features: when above 0, that many features GELU(W h_i) of each token are pooled instead of its state: detectors
            of short phrases, of which a long text has more kinds than a state has channels.
        classifier_hidden_size: width of the head's hidden layer; None: hidden_size; 0: a linear head.
        neighbor_offsets: the neighbourhood, integers relative to the token itself; or a list of such lists, which the steps take
            in turn: [[-1, 0, 1], [-2, 0, 2], [-4, 0, 4], …] hears 2^k tokens far in k steps.
        neighbor_alpha: α, what a token keeps of its state in a step, 0 < α < 1.
        neighbor_alpha_mode: α as given (`"fixed"`), learned for each channel (`"channel"`) or as one number a step (`"learned"`);
            `"residual"`, for many steps: h + f(Norm(h)), in which what the first steps found does not fade.
        neighbor_heads: independent groups of channels in the mixture.
        neighbor_tracks: whether the mixture has no weights: channels lie in as many tracks as there are offsets, and each track
            comes from the neighbour at its offset (ChordMixer, Khalitov et al. 2023). With offsets 0 and ±2^k a token hears all
            others in log2(n) steps, for the cost of the MLP.
        neighbor_shared_steps: whether all steps use the same weights (the paper) or each its own.
        neighbor_update: `"mix_then_mlp"`, MLP(Σ_o W_o h_{i+o}) (the authors' code), or `"mlp_then_mix"`, Σ_o W_o MLP(h_{i+o})
            (the paper's equation 3).
        neighbor_boundary: `"zero"` beyond the ends, or `"wrap"` (the authors' code).
        neighbor_tolerance: when set, evaluation iterates each sequence until its relative change ‖Δh‖/‖h‖ in a step falls
            under this number, and reports the steps; needs shared steps.
        neighbor_max_steps: bound on those iterations; None: 8·num_hidden_layers.
        heat_form: `"dot"`, `"squared"` or `"normalized"`, see `diffmix.ops.heat_kernel_attention`.
        heat_time: the diffusion time t; None: the depth law 0.28·√(4 / num_hidden_layers).
        heat_time_mode: t as given (`"fixed"`), learned for each head (`"learned"`), or found for each query from the mean and
            deviation of its similarities (`"adaptive"`); the latter two start from heat_time.
        heat_time_bounds: between which learned and adaptive times stay.
        heat_locality: α ≥ 0; attention falls with distance in positions by -α d²/4t.
        diffusion_window: w of `diffmix.patterns.SparsePattern`: how far a token hears on each side.
        diffusion_global_tokens: the first g tokens, or a list of positions, that hear all and are heard by all.
        diffusion_random_links: r, the earlier tokens that each one draws.
        diffusion_hops: K ≥ 0 of `diffmix.ops.attention_diffusion`; 1 with diffusion_alpha=0 is plain sparse attention.
        diffusion_coefficients: of the hops, `"ppr"` (personalised PageRank) or `"heat"`, or θ_0 … θ_K themselves, which sum to 1.
        diffusion_alpha: α of `"ppr"`, from 0 to 1.
        diffusion_time: t ≥ 0 of `"heat"`.
        diffusion_hop_dropout: on the states that each hop hears; attention_dropout is on the edges.
        is_causal: whether tokens hear only what stands before them. `DiffmixForCausalLM` sets it.
        pad_token_id: the id of padding, whose embedding stays 0, unless it is tied to a token head; None: no such id.
        tie_word_embeddings: whether a language model scores tokens with their own embeddings.
        sampled_softmax: when above 0, a masked language model is trained to tell each hidden token from that many random
            ones and the batch's other hidden tokens, instead of from the whole vocabulary.

        document_context: whether a masked language model restores a token from its own state and from the mean state of its
            row: then the mean, which a classifier reads, learns what a text is about.

    Raises:
        ValueError: values that are out of range or contradict each other.
    """

    model_type = "diffmix"
    keys_to_ignore_at_inference = ["past_key_values", "diffusion_steps"]  # noqa: RUF012 (what Trainer leaves out of predictions)

    def __init__(
        self,
        mixer: str = "neighbor",
        vocab_size: int = 30522,
        hidden_size: int = 256,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
        gated_mlp: bool = False,
        max_position_embeddings: int = 4096,
        position_embedding: str | None = None,
        hidden_dropout: float = 0.1,
        attention_dropout: float = 0.0,
        attention_qk_norm: bool = False,
        attention_init_temperature: float | None = None,
        embedding_dropout: float = 0.0,
        token_dropout: float = 0.0,
        classifier_dropout: float = 0.1,
        noise_std: float = 0.0,
        embedding_std: float = 1.0,
        embedding_ngrams: Sequence[int] = (),
        embedding_buckets: int = 65536,
        norm: str = "layer",
        norm_eps: float = 1e-5,
        norm_placement: str | None = None,
        pooling: str = "mean",
        pooling_features: int = 0,
        classifier_hidden_size: int | None = None,
        neighbor_offsets: Sequence[int] | Sequence[Sequence[int]] = (-1, 0, 1),
        neighbor_alpha: float = 0.5,
        neighbor_alpha_mode: str = "fixed",
        neighbor_heads: int = 1,
        neighbor_tracks: bool = False,
        neighbor_shared_steps: bool = False,
        neighbor_update: str = "mix_then_mlp",
        neighbor_boundary: str = "zero",
        neighbor_tolerance: float | None = None,
        neighbor_max_steps: int | None = None,
        heat_form: str = "dot",
        heat_time: float | None = None,
        heat_time_mode: str = "fixed",
        heat_time_bounds: Sequence[float] = (0.1, 10.0),
        heat_locality: float = 0.0,
        diffusion_window: int = 64,
        diffusion_global_tokens: int | Sequence[int] = 1,
        diffusion_random_links: int = 8,
        diffusion_hops: int = 5,
        diffusion_coefficients: str | Sequence[float] = "ppr",
        diffusion_alpha: float = 0.1,
        diffusion_time: float = 3.0,
        diffusion_hop_dropout: float = 0.0,
        is_causal: bool = False,
        pad_token_id: int | None = 0,
        tie_word_embeddings: bool = True,
        sampled_softmax: int = 0,
        document_context: bool = False,
        **kwargs: Any,
    ):
        self.mixer = mixer
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.intermediate_size = 4 * hidden_size if intermediate_size is None else intermediate_size
        self.gated_mlp = gated_mlp
        self.max_position_embeddings = max_position_embeddings
        self.position_embedding = position_embedding or ("none" if mixer == "neighbor" else "rotary")
        self.hidden_dropout = hidden_dropout
        self.attention_dropout = attention_dropout
        self.attention_qk_norm = attention_qk_norm
        self.attention_init_temperature = attention_init_temperature
        self.embedding_dropout = embedding_dropout
        self.token_dropout = token_dropout
        self.classifier_dropout = classifier_dropout
        self.noise_std = noise_std
        self.embedding_std = embedding_std
        self.embedding_ngrams = _plain(embedding_ngrams)
        self.embedding_buckets = embedding_buckets
        self.norm = norm
        self.norm_eps = norm_eps
        self.norm_placement = norm_placement or ("post" if mixer == "neighbor" else "pre")
        self.pooling = pooling
        self.pooling_features = pooling_features
        self.classifier_hidden_size = hidden_size if classifier_hidden_size is None else classifier_hidden_size
        self.neighbor_offsets = _plain(neighbor_offsets)
        self.neighbor_alpha = neighbor_alpha
        self.neighbor_alpha_mode = neighbor_alpha_mode
        self.neighbor_heads = neighbor_heads
        self.neighbor_tracks = neighbor_tracks
        self.neighbor_shared_steps = neighbor_shared_steps
        self.neighbor_update = neighbor_update
        self.neighbor_boundary = neighbor_boundary
        self.neighbor_tolerance = neighbor_tolerance
        self.neighbor_max_steps = neighbor_max_steps
        self.heat_form = heat_form
        self.heat_time = heat_time
        self.heat_time_mode = heat_time_mode
        self.heat_time_bounds = _plain(heat_time_bounds)
        self.heat_locality = heat_locality
        self.diffusion_window = diffusion_window
        self.diffusion_global_tokens = _plain(diffusion_global_tokens)
        self.diffusion_random_links = diffusion_random_links
        self.diffusion_hops = diffusion_hops
        self.diffusion_coefficients = _plain(diffusion_coefficients)
        self.diffusion_alpha = diffusion_alpha
        self.diffusion_time = diffusion_time
        self.diffusion_hop_dropout = diffusion_hop_dropout
        self.is_causal = is_causal
        self.sampled_softmax = sampled_softmax
        self.document_context = document_context
        self.check()
        # transformers' configurations are dataclasses with keyword fields of their own that pyright cannot see.
        super().__init__(**{"pad_token_id": pad_token_id, "tie_word_embeddings": tie_word_embeddings, **kwargs})

    def check(self) -> None:
        """Raise a ValueError where values are of another type or do not fit together."""
        self._check_types()
        for name, choices in (
            ("mixer", MIXERS),
            ("position_embedding", POSITION_EMBEDDINGS),
            ("pooling", POOLINGS),
            ("norm", NORMS),
            ("norm_placement", NORM_PLACEMENTS),
            ("neighbor_alpha_mode", ALPHA_MODES),
            ("neighbor_update", UPDATES),
            ("neighbor_boundary", BOUNDARIES),
            ("heat_form", HEAT_FORMS),
            ("heat_time_mode", HEAT_TIME_MODES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(map(repr, choices))}")
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "max_position_embeddings",
            "neighbor_heads",
            "embedding_buckets",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give a whole number of at least 1")
        for name in (
            "hidden_dropout",
            "attention_dropout",
            "embedding_dropout",
            "token_dropout",
            "classifier_dropout",
            "diffusion_hop_dropout",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; give a probability from 0 up to but not including 1"
                )
        for name in ("noise_std", "pooling_features", "classifier_hidden_size", "sampled_softmax"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give 0 or more")
        for name in ("embedding_std", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give a number above 0")
        if self.norm == "batch" and self.is_causal:
            raise ValueError(
                "norm is 'batch' but the model is causal, and the statistics of a batch hold the future: give 'layer'"
            )
        self._check_ngrams()
        self._check_init_temperature()
        self._check_heat()
        self._check_diffusion()
        if self.mixer == "neighbor":
            self._check_neighbor()
        elif self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}; give a divisor of num_attention_heads, "
                f"{self.num_attention_heads}"
            )
        elif self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}; give a divisor of hidden_size, {self.hidden_size}"
            )
        elif self.position_embedding == "rotary" and (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"position_embedding is 'rotary' but heads have {self.hidden_size // self.num_attention_heads} channels; "
                "give an even number of channels a head, or position_embedding='learned'"
            )
        elif self.norm_placement == "post":
            raise ValueError(
                f"norm_placement is 'post' but mixer is {self.mixer!r}, whose blocks are pre-norm; leave norm_placement out"
            )

    def _check_types(self) -> None:
        for name, kinds in _number_types().items():
            if name in vars(self) and not any(_is(getattr(self, name), kind) for kind in kinds):
                wanted = " or ".join(text for kind, text in _TYPE_NAMES.items() if kind in kinds)
                raise ValueError(f"{name} is {getattr(self, name)!r}; give {wanted}")

    def _check_ngrams(self) -> None:
        sizes = self.embedding_ngrams
        whole = isinstance(sizes, list) and all(isinstance(size, int) and size > 1 for size in sizes)
        if not whole or len(set(sizes)) != len(sizes):
            raise ValueError(f"embedding_ngrams is {sizes!r}; give different whole numbers of at least 2, or none")
        if sizes and self.is_causal:
            raise ValueError(
                f"embedding_ngrams is {sizes!r} but the model is causal, and its cache holds no ids: leave embedding_ngrams out"
            )

    def _check_heat(self) -> None:
        given: Any = self.heat_time_bounds
        bounds = given if isinstance(given, list) and all(_is(bound, float) for bound in given) else []
        lowest, highest = [*bounds, 0.0, 0.0][:2]
        if len(bounds) != 2 or not 0 < lowest < highest < math.inf:
            raise ValueError(
                f"heat_time_bounds is {self.heat_time_bounds!r}; give two numbers above 0, the lower one first"
            )
        if self.heat_time is not None and not 0 < self.heat_time < math.inf:
            raise ValueError(
                f"heat_time is {self.heat_time!r}; give a finite number above 0, or None for the depth law"
            )
        if not 0 <= self.heat_locality < math.inf:
            raise ValueError(f"heat_locality is {self.heat_locality!r}; give a finite number, 0 or more")
        moving = self.mixer == "heat_kernel" and self.heat_time_mode != "fixed"
        if moving and self.heat_time is not None and not lowest < self.heat_time < highest:
            raise ValueError(
                f"heat_time is {self.heat_time}, outside of heat_time_bounds, {lowest} to {highest}, where a "
                f"{self.heat_time_mode} time starts; widen heat_time_bounds"
            )

    def _check_init_temperature(self) -> None:
        temperature = self.attention_init_temperature
        if temperature is None:
            return
        if not 0 < temperature < math.inf:
            raise ValueError(f"attention_init_temperature is {temperature!r}; give a finite number above 0, or None")
        if self.mixer not in ("softmax", "attention_diffusion") or self.attention_qk_norm:
            raise ValueError(
                f"attention_init_temperature is {temperature!r} but "
                + ("queries are normalised" if self.attention_qk_norm else f"mixer is {self.mixer!r}")
                + "; leave it out"
            )

    def _check_diffusion(self) -> None:
        # The operator's own checks, in the names of the configuration.
        try:
            self.diffusion_pattern()
            self.diffusion_weights()
        except ValueError as error:
            raise ValueError(f"diffusion_{error}") from None

    def diffusion_pattern(self) -> SparsePattern:
        """Who hears whom with `mixer="attention_diffusion"`."""
        return SparsePattern(
            window=self.diffusion_window,
            global_tokens=self.diffusion_global_tokens,
            random_links=self.diffusion_random_links,
            causal=self.is_causal,
        )

    def diffusion_weights(self) -> tuple[float, ...]:
        """θ_0 … θ_K with `mixer="attention_diffusion"`."""
        kind: Any = self.diffusion_coefficients
        if kind == "ppr":
            return personalized_pagerank(self.diffusion_alpha, self.diffusion_hops)
        if kind == "heat":
            return heat(self.diffusion_time, self.diffusion_hops)
        if isinstance(kind, str):
            raise ValueError(f"coefficients is {kind!r}; give 'ppr', 'heat', or K+1 numbers that sum to 1")
        check_coefficients(kind)
        if len(kind) != self.diffusion_hops + 1:
            raise ValueError(
                f"coefficients has {len(kind)} numbers but diffusion_hops is {self.diffusion_hops}; give one more than hops"
            )
        return tuple(kind)

    def step_offsets(self, step: int) -> tuple[int, ...]:
        """Whom a token hears in step number `step`, from 0, with `mixer="neighbor"`; its past only where `is_causal`."""
        own: Any = self.neighbor_offsets
        if own and isinstance(own[0], list):
            own = own[step % len(own)]
        return tuple(offset for offset in own if offset <= 0 or not self.is_causal)

    def _check_neighbor(self) -> None:
        given: Any = self.neighbor_offsets
        by_step = isinstance(given, list) and bool(given) and all(isinstance(offsets, list) for offsets in given)
        for offsets in given if by_step else [given]:
            integers = isinstance(offsets, list) and all(isinstance(offset, int) for offset in offsets)
            if not offsets or not integers or len(set(offsets)) != len(offsets):
                raise ValueError(
                    f"neighbor_offsets holds {offsets!r}; give different integers, such as [-1, 0, 1], or a list of such lists"
                )
            if self.is_causal and min(offsets) > 0:
                raise ValueError(
                    f"neighbor_offsets holds {offsets!r}, of which a causal model hears none; add 0 or below"
                )
        if by_step and len(given) > self.num_hidden_layers:
            raise ValueError(
                f"neighbor_offsets has {len(given)} lists but num_hidden_layers is {self.num_hidden_layers}, so that the last "
                "ones were never heard; give as many steps, or fewer lists"
            )
        if by_step and self.neighbor_shared_steps and len(given) > 1:
            raise ValueError(
                f"neighbor_offsets is {given!r} but all steps share weights; give one list of offsets, or "
                "neighbor_shared_steps=False"
            )
        if self.neighbor_alpha_mode == "residual" and self.norm_placement == "post":
            raise ValueError(
                "neighbor_alpha_mode is 'residual' but norm_placement is 'post'; give norm_placement='pre'"
            )
        if not 0 < self.neighbor_alpha < 1:
            raise ValueError(f"neighbor_alpha is {self.neighbor_alpha!r}; give a number between 0 and 1, both excluded")
        if self.hidden_size % self.neighbor_heads:
            raise ValueError(
                f"neighbor_heads is {self.neighbor_heads}; give a divisor of hidden_size, {self.hidden_size}"
            )
        if self.neighbor_tracks:
            self._check_tracks(given if by_step else [given])
        if self.position_embedding == "rotary":
            raise ValueError(
                "position_embedding is 'rotary' but mixer is 'neighbor', which has no queries and keys to rotate; "
                "give 'none' or 'learned'"
            )
        if self.is_causal and self.neighbor_boundary == "wrap":
            raise ValueError(
                "neighbor_boundary is 'wrap' but the model is causal, and its first tokens would hear the last ones; give 'zero'"
            )
        if self.neighbor_tolerance is not None:
            if self.is_causal:
                raise ValueError(
                    "neighbor_tolerance is set but the model is causal, and later tokens would decide how far earlier ones are "
                    "iterated; give neighbor_tolerance=None"
                )
            if not self.neighbor_tolerance > 0:
                raise ValueError(f"neighbor_tolerance is {self.neighbor_tolerance!r}; give a number above 0, or None")
            if not self.neighbor_shared_steps:
                raise ValueError(
                    "neighbor_tolerance is set but every step has weights of its own, so there is no fixed point to "
                    "converge to; give neighbor_shared_steps=True"
                )
        steps: Any = self.neighbor_max_steps
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"neighbor_max_steps is {steps!r}; give a whole number, 1 or more, or None")

    def _check_tracks(self, neighborhoods: list[list[int]]) -> None:
        most = max(len(offsets) for offsets in neighborhoods)
        if most > self.hidden_size:
            raise ValueError(
                f"neighbor_tracks is True and neighbor_offsets has {most} offsets for {self.hidden_size} channels; give fewer "
                "offsets, or more channels"
            )
        if self.neighbor_heads > 1:
            raise ValueError(
                f"neighbor_tracks is True but neighbor_heads is {self.neighbor_heads}; leave one of them out"
            )


_TYPE_NAMES = {bool: "True or False", int: "a whole number", float: "a number", type(None): "None"}


@functools.cache
def _number_types() -> dict[str, tuple[type, ...]]:
    """The types of each argument that is a number, a flag or None and nothing else."""
    hints = typing.get_type_hints(DiffmixConfig.__init__)
    kinds = {
        name: typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,) for name, hint in hints.items()
    }
    return {name: each for name, each in kinds.items() if set(each) <= set(_TYPE_NAMES)}


def _is(value: Any, kind: type) -> bool:
    """Whether `value` is of that type; whole numbers are numbers, too, and flags are not."""
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, int | float if kind is float else kind)


def _plain(value: Any) -> Any:
    """Sequences as lists, as JSON keeps them; anything else as it is, for the checks to judge."""
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
