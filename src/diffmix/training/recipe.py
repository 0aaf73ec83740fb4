"""Recipes: flat, validated sets of keys that say what is trained, on what and how.

A recipe is a YAML file with the training keys listed in `Recipe` and, beside them, any key of the model's configuration
(`hidden_size`, `mixer`, `neighbor_alpha`, ...). Shipped recipes are found by name, others by path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib.resources
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from diffmix.errors import RequestError
from diffmix.training.yaml_text import read_yaml

DEFAULT_BATCH_SIZE = 32
_NOTHING = ("null", "Null", "NULL", "~")  # as YAML writes it
PHASES = ("pretraining", "self_training")  # keys that hold a recipe's changes for a phase before the run itself

_SHARED = ("model", "tokenizer", "class_token")  # keys that a phase shares with what starts from its weights

# What a phase shares with the run, or does not do: keys that its mapping may not hold.
_CUT = ("validation_fraction", "stream", "text_column", "pair_column", "label_column")  # which rows are held out
_NOT_IN_PHASE = {
    "pretraining": (*_CUT, "init_from", *PHASES),
    "self_training": (*_CUT, "task", *PHASES),
}

# What a model learns from its data is not a choice of the recipe.
_FOLLOWS = {
    "vocab_size": "it follows from the tokenizer; set tokenizer, as in tokenizer=wordpiece-16000",
    "pad_token_id": "it follows from the tokenizer",
    "num_labels": "it follows from the data",
    "id2label": "it follows from the data",
    "label2id": "it follows from the data",
}


def _key(default: Any, *, low: float | None = None, above: float | None = None, high: float | None = None) -> Any:
    """A recipe key with a default and the range of its number: `low` and `high` inclusive, `above` exclusive."""
    return dataclasses.field(default=default, metadata={"low": low, "above": above, "high": high})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's result, apart from where its data lie. All keys are also `--set key=value`."""

    name: str
    task: str = _key("text_file")  # whose data
    model: str = _key("diffmix")  # diffmix, tfidf, or any Hugging Face model type (distilbert, ...), from its config
    attn_implementation: str | None = _key(None)  # of other models than ours: sdpa, heat_kernel, attention_diffusion, …
    # Data
    tokenizer: str = _key("wordpiece-16000")  # wordpiece-N, bpe-N, bytes, or a Hugging Face name or folder
    class_token: bool = _key(False)  # [CLS] before each text, of a tokenizer that is trained or of bytes
    max_length: int = _key(512, low=1, high=2**31 - 1)  # tokens
    text_column: str | None = _key(None)  # of a file; null: the usual names
    pair_column: str | None = _key(None)  # the second text of pairs; null: there is none
    label_column: str | None = _key(None)  # of a file; null: the usual names
    extra_train: tuple[str, ...] = _key(())  # appended to train: further files of the data set's folder, easier sets
    validation_fraction: float = _key(0.1, above=0, high=0.5)  # of train, where the source has no validation split
    limit: int | None = _key(None, low=1)  # rows (windows of a language model) per split, for trials
    max_tokens: int | None = _key(None, low=1)  # of train, of a language model
    stream: bool | None = _key(None)  # read train from disk in every epoch; null: files over 700 MB (Parquet: 350)
    subword_dropout: float = _key(0.0, low=0, high=0.9)  # WordPiece only: each epoch spells words in other ways
    # Optimisation
    epochs: float = _key(3.0, above=0)  # passes over train
    max_steps: int | None = _key(None, low=1)  # overrides epochs
    length_warmup: float = _key(0.0, low=0)  # rows up to a growing length; as warmup, a fraction of all steps or steps
    batch_size: int = _key(DEFAULT_BATCH_SIZE, low=1)  # examples per optimiser step, over all processes
    micro_batch_size: int | None = _key(None, low=1)  # examples in memory at once per process; auto: what fits
    learning_rate: float = _key(5e-4, above=0)  # the highest, of AdamW
    weight_decay: float = _key(0.01, low=0)  # of matrices; biases, norms and step sizes do not decay
    adam_beta2: float = _key(0.999, low=0, high=0.99999)  # of the squared gradients' moving average
    warmup: float = _key(0.1, low=0)  # below 1 a fraction of all steps, from 1 on a number of steps
    schedule: Literal["linear", "cosine", "constant"] = _key("linear")  # of the learning rate after warmup
    clip: float = _key(1.0, low=0)  # gradient norm, 0: no clipping
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = _key("auto")  # of products; auto: bf16 where that is fast
    device: Literal["auto", "cpu", "cuda"] = _key("auto")  # auto: a GPU where there is one
    gradient_checkpointing: bool = _key(False)  # less memory for a third more time
    class_balance: Literal["none", "loss"] = _key("none")  # loss: weights inverse to class frequency in train
    label_smoothing: float = _key(0.0, low=0, high=0.99)  # of the target's probability, shared among all classes
    ema_decay: float = _key(0.0, low=0, high=0.99999)  # 0: no moving average of the weights
    seed: int = _key(0, low=0, high=2**32 - 1)  # of weights, order of rows and dropout; splits have their own
    # Selection
    evaluations_per_epoch: int = _key(1, low=1)  # on validation
    eval_steps: int | None = _key(None, low=1)  # optimiser steps between evaluations; overrides evaluations_per_epoch
    save_steps: int | None = _key(None, low=1)  # checkpoints beside those of the evaluations
    best_metric: Literal["accuracy", "macro_f1", "nll"] = _key("accuracy")  # of validation; picks the final weights
    temperature_scaling: bool = _key(
        False
    )  # of a language model: test it after a temperature fitted on validation, too
    early_stopping_patience: int = _key(0, low=0)  # evaluations without improvement; 0: never
    report_to: tuple[str, ...] = _key(())  # further trackers, as transformers names them (trackio, wandb, mlflow)
    # Where the weights start
    # ppmi: from which tokens of the task's texts stand together; amounts: near grey values start alike
    embedding_init: Literal["random", "ppmi", "amounts"] = _key("random")
    pretraining: Mapping[str, Any] | None = _key(None)  # keys of the masked-token phase; null: none
    mask_probability: float = _key(0.15, above=0, high=0.95)  # used inside pretraining
    self_training: Mapping[str, Any] | None = _key(None)  # keys of a teacher, which labels unlabelled texts
    label_confidence: float = _key(0.75, low=0, high=1)  # used inside self_training: of labels that join train
    tfidf_teacher: bool = _key(
        False
    )  # used inside self_training: TF-IDF's probabilities are averaged with the teacher's
    init_from: str | None = _key(None)  # a folder whose backbone and tokenizer the model starts from
    # The TF-IDF baseline
    tfidf_ngrams: int = _key(2, low=1, high=5)  # words of the longest n-gram
    tfidf_min_count: int = _key(1, low=1)  # texts that an n-gram stands in, at least
    tfidf_c: tuple[float, ...] = _key(
        (1.0, 10.0, 100.0), above=0
    )  # inverse regularisation strengths; validation picks one
    # The model's own configuration keys that the recipe sets
    config: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The flat mapping of keys to plain values that `recipe.yaml` holds and `recipe_from_mapping` reads."""
        flat = {field.name: getattr(self, field.name) for field in _training_fields()}
        flat = {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}
        return {"name": self.name, **flat, **self.config}

    def to_yaml(self) -> str:
        """The resolved recipe as a YAML document."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some training keys changed; the values are validated like those of a file."""
        return recipe_from_mapping({**self.to_dict(), **changes}, name=self.name)

    def pretraining_recipe(self) -> Recipe | None:
        """The recipe of the denoising phase: this one, with the keys under `pretraining` in place of its own."""
        if self.pretraining is None:
            return None
        without = dict.fromkeys((*PHASES, "init_from", "max_steps"))
        base = self.replace(**without, early_stopping_patience=0, length_warmup=0, seed=0)
        return recipe_from_mapping({**base.to_dict(), **self.pretraining}, name=f"{self.name}-pretraining")

    def teacher_recipe(self) -> Recipe | None:
        """The recipe of the teacher of self-training: this one, with the keys under `self_training` in place of its own."""
        if self.self_training is None:
            return None
        base = self.replace(self_training=None, pretraining=None, seed=0)
        return recipe_from_mapping({**base.to_dict(), **self.self_training}, name=f"{self.name}-teacher")


@functools.cache
def _training_fields() -> tuple[dataclasses.Field[Any], ...]:
    return tuple(field for field in dataclasses.fields(Recipe) if field.name not in ("name", "config"))


@functools.cache
def _text_keys() -> frozenset[str]:
    hints = typing.get_type_hints(Recipe)
    return frozenset(key for key, hint in hints.items() if hint in (str, str | None))


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    folder = importlib.resources.files("diffmix") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The shipped recipe `name`, or that of a YAML file, with `key=value` overrides applied.

    Overriding `model` drops the model keys of the file, which belong to the model they were written for.

    Raises RequestError for an unknown recipe or key, a wrong type, or a value out of range.
    """
    name, mapping = _read(str(name))
    changes = parse_overrides(overrides)
    own_model = str(mapping.get("model", "diffmix"))
    model = str(changes.get("model", own_model))
    if model != own_model:
        known = {field.name for field in _training_fields()} | {"name"}
        mapping = {key: value for key, value in mapping.items() if key in known}
        if model == "tfidf":
            mapping |= {phase: None for phase in PHASES if isinstance(mapping.get(phase), Mapping)}
    for key, value in changes.items():
        outer, _, inner = key.partition(".")
        if outer in PHASES and inner:
            nested = mapping.get(outer)
            mapping[outer] = {**(nested if isinstance(nested, Mapping) else {}), inner: value}
        else:
            mapping[key] = value
    return recipe_from_mapping(mapping, name=name)


def recipe_from_mapping(mapping: Mapping[str, Any], *, name: str) -> Recipe:
    """A recipe out of flat keys. Raises RequestError that names the key, what it got and what it accepts."""
    mapping = dict(mapping)
    name = str(mapping.pop("name", None) or name)
    if mapping.get("batch_size") == "auto":
        mapping["batch_size"], mapping["micro_batch_size"] = DEFAULT_BATCH_SIZE, None
    hints = typing.get_type_hints(Recipe)
    values: dict[str, Any] = {}
    for field in _training_fields():
        if field.name in mapping:
            value = mapping.pop(field.name)
            if field.name == "micro_batch_size" and value == "auto":
                value = None
            values[field.name] = _checked(field.name, value, hints[field.name], field.metadata)
    _check_phase_keys(values)
    _check_starting_point(values)
    _check_trackers(values.get("report_to", ()))
    recipe = Recipe(name=name, config=_checked_config(values.get("model", "diffmix"), mapping), **values)
    # Their keys are checked now, not after hours.
    phase, teacher = recipe.pretraining_recipe(), recipe.teacher_recipe()
    if phase is not None:
        _check_start(phase, recipe, "the run")
        if teacher is not None and teacher.init_from is None:
            _check_start(phase, teacher, "the teacher")
    return recipe


def _check_start(phase: Recipe, later: Recipe, what: str) -> None:
    """Refuse a pre-training whose weights or tokenizer `later` could not start from."""
    different = [key for key in _SHARED if getattr(phase, key) != getattr(later, key)]
    before, after = phase, later
    if not different and later.model == "diffmix":
        from diffmix.models import DiffmixConfig

        before, after = DiffmixConfig(**phase.config), DiffmixConfig(**later.config)
        different = [] if _fits(before, after) else [_culprit(before, after)]
    for key in different[:1]:
        raise RequestError(
            f"pretraining has {key}={getattr(before, key)!r} and {what}, which starts from it, {key}={getattr(after, key)!r}: "
            "give both the same"
        )


def _fits(before: Any, after: Any) -> bool:
    """Whether a backbone of the configuration `after` takes all weights of one of `before`, and draws none but whole layers."""
    import torch

    from diffmix.models import DiffmixModel

    with torch.device("meta"):
        held, wanted = (
            {key: weight.shape for key, weight in DiffmixModel(config).state_dict().items()}
            for config in (before, after)
        )

    def part(key: str) -> str:
        return ".".join(key.split(".")[:2])  # a layer, or a tensor outside of them

    parts = {part(key) for key in held}
    drawn = {key for key in wanted.keys() - held.keys() if not key.startswith("layers.") or part(key) in parts}
    return not drawn and all(wanted.get(key) == shape for key, shape in held.items())


def _culprit(before: Any, after: Any) -> str:
    """A key by which two configurations differ whose weights do not fit: one that keeps them from it alone, if there is one."""
    kept = after.to_dict()
    different = [key for key, value in before.to_dict().items() if kept.get(key) != value]
    for key in different:
        try:
            alone = type(after)(**{**kept, key: getattr(before, key)})
        except ValueError:  # it fits nothing else either
            return key
        if not _fits(alone, after):
            return key
    return different[0]


def model_key_defaults(model: str) -> dict[str, Any]:
    """The configuration keys that a recipe may set for `model`, with their defaults.

    Raises RequestError where the model is unknown, or has no defaults that work.
    """
    if model == "tfidf":
        return {}
    from huggingface_hub.errors import StrictDataclassError
    from transformers import PreTrainedConfig

    config_class = _config_class(model)
    try:
        config = config_class()
    except (ValueError, StrictDataclassError) as error:  # a few families' defaults do not pass their own checks
        reason = " ".join(str(error).split())[:160].rstrip(". ")
        raise RequestError(f"model={model} cannot be made from keys ({reason}): set another model") from None
    own = {*config.to_dict(), *config_class.attribute_map} - set(PreTrainedConfig().to_dict())
    defaults = {}
    for key in sorted(own - set(_FOLLOWS)):
        with contextlib.suppress(AttributeError, RuntimeError):  # RuntimeError: it differs from layer to layer
            defaults[key] = getattr(config, key)
    return defaults


def _config_class(model: str) -> Any:
    """The configuration's class of a model type. Raises RequestError where there is none."""
    from transformers import CONFIG_MAPPING

    import diffmix.models  # noqa: F401  (registers the model type)

    if model not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model, ["diffmix", "tfidf", *CONFIG_MAPPING.keys()], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RequestError(f"model={model!r} is unknown: diffmix, tfidf or a Hugging Face model type{hint}")
    return CONFIG_MAPPING[model]


def _read(name: str, extending: tuple[str, ...] = ()) -> tuple[str, dict[str, Any]]:
    """The recipe's own name and its mapping, `extends` resolved; `extending` are the recipes on the way here."""
    if name in shipped_recipes():
        text = (importlib.resources.files("diffmix") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        try:
            text = Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(f"recipe {name} is not UTF-8 text (byte {error.start}): give a YAML file") from None
    else:
        near = difflib.get_close_matches(name, shipped_recipes(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        shipped = ", ".join(shipped_recipes())
        raise RequestError(f"recipe {name!r} not found: {hint}give a YAML file or one of {shipped}")
    mapping = read_yaml(text, f"recipe {name}")
    if not isinstance(mapping, dict) or not all(isinstance(key, str) for key in mapping):
        raise RequestError(f"recipe {name} holds no keys: write one 'key: value' per line")
    base = mapping.pop("extends", None)
    if base is not None:
        if str(base) in (name, *extending):
            raise RequestError(f"recipe {base} extends itself: name another recipe")
        mapping = {**_read(str(base), (*extending, name))[1], **mapping}
    mapping.pop("name", None) if name in shipped_recipes() else None
    return str(mapping.get("name") or Path(name).stem), mapping


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping, values as YAML; those of keys that hold text as they stand. Raises RequestError."""
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise RequestError(f"--set {override!r}: write key=value, as in --set epochs=3")
        key, text = key.strip(), text.strip()
        as_it_stands = key.rpartition(".")[2] in _text_keys() and text[:1] not in ("'", '"') and text not in _NOTHING
        try:
            changes[key] = text if as_it_stands or not text else read_yaml(text, key)
        except RequestError:
            raise RequestError(f"--set {_shown(override)}: the value is not valid YAML; quote it") from None
    return changes


def _checked_config(model: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of a recipe's mapping must be keys of the model's configuration."""
    if not mapping:
        if model not in ("diffmix", "tfidf"):  # these two are there for certain: no import that takes seconds
            _config_class(model)
        return {}
    defaults = model_key_defaults(model)
    checked = {}
    for key, value in mapping.items():
        if key in _FOLLOWS:
            raise RequestError(f"recipe key {key!r} cannot be set: {_FOLLOWS[key]}")
        if key not in defaults:
            known = [*(field.name for field in _training_fields()), *defaults]
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "docs/recipes.md lists the keys"
            raise RequestError(f"unknown recipe key {key!r} for model={model}; {hint}")
        alternative = model == "diffmix" and _takes_beside_its_default(key, value)
        checked[key] = value if alternative else _like_default(key, value, defaults[key])
    if model == "diffmix":
        from diffmix.models import DiffmixConfig

        try:
            DiffmixConfig(**checked)
        except RequestError:
            raise
        except (TypeError, ValueError) as error:
            raise RequestError(" ".join(str(error).split())) from None
    return checked


def _takes_beside_its_default(key: str, value: Any) -> bool:
    """Whether our configuration takes nothing, or a list, where its default is a number or a word."""
    from diffmix.models import DiffmixConfig

    kinds = typing.get_args(typing.get_type_hints(DiffmixConfig.__init__).get(key))
    if isinstance(value, list):
        return any(typing.get_origin(kind) is Sequence for kind in kinds)
    return value is None and type(None) in kinds


def _like_default(key: str, value: Any, default: Any) -> Any:
    """A model key's value in the type of its default (YAML reads 5e-5 as text)."""
    if isinstance(default, bool):
        return _checked(key, value, bool, {})
    if isinstance(default, int):
        return _checked(key, value, int, {})
    if isinstance(default, float):
        return _checked(key, value, float, {})
    if isinstance(default, str):
        return _checked(key, value, str, {})
    number = _converted(value, float) if isinstance(value, str) else None
    return value if number is None else number


def _check_phase_keys(values: Mapping[str, Any]) -> None:
    """Refuse keys that a phase itself sets though they are the run's alone."""
    for phase, refused in _NOT_IN_PHASE.items():
        for key in values.get(phase) or ():
            if key in refused:
                raise RequestError(f"recipe key '{phase}.{key}' cannot be set, only the run has it: leave it out")


def _check_starting_point(values: Mapping[str, Any]) -> None:
    if values.get("init_from") and values.get("pretraining"):
        raise RequestError("init_from and pretraining are both set: a model starts from one of them; drop the other")
    model = values.get("model", "diffmix")
    if values.get("attn_implementation") and model in ("diffmix", "tfidf"):
        raise RequestError(
            f"attn_implementation is set but model={model}: "
            + ("choose its attention with mixer" if model == "diffmix" else "it has no attention; leave it out")
        )


def _check_trackers(names: Sequence[str]) -> None:
    if names and list(names) not in (["all"], ["none"]):
        from transformers.integrations import INTEGRATION_TO_CALLBACK

        for name in names:
            if name not in INTEGRATION_TO_CALLBACK:
                raise RequestError(
                    f"recipe key 'report_to' is {name!r}; it accepts {', '.join(INTEGRATION_TO_CALLBACK)}"
                )


def _checked(key: str, value: Any, hint: Any, limits: Mapping[str, float | None]) -> Any:
    """`value` in the type `hint` and within `limits`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # X | None
        if value is None or value == "":
            return None
        return _checked(key, value, next(kind for kind in arguments if kind is not type(None)), limits)
    if origin is Literal:
        if value is None and "none" in arguments:
            return "none"
        if value not in arguments:
            raise RequestError(f"recipe key {key!r} is {_shown(value)}; it accepts {', '.join(arguments)}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [] if value is None or value == "" else [value]
        return tuple(_checked(key, item, arguments[0], limits) for item in items)
    if origin is Mapping:
        if not isinstance(value, Mapping) or not all(isinstance(inner, str) for inner in value):
            raise RequestError(f"recipe key {key!r} is {_shown(value)}; it accepts a mapping of keys, or null")
        return dict(value)
    converted = _converted(value, hint)
    if converted is None:
        accepts = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
        raise RequestError(f"recipe key {key!r} is {_shown(value)}; it accepts {accepts}")
    low, above, high = (limits.get(name) for name in ("low", "above", "high"))
    if low is not None and not converted >= low:
        raise RequestError(f"recipe key {key!r} is {_shown(value)}; it accepts {low} or more")
    if above is not None and not converted > above:
        raise RequestError(f"recipe key {key!r} is {_shown(value)}; it accepts more than {above}")
    if high is not None and not converted <= high:
        raise RequestError(f"recipe key {key!r} is {_shown(value)}; it accepts {high} or less")
    return converted


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # thousands of digits
        return "a number of too many digits"
    return text if len(text) <= 80 else text[:79] + "…"


def _converted(value: Any, kind: type) -> Any:
    """`value` as `kind`, or None where it is not one. Numbers may be text, as YAML reads 5e-5."""
    if kind is bool:
        return value if isinstance(value, bool) else None
    if kind is str:
        return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if number != number or number in (float("inf"), float("-inf")):
        return None
    if kind is int:
        return int(number) if number == int(number) else None
    return number
