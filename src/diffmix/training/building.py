"""Data, models and tokenizers for a recipe; the latter two new, from a pre-trained folder, or from a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    set_seed,
)

import diffmix.models as models
from diffmix.errors import RequestError
from diffmix.models.attention import attention_option
from diffmix.models.foreign_attention import with_attention
from diffmix.models.positions import COUNT_WITHOUT_PADDING, longest_input, positions_for
from diffmix.tasks import TaskData, load_task
from diffmix.tasks.examples import Examples, StreamedExamples
from diffmix.training.callbacks import AVERAGED_WEIGHTS
from diffmix.training.distributed import is_first_process
from diffmix.training.recipe import Recipe
from diffmix.training.run_folder import damaged, read_json

_ANY_SIZE = 100  # of a vocabulary, to see the rest of a model's shape
VALIDATION_SEED = 0  # of the cut of validation: runs of different seeds share it


def recipe_data(recipe: Recipe, data: Path | str | None, on_notice: Callable[[str], None]) -> TaskData:
    """The data of a recipe's task, as the recipe asks for them; several processes tell their notices once."""
    return load_task(
        recipe.task,
        data=data,
        validation_fraction=recipe.validation_fraction,
        seed=VALIDATION_SEED,
        text_column=recipe.text_column,
        pair_column=recipe.pair_column,
        label_column=recipe.label_column,
        extra_train=recipe.extra_train,
        limit=recipe.limit,
        stream=recipe.stream,
        on_notice=on_notice if is_first_process() else lambda _: None,
    )


def model_config(
    recipe: Recipe, tokenizer: Any, vocab_size: int, labels: dict[str, Any], start: Path | None = None
) -> Any:
    """The model's configuration; of another family than ours, that of the folder `start` with the recipe's keys.

    Raises RequestError where its keys contradict each other or do not fit `start`.
    """
    config_class = CONFIG_MAPPING[recipe.model]
    keys = dict(recipe.config) | attention_option(recipe.attn_implementation)
    keys["vocab_size"] = vocab_size
    keys["pad_token_id"] = 0 if tokenizer is None else tokenizer.pad_token_id
    if start is not None and recipe.model != "diffmix":
        return _config_of(start, recipe, keys | labels)
    try:
        config = config_class(**keys, **labels)
        longest = longest_input(config)
        # Another family keeps its own shape where the texts fit in it.
        fits = longest is None or (recipe.model != "diffmix" and longest >= recipe.max_length)
        if not fits and "max_position_embeddings" not in keys:
            keys["max_position_embeddings"] = positions_for(config, recipe.max_length)
            config = config_class(**keys, **labels)
        longest = longest_input(config)
        if longest is not None and longest < recipe.max_length:
            raise RequestError(
                f"max_position_embeddings={keys['max_position_embeddings']} has room for {longest} tokens and max_length is "
                f"{recipe.max_length}: leave max_position_embeddings out, or cut texts with max_length={longest}"
            )
        return config
    except RequestError:
        raise
    except (TypeError, ValueError) as error:
        raise RequestError(" ".join(str(error).split())) from None


def _config_of(start: Path, recipe: Recipe, keys: dict[str, Any]) -> Any:
    """The configuration in the folder `start`, with `keys`; of its vocabulary the size stays, which may be padded."""
    needed = keys["vocab_size"]
    # What was a language model is read in both directions from here on.
    keys = {"is_decoder": False} | {key: value for key, value in keys.items() if key != "vocab_size"}
    try:
        config = AutoConfig.from_pretrained(start, local_files_only=True, **keys)
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"init_from: {start} holds no model ({' '.join(str(error).split())[:120]})") from None
    if config.model_type != recipe.model:
        raise RequestError(f"init_from: {start} is of type {config.model_type}: set model={config.model_type}")
    longest = longest_input(config)
    if longest is not None and longest < recipe.max_length:
        raise RequestError(
            f"init_from: {start} takes {longest} tokens: set max_length={longest}, or lengthen it with diffmix convert"
        )
    embedded = getattr(config.get_text_config(), "vocab_size", needed)
    if embedded < needed:
        raise RequestError(
            f"init_from: {start} embeds {embedded} tokens but is to read {needed}: give a model and a tokenizer of its own"
        )
    return config


def check_rows(recipe: Recipe, task: TaskData) -> None:
    """Raise RequestError where the recipe's classifier, or what it does to its train rows, is not for such rows."""
    if task.validation.pairs is not None and recipe.model != "diffmix":
        raise RequestError(f"model={recipe.model} reads single texts but the data are pairs: set model=diffmix")
    single = isinstance(task.train, Examples) and task.train.texts is not None and task.train.pairs is None
    if recipe.subword_dropout > 0 and not single:
        raise RequestError("subword_dropout takes single texts held in memory: set subword_dropout=0")


def check_pretraining(recipe: Recipe, phase: Recipe, task: TaskData, read: TaskData) -> None:
    """Raise RequestError, before hours of it, where pre-training on `read` is impossible, or where the classifier of `task` could
    not start from its model."""
    kind = CONFIG_MAPPING[phase.model]
    if phase.model != "diffmix" and kind not in MODEL_FOR_MASKED_LM_MAPPING:
        raise RequestError(
            f"pretraining restores hidden tokens, for which model={phase.model} has no head: set pretraining=null"
        )
    if isinstance(read.train, StreamedExamples):
        raise RequestError(
            "pretraining needs rows in memory but train is streamed: set stream=false or pretraining=null"
        )
    if read.vocab_size is not None and phase.model in COUNT_WITHOUT_PADDING:
        raise RequestError(
            f"pretraining hides ids as 0, at which model={phase.model} counts no position: set pretraining=null, or another model"
        )
    if read.vocab_size != task.vocab_size:
        raise RequestError(
            f"pretraining.task={read.name} has other ids than task={task.name}: leave pretraining.task out"
        )
    before, after = (model_config(each, None, task.vocab_size or _ANY_SIZE, {}) for each in (phase, recipe))
    held, needed = longest_input(before), longest_input(after)
    if (recipe.model == "diffmix" and before.position_embedding != "learned") or held is None or needed is None:
        return
    if held != needed if recipe.model == "diffmix" else held < recipe.max_length:
        raise RequestError(
            f"pretraining has max_length={phase.max_length}, which gives its model {held} positions, and the run needs {needed}: "
            f"set max_position_embeddings={max(before.max_position_embeddings, after.max_position_embeddings)}"
        )


def build_classifier(recipe: Recipe, task: TaskData, tokenizer: Any, start: Path | None) -> Any:
    """The recipe's classifier, drawn with its seed; with `start`, its backbone from that folder.

    Raises RequestError where the data, the recipe and `start` do not fit together.
    """
    names = task.label_names
    labels = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    vocab_size = task.vocab_size if tokenizer is None else len(tokenizer)
    assert vocab_size is not None
    config = model_config(recipe, tokenizer, vocab_size, labels, start)
    pairs = task.validation.pairs is not None
    if recipe.model == "xlnet" and config.summary_type != "first":
        raise RequestError(
            f"summary_type={config.summary_type} reads the padding of xlnet's shorter texts: set summary_type=first"
        )
    if start is None and config.is_encoder_decoder:
        begins, ends = getattr(config, "decoder_start_token_id", None), getattr(config, "eos_token_id", None)
        if begins is None or tokenizer is None or ends is None or ends != tokenizer.eos_token_id:
            raise RequestError(
                f"model={recipe.model} classifies by a decoder and here are no start and end tokens for it: set another model"
            )
    set_seed(recipe.seed)
    if start is not None:
        kind: Any = models.DiffmixForSequencePairClassification if pairs else AutoModelForSequenceClassification
        loaded: dict[str, Any] = {}

        def begun() -> Any:
            model, told = kind.from_pretrained(start, config=config, local_files_only=True, output_loading_info=True)
            loaded.update(told)
            return model

        try:
            model = with_attention(begun, recipe.attn_implementation)
        except RequestError:
            raise
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RequestError(f"init_from: {start} does not fit this recipe's model ({reason})") from None
        if recipe.model == "diffmix":
            _check_backbone(start, model, loaded)
        return model
    if pairs:
        return models.DiffmixForSequencePairClassification(config)
    return drawn_model(recipe, lambda: AutoModelForSequenceClassification.from_config(config))


def drawn_model(recipe: Recipe, make: Callable[[], Any]) -> Any:
    """The model that `make` draws from a configuration, with the recipe's attention.

    Raises RequestError where keys of the configuration, which other families judge only now, do not fit together.
    """
    try:
        return with_attention(make, recipe.attn_implementation)
    except RequestError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(". ")
        raise RequestError(f"model={recipe.model}: {reason}; give model keys that fit together") from None


def _check_backbone(start: Path, model: Any, loaded: dict[str, Any]) -> None:
    """Raise RequestError where weights of the backbone in `start` were left aside, or drawn though `start` has their layer.

    A model may have more layers than its start: those are drawn.
    """
    prefix = f"{model.base_model_prefix}."  # which the weights of a bare backbone are without
    missing = {key for key in loaded["missing_keys"] if key.startswith(prefix)}
    parts = ("embedding", "ngrams", "positions", "layers", "final_norm")  # of `DiffmixModel`; others are a head's
    unexpected = {key for key in loaded["unexpected_keys"] if key.removeprefix(prefix).partition(".")[0] in parts}
    taken = {_layer(key) for key in model.state_dict() if key not in missing}
    drawn = {key for key in missing if _layer(key) is None or _layer(key) in taken}
    if unexpected or drawn:
        key, what = (min(unexpected), "has") if unexpected else (min(drawn), "lacks")
        raise RequestError(
            f"init_from: {start} does not fit this recipe's model: it {what} {key} and others; give the recipe the model keys of "
            f"its config.json, or leave init_from out"
        )


def _layer(key: str) -> str | None:
    """The part of a weight's name that tells its layer; None: it is in none."""
    found = re.search(r"\blayers\.\d+\.", key)
    return None if found is None else found.group()


def start_embeddings(model: Any, embeddings: np.ndarray) -> None:
    """Start tokens from `embeddings` [V, D], at the standard deviation the model drew them with; rows of 0 stay as drawn."""
    weight = model.get_input_embeddings().weight
    vectors = torch.from_numpy(embeddings)
    occurring = vectors.abs().sum(dim=1) > 0
    with torch.no_grad():
        weight[occurring] = vectors[occurring] * weight[occurring].std()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a run's folder. Raises RequestError where there is none, RunError where a file of it is damaged."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises types of its own
        reason = " ".join(str(error).split())[:120]
    files = [folder / "tokenizer_config.json", folder / "tokenizer.json"]
    lacking = [file.name for file in files if not file.is_file()]
    if len(lacking) == 2:
        raise RequestError(f"{folder} holds no tokenizer (no tokenizer.json): give a run's folder")
    if lacking:
        raise damaged(folder, f"no {lacking[0]}; {reason}")
    for file in files:
        read_json(file)
    raise damaged(folder, f"tokenizer: {reason}")


def load_weights(model: Any, checkpoint: Path) -> None:
    """A checkpoint's weights, the averaged ones where it has them (buffers are not averaged)."""
    load_model(model, checkpoint / "model.safetensors", device=str(next(model.parameters()).device))
    averaged = checkpoint / AVERAGED_WEIGHTS
    if averaged.is_file():
        averages = load_file(averaged)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(averages[name])
