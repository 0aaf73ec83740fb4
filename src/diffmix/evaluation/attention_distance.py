"""How far sparse and diffused attention are from full attention, on the queries and keys of a trained model.

n tokens of a row, H heads. A_full is the softmax of q·k/√d over all tokens (of a causal model: the past), A the same over the
edges of a pattern, A_diff = Σ_k θ_k A^k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffmix.errors import RequestError
from diffmix.models.mixers import AttentionDiffusionMixer, AttentionMixer, HeatKernelMixer
from diffmix.ops.attention_diffusion import attention_diffusion
from diffmix.patterns import SparsePattern


def queries_and_keys(model: Any, input_ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each layer of a model asks and offers for one row, [n] ids: (query, key), each [H, n, d], layer by layer.

    Raises RequestError for a model without softmax attention of ours.
    """
    mixers = attention_mixers(model)
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def note(index: int) -> Any:
        def hook(mixer: AttentionMixer, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            query, key, _ = mixer.project(arguments[0], options.get("positions"))
            found[index] = query[0], key[0].repeat_interleave(query.shape[1] // key.shape[1], dim=0)

        return hook

    hooks = [mixer.register_forward_pre_hook(note(index), with_kwargs=True) for index, mixer in enumerate(mixers)]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model.base_model(input_ids=input_ids[None], use_cache=False)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return [found[index] for index in range(len(mixers))]


def attention_mixers(model: Any) -> list[AttentionMixer]:
    """The softmax attentions of one of our models, first layer first. Raises RequestError where it has none."""
    kind = getattr(model.config, "mixer", model.config.model_type)
    mixers: list[AttentionMixer] = [
        module for module in model.modules() if isinstance(module, AttentionDiffusionMixer | HeatKernelMixer)
    ]
    if kind not in ("attention_diffusion", "softmax") or not mixers:
        raise RequestError(
            f"the model's mixer is {kind}, which has no softmax over q·k/√d: give a run with mixer=attention_diffusion or "
            "mixer=softmax"
        )
    return mixers


def full_attention(query: Tensor, key: Tensor, *, causal: bool) -> Tensor:
    """A_full: [H, n, d] twice → [H, n, n]."""
    score = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if causal:
        score = score.masked_fill(torch.ones_like(score[0], dtype=torch.bool).triu(1), -torch.inf)
    return score.softmax(dim=-1)


def diffused_attention(query: Tensor, key: Tensor, pattern: SparsePattern, coefficients: Sequence[float]) -> Tensor:
    """A_diff: what `diffmix.ops.attention_diffusion` makes of the identity. [H, n, d] twice → [H, n, n]."""
    heads, tokens = query.shape[:2]
    identity = torch.eye(tokens, dtype=query.dtype).expand(1, heads, tokens, tokens)
    return attention_diffusion(query[None], key[None], identity, pattern, coefficients=coefficients)[0]


def distance(attention: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    """‖A - A_full‖_F / ‖A_full‖_F, and the mean over rows of the total variation ½ Σ_j |A_ij - full_ij|: [H, n, n] → [H], [H]."""
    difference = attention - full
    relative = difference.flatten(1).norm(dim=1) / full.flatten(1).norm(dim=1)
    return relative, difference.abs().sum(dim=-1).mean(dim=-1) / 2


def attention_distances(
    model: Any,
    rows: Iterable[Tensor],
    pattern: SparsePattern,
    variants: Mapping[str, Sequence[float]],
    *,
    on_row: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """The distance of each variant to full attention, by layer and head, as means over the rows of a task.

    Args:
        model: ours, with mixer `attention_diffusion` or `softmax`, in evaluation precision.
        rows: token ids, int64 [n] each.
        pattern: of A; causal as the model is.
        variants: name → θ of A_diff.
        on_row: told after each row.

    Returns:
        `variants`: name → `frobenius` and `total_variation`, each [layers][heads]; among them `uniform`, where each token hears
        all alike, and `itself`, where it hears only itself. `outside` [layers][heads]: the share of A_full on pairs that are no
        edge, below which no attention over the edges alone can bring the total variation.

    Raises:
        RequestError: a model of another kind, or no rows.
    """
    sums: dict[str, list[np.ndarray]] = {}
    outside: list[np.ndarray] = []
    count = 0
    for input_ids in rows:
        apart = ~pattern.dense(len(input_ids))
        found: dict[str, list[np.ndarray]] = {}
        beyond = []
        for query, key in queries_and_keys(model, input_ids):
            full = full_attention(query, key, causal=pattern.causal)
            every = torch.ones_like(full).tril() if pattern.causal else torch.ones_like(full)
            compared = {
                "itself": torch.eye(len(input_ids)).expand_as(full),
                "uniform": every / every.sum(dim=-1, keepdim=True),
            }
            for name, attention in compared.items():
                found.setdefault(name, []).append(_pair(attention, full))
            for name, coefficients in variants.items():
                found.setdefault(name, []).append(_pair(diffused_attention(query, key, pattern, coefficients), full))
            beyond.append((full * apart).sum(dim=-1).mean(dim=-1).double().numpy())
        for name, layers in found.items():
            sums.setdefault(name, []).append(np.stack(layers))  # [layers, 2, H]
        outside.append(np.stack(beyond))
        count += 1
        on_row()
    if not count:
        raise RequestError("there is no row to compare attentions on: give a task with validation rows")
    means = {name: np.mean(values, axis=0) for name, values in sums.items()}
    return {
        "variants": {
            name: {"frobenius": mean[:, 0].tolist(), "total_variation": mean[:, 1].tolist()}
            for name, mean in means.items()
        },
        "outside": np.mean(outside, axis=0).tolist(),
    }


def _pair(attention: Tensor, full: Tensor) -> np.ndarray:
    return np.stack([values.double().numpy() for values in distance(attention, full)])
