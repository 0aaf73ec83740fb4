"""Class probabilities from a trained folder, or from a model in memory.

n rows, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError

from diffmix.errors import RequestError, RunError
from diffmix.models.positions import longest_input
from diffmix.tasks import reads_ids
from diffmix.tasks.encoding import PaddingCollator, encode, shortest_input
from diffmix.tasks.examples import Examples
from diffmix.tasks.long_range_arena import LISTOPS_TASKS
from diffmix.tasks.long_range_arena.expressions import parse as parse_expression
from diffmix.tasks.token_rows import TokenRows
from diffmix.training.batching import batches_by_tokens
from diffmix.training.building import load_tokenizer
from diffmix.training.hardware import resolve_device, resolve_dtype
from diffmix.training.run_folder import damaged, read_json

# Tokens of a batch, padding included: enough to keep the matrix products busy, little next to what training takes.
BATCH_TOKENS = 16_384


def quiet_transformers() -> None:
    """Keep transformers' advice and weight-loading bars off the screen."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def autocast(device: str, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a model computes in `dtype` (bf16, fp16 or fp32)."""
    if dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16 if dtype == "bf16" else torch.float16)


@torch.inference_mode()
def predict_probabilities(
    model: torch.nn.Module,
    dataset: Any,
    collate: PaddingCollator,
    *,
    batch_tokens: int = BATCH_TOKENS,
    dtype: str = "fp32",
) -> np.ndarray:
    """Softmax of the model's logits: float64 [n, C] in the data set's order.

    Rows are batched by length (`dataset.lengths`), at most `batch_tokens` tokens with padding. The model computes in
    `dtype` on the device it is on, in evaluation mode; its mode is put back afterwards.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    probabilities: np.ndarray | None = None
    try:
        for rows in batches_by_tokens(np.maximum(dataset.lengths, collate.shortest), batch_tokens):
            batch = collate([dataset[int(row)] for row in rows])
            batch.pop("labels", None)
            with autocast(device.type, dtype):
                logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
            if probabilities is None:
                probabilities = np.empty((len(dataset), logits.shape[-1]))
            probabilities[rows] = logits.double().softmax(dim=-1).cpu().numpy()
    finally:
        model.train(was_training)
    return np.empty((0, 0)) if probabilities is None else probabilities


@dataclass(frozen=True)
class Classifier:
    """A trained model with its tokenizer: texts in, probabilities out."""

    model: Any  # a Hugging Face model for sequence, or sequence-pair, classification
    tokenizer: Any  # None for models that read pixels, or symbols of their task
    label_names: tuple[str, ...]
    max_length: int  # tokens; longer texts are cut
    dtype: str
    reads_pairs: bool
    parse: Callable[[str, str], np.ndarray] | None = (
        None  # a task's own notation, not a tokenizer: text, its place → ids
    )

    def probabilities(self, examples: Examples, first_row: int = 1) -> np.ndarray:
        """float64 [n, C] in the order of `examples`, whose first row errors call row `first_row`.

        Raises RequestError for examples of a kind the model cannot read.
        """
        if self.parse is not None and examples.texts and examples.pairs is None:
            examples = Examples(examples.labels, input_ids=self._parsed(self.parse, examples.texts, first_row))
        self.check(examples)
        dataset = encode(examples, self.tokenizer, self.max_length)
        config = self.model.config
        collate = PaddingCollator(config.pad_token_id or 0, self.max_length, shortest_input(config, self.max_length))
        return predict_probabilities(self.model, dataset, collate, dtype=self.dtype)

    def check(self, examples: Examples) -> None:
        """Raise RequestError for examples of a kind the model cannot read."""
        reads, got = "", ""
        if (examples.input_ids is None) != (self.tokenizer is not None):
            reads = "text" if self.tokenizer is not None else "pixels" if self.parse is None else "ListOps expressions"
            got = (
                "pixels or symbols"
                if examples.texts is None
                else "text"
                if examples.pairs is None
                else "pairs of texts"
            )
        elif (examples.pairs is not None) != self.reads_pairs:
            reads, got = ("pairs of texts", "single texts") if self.reads_pairs else ("single texts", "pairs of texts")
        elif examples.input_ids is not None and len(examples):
            ids, known = examples.input_ids, int(self.model.config.vocab_size)
            highest = int(ids.max()) if isinstance(ids, np.ndarray) else ids.highest
            if highest >= known:
                reads, got = f"ids below {known}", f"{highest}"
        if reads:
            raise RequestError(f"this model reads {reads} but was given {got}: give the task that it was trained on")

    def _parsed(self, parse: Callable[[str, str], np.ndarray], texts: Sequence[str], first_row: int) -> TokenRows:
        rows = []
        for number, text in enumerate(texts, start=first_row):
            row = parse(text, f"row {number}")
            if len(row) > self.max_length:  # cut, it would be another expression
                raise RequestError(
                    f"row {number}: expression of {len(row)} symbols: this model reads {self.max_length} at most"
                )
            rows.append(row)
        return TokenRows(np.concatenate(rows), np.concatenate([[0], np.cumsum([len(row) for row in rows])]))


def load_classifier(folder: Path | str, *, device: str = "auto", dtype: str = "auto") -> Any:
    """A `Classifier` (or `diffmix.training.baselines.TfidfClassifier`) from a run's folder.

    `dtype="auto"` is what the run was trained and measured in, on the same kind of device.

    Raises:
        RequestError: the folder holds no trained model.
        RunError: its files are damaged.
    """
    folder = Path(folder)
    config, architectures = read_config(folder)
    if config.get("model_type") == "tfidf":
        from diffmix.training.baselines import TfidfClassifier

        return TfidfClassifier.load(folder)

    if not any("Classification" in name for name in architectures):
        speaks = any("CausalLM" in name for name in architectures)
        raise RequestError(
            f"{folder} holds a {', '.join(architectures) or 'backbone without a head'}, which does not classify: give the "
            "folder of a classifier" + (", or continue a text with diffmix generate" if speaks else "")
        )
    from transformers import AutoModelForSequenceClassification

    import diffmix.models as models

    quiet_transformers()
    device = resolve_device(device)
    dtype = recorded_dtype(folder, device) if dtype == "auto" else dtype
    reads_pairs = "DiffmixForSequencePairClassification" in architectures
    model_class: Any = (
        models.DiffmixForSequencePairClassification if reads_pairs else AutoModelForSequenceClassification
    )
    recipe = _recipe_keys(folder)
    model = load_whole(model_class, folder, trained_attention(folder)).to(device)
    hf_config = model.config
    tokenizer = None
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(folder)
        if len(tokenizer) > model.config.vocab_size:
            raise RequestError(
                f"{folder}: the tokenizer has {len(tokenizer)} tokens and the model {model.config.vocab_size}; "
                "give both of one model"
            )
    elif "task" in recipe and not reads_ids(str(recipe["task"])):
        raise damaged(folder, "no tokenizer_config.json")
    longest = longest_input(hf_config) or 10**9
    cut = tokenizer.model_max_length if tokenizer is not None else _trained_length(recipe, folder)
    max_length = longest if cut is None else min(longest, cut)
    label_names = tuple(str(hf_config.id2label[index]) for index in range(int(hf_config.num_labels or 0)))
    parse = parse_expression if recipe.get("task") in LISTOPS_TASKS else None
    return Classifier(model, tokenizer, label_names, max_length, resolve_dtype(dtype, device), reads_pairs, parse)


def load_whole(kind: Any, folder: Path, attention: Mapping[str, str]) -> Any:
    """The model of class `kind` in a folder, every weight of it from there. `attention`: an option of `from_pretrained`.

    Raises RequestError where the model does not take that attention, RunError where files are damaged or weights are missing.
    """
    from transformers import AutoConfig

    from diffmix.models.foreign_attention import with_attention

    told: dict[str, Any] = {}

    def make() -> Any:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        options = {"config": config, "local_files_only": True, "output_loading_info": True, **attention}
        model, found = kind.from_pretrained(folder, **options)
        told.update(found)
        return model

    try:
        model = with_attention(make, attention.get("attn_implementation"))
    except RequestError:
        raise
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{folder} holds a damaged model ({reason}): train the model again") from None
    ours = model.config.model_type == "diffmix"
    lacking = sorted(key for key in told["missing_keys"] if ours or _answers(model, key))
    left = sorted(told["unexpected_keys"]) if ours else []  # other families leave the heads of their pre-training
    if lacking or left:
        key = (lacking or left)[0]
        raise damaged(
            folder, f"its weights lack {key}" if lacking else f"its weights have {key}, which config.json has not"
        )
    return model


def _answers(model: Any, key: str) -> bool:
    """Whether a weight of another family's model is learned and has a part in its scores."""
    unread = model.config.model_type == "big_bird" and ".pooler." in key
    return not unread and key in {name for name, weight in model.named_parameters() if weight.requires_grad}


def read_config(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """config.json of a model's folder, and the classes that it names.

    Raises RequestError where there is none, RunError where it is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        mend = "give the folder of a finished run"
        if (folder / "seed-0" / "config.json").is_file():
            mend = f"it holds a model a seed: give {folder / 'seed-0'}"
        elif (folder / "recipe.yaml").is_file():
            mend = "its run is not finished: continue it with --resume"
        raise RequestError(f"{folder} holds no trained model (no config.json); {mend}")
    config = read_json(file)
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise damaged(file, "its architectures are no list of names")
    return config, architectures


def recorded_dtype(folder: Path, device: str) -> str:
    """What the run in a folder computed in, if that was on such a device; else "auto"."""
    file = folder / "environment.json"
    recorded = read_json(file) if file.is_file() else {}
    return recorded.get("dtype", "auto") if recorded.get("device_type") == device else "auto"


def trained_attention(folder: Path) -> dict[str, str]:
    """The option of `from_pretrained` with the attention of the recipe in a run's folder, which config.json does not keep.

    Raises RunError where the recipe is damaged, RequestError where it names an unknown attention.
    """
    from diffmix.models.attention import attention_option

    return attention_option(
        _recipe_keys(folder).get("attn_implementation"), f"attn_implementation in {folder / 'recipe.yaml'}"
    )


def trained_column(folder: Path) -> str | None:
    """The text column that the recipe in a run's folder names; None: it names none."""
    name = _recipe_keys(folder).get("text_column")
    return None if name is None else str(name)


def _recipe_keys(folder: Path) -> dict[str, Any]:
    """The recipe in a run's folder; empty for a model from elsewhere. Raises RunError where it is damaged."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        return {}
    try:
        keys = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        keys = None
    if not isinstance(keys, dict):
        raise damaged(file, "it holds no keys")
    return keys


def _trained_length(recipe: Mapping[str, Any], folder: Path) -> int | None:
    """How many ids a row was cut at in the training that the recipe of `folder` describes; None: it does not say.

    Raises RunError where it says nonsense.
    """
    length = recipe.get("max_length")
    if length is not None and (type(length) is not int or length < 1):
        raise damaged(folder / "recipe.yaml", "its max_length is no number of ids")
    return length


def labels_for(examples: Examples, task_labels: Sequence[str], model_labels: Sequence[str]) -> np.ndarray:
    """The labels of `examples`, numbered as the model numbers them: int64 [n].

    A model whose labels have no names (Hugging Face's LABEL_0, LABEL_1, …) numbers them as the task does.

    Raises RequestError where the task has a label that the model does not know.
    """
    if list(model_labels) == [f"LABEL_{index}" for index in range(len(task_labels))]:
        return examples.labels
    unknown = [label for label in task_labels if label not in model_labels]
    if unknown:
        raise RequestError(
            f"the data has the label {unknown[0]!r}, which this model does not know: it knows {', '.join(model_labels)}"
        )
    order = np.array([list(model_labels).index(label) for label in task_labels], dtype=np.int64)
    return order[examples.labels]
