"""What a benchmark may be told, and what its workers are told from that: models, steps, data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmix.benchmarks.harness import Notice
from diffmix.errors import RequestError
from diffmix.training.recipe import Recipe, load_recipe

LABELS = 4  # classes of a model that is only timed


@dataclass(frozen=True)
class Options:
    """What a benchmark may be told. None: the benchmark's own default."""

    recipe: str | None = None  # whose model is measured; key=value overrides after a colon, as in `diffmix compare`
    dtype: str = "auto"  # bf16 where the hardware multiplies it, else fp32
    device: str = "auto"
    batch: int | None = None  # rows
    tokens: int | None = None  # of a row
    steps: int = 5  # measured in each process
    repetitions: int = 3  # processes of each side
    limit: int | None = None  # train rows, where data are read
    data: str | None = None  # a folder of data sets


def model_of(recipe: Recipe, tokens: int) -> dict[str, Any]:
    """The recipe's own diffmix model for rows of `tokens`, as the worker builds it. Raises RequestError for others."""
    if recipe.model != "diffmix":
        raise RequestError(f"recipe {recipe.name} has model={recipe.model}: give a recipe with model=diffmix")
    config = {
        **recipe.config,
        "vocab_size": vocabulary_size(recipe.tokenizer),
        "pad_token_id": 0,
        "num_labels": LABELS,
        "max_position_embeddings": max(tokens, recipe.max_length),
    }
    return {"type": "diffmix", "config": config}


def softmax_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a softmax transformer with the width, depth and dropout of a neighbour model."""
    dropped = ("norm_placement", "position_embedding", "norm")
    kept = {key: value for key, value in config.items() if not key.startswith("neighbor_") and key not in dropped}
    return {**kept, "mixer": "softmax"}


def vocabulary_size(tokenizer: str) -> int:
    """How many tokens a recipe's tokenizer has; of one that is yet to be trained, as many as it may have."""
    trained = re.fullmatch(r"(?:wordpiece|bpe)-(\d+)", tokenizer)
    if trained:
        return int(trained[1])
    from diffmix.tasks.tokenizers import build_tokenizer

    return len(build_tokenizer(tokenizer, [], max_length=512))


def recipe_of(options: Options) -> Recipe:
    """The recipe that `options` name, with its overrides."""
    from diffmix.experiments.cells import split_spec

    assert options.recipe is not None
    name, overrides = split_spec(options.recipe)
    return load_recipe(name, overrides)


def step_spec(options: Options, model: dict[str, Any], **shape: int) -> dict[str, Any]:
    """What the worker is told to measure a training step of `model`, as `model_of` gives it; shape: batch, tokens."""
    return {
        "kind": "step",
        "model": model,
        **shape,
        "dtype": options.dtype,
        "device": options.device,
        "steps": options.steps,
    }


def distilbert_config(tokens: int) -> dict[str, Any]:
    """DistilBERT's published shape, which its configuration class has as defaults (66 M parameters)."""
    from transformers import DistilBertConfig

    config = DistilBertConfig()
    return {
        "vocab_size": config.vocab_size,
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "hidden_dim": config.hidden_dim,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "max_position_embeddings": max(tokens, config.max_position_embeddings),
        "num_labels": LABELS,
    }


def save_train(
    recipe: Recipe, options: Options, max_length: int, path: Path, notice: Notice
) -> tuple[dict[str, Any], int]:
    """Encode the recipe's train rows for the workers: what they are, and the vocabulary's size."""
    from diffmix.benchmarks.steps import save_rows
    from diffmix.tasks import Examples
    from diffmix.tasks.encoding import EncodedDataset, encode
    from diffmix.tasks.tokenizers import build_tokenizer
    from diffmix.training.building import recipe_data

    task = recipe_data(recipe.replace(limit=options.limit or recipe.limit), options.data, notice)
    if not isinstance(task.train, Examples) or task.train.texts is None or task.train.pairs is not None:
        raise RequestError(
            f"task {recipe.task} has no single texts in memory: give a recipe of a text classification task"
        )
    notice(f"encoding {len(task.train):,} rows of {task.name}")
    tokenizer = build_tokenizer(
        recipe.tokenizer, task.train.tokenizer_texts(), max_length=max_length, class_token=recipe.class_token
    )
    dataset = encode(task.train, tokenizer, max_length)
    assert isinstance(dataset, EncodedDataset)  # texts
    save_rows(dataset, path)
    facts = {
        "task": task.name,
        "rows": len(dataset),
        "real_tokens": int(dataset.lengths.sum()),
        "labels": len(task.label_names),
    }
    return facts, len(tokenizer)
