"""A pretrained encoder made ready for long texts: more positions, and the settings of attention diffusion."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from diffmix.errors import RequestError, RunError
from diffmix.models.sparse_attention import DIFFUSION_SETTINGS, diffusion_settings

# Encoders with a table of absolute positions, `embeddings.position_embeddings`, and attention from Hugging Face's registry.
CONVERTIBLE = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")

# Each is enough for a tokenizer of one of these.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")

# Weights of pretraining that a class may leave out, as BertForMaskedLM does in the checkpoints of BERT.
SPARE_WEIGHTS = ("pooler", "seq_relationship", "position_ids")


@dataclass(frozen=True)
class Conversion:
    """What `convert_checkpoint` did."""

    architecture: str
    positions_before: int
    positions: int
    has_tokenizer: bool
    settings: dict[str, Any]


def convert_checkpoint(
    source: Path | str, output: Path | str, *, max_length: int, settings: Mapping[str, Any] | None = None
) -> Conversion:
    """Write a copy of an encoder that takes longer texts, for `attn_implementation="attention_diffusion"`.

    The copy keeps the source's own Hugging Face class and all its weights. Its position table repeats the source's from the
    start (Beltagy et al., 2020); rows before position 0, such as the first two of RoBERTa, stay. The pattern and the
    coefficients stand in its configuration. It loads after `diffmix.register_attention()`:

        AutoModel.from_pretrained(output, attn_implementation="attention_diffusion")

    Args:
        source: a folder with config.json and model.safetensors, or a name on the Hugging Face hub.
        output: a new or empty folder.
        max_length: how many tokens the copy takes, at least as many as the source.
        settings: of `DIFFUSION_SETTINGS`, where they differ from the source's own, and those from the defaults of
            `DiffmixConfig`.

    Raises:
        RequestError: no such model, one that cannot be converted, a length or a setting that does not fit, a folder in use.
        RunError: weights that cannot be read, or are not those of the class that the source's config.json names.
    """
    source, output = str(source), Path(output)
    if output.resolve() == Path.cwd():
        raise RequestError(f"output {output} is the current folder: give a new one")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RequestError(f"output {output} is in use: give a new or empty folder")
    config = _read_config(source)
    unknown = sorted(set(settings or {}) - set(DIFFUSION_SETTINGS))
    if unknown:
        raise RequestError(f"--set {unknown[0]}: no such setting; give some of {', '.join(DIFFUSION_SETTINGS)}")
    own = {name: getattr(config, name) for name in DIFFUSION_SETTINGS if hasattr(config, name)}
    for name, value in (DIFFUSION_SETTINGS | own | dict(settings or {})).items():
        setattr(config, name, value)
    try:
        diffusion_settings(config)
    except ValueError as error:
        raise RequestError(f"{'--set' if settings else source}: {error}") from None
    model = _read_model(source, config)
    table = model.base_model.embeddings.position_embeddings
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    before = table.num_embeddings - first
    if max_length < before:
        raise RequestError(f"--max_length {max_length}: {source} takes {before} tokens already; give as many or more")
    config.max_position_embeddings = first + max_length
    # From the configuration, because tables of positions are not all that depends on their number.
    longer = type(model)(config).to(table.weight.dtype)
    weights = model.state_dict()
    for name, values in weights.items():
        if values.data_ptr() == table.weight.data_ptr():
            weights[name] = extend_positions(values, first, max_length)
    longer.load_state_dict(weights)
    has_tokenizer = _save(longer, source, output, max_length)
    kept = {name: getattr(config, name) for name in DIFFUSION_SETTINGS}
    return Conversion(type(model).__name__, before, max_length, has_tokenizer, kept)


def extend_positions(table: Tensor, first: int, count: int) -> Tensor:
    """[first + n, D] → [first + count, D]: `first` rows as they are, then the n positions over and over."""
    place = torch.arange(count, device=table.device) % (table.shape[0] - first)
    return torch.cat([table[:first], table[first + place]])


def _read_config(source: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise RequestError(
            f"no model at {source} ({reason}): give a folder with config.json and model.safetensors"
        ) from None
    kinds = ", ".join(CONVERTIBLE)
    if config.model_type not in CONVERTIBLE:
        raise RequestError(
            f"{source} is of type {config.model_type}, whose positions cannot be extended: give one of {kinds}"
        )
    position_type = getattr(config, "position_embedding_type", "absolute") or "absolute"
    if position_type != "absolute" or getattr(config, "is_decoder", False):
        what = "a decoder" if getattr(config, "is_decoder", False) else f"a model with {position_type} positions"
        raise RequestError(f"{source} is {what}, which cannot be converted: give an encoder with absolute positions")
    return config


def _read_model(source: str, config: Any) -> Any:
    """The source's own class, from safetensors only."""
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, None) if name else transformers.AutoModel
    if kind is None:
        raise RequestError(f"{source} is a {name}, which transformers does not know: give one of its own models")
    if name and getattr(getattr(kind, "config_class", None), "model_type", None) not in CONVERTIBLE:
        raise RequestError(
            f"config.json of {source} names {name} under architectures, which is no model of type {config.model_type}: "
            "name the class that was saved"
        )
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise RequestError(
            f"{source} holds no safetensors, and nothing else is read: save it with save_pretrained first"
        )
    try:
        model, report = kind.from_pretrained(source, use_safetensors=True, dtype="auto", output_loading_info=True)
    except OSError as error:
        reason = " ".join(str(error).split())[:120]
        raise RequestError(f"{source} holds no safetensors ({reason}), and nothing else is read") from None
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RunError(f"the weights of {source} cannot be read ({reason}): fetch them again") from None
    left_out = {key for key in report["unexpected_keys"] if not any(spare in key for spare in SPARE_WEIGHTS)}
    for keys, problem in ((report["missing_keys"], "lack"), (left_out, "also hold")):
        if keys:
            raise RunError(
                f"the weights of {source} {problem} {min(keys)}, {'' if problem == 'lack' else 'not '}of {type(model).__name__}: "
                f"{'' if name else 'config.json names no architectures; '}name the class that was saved under architectures in "
                "config.json, or fetch the folder again"
            )
    return model


def _save(model: Any, source: str, output: Path, max_length: int) -> bool:
    """Write the folder, complete or not at all; whether the source had a tokenizer to go with it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as folder:
        part = Path(folder) / output.name
        model.save_pretrained(part)
        tokenizer = _read_tokenizer(source)
        if tokenizer is not None:
            tokenizer.model_max_length = max_length
            backend = getattr(tokenizer, "backend_tokenizer", None)
            if backend is not None:  # what its file says of an old length
                backend.no_truncation()
                backend.no_padding()
            tokenizer.save_pretrained(part)
        if output.exists():
            output.rmdir()
        shutil.move(part, output)
    return tokenizer is not None


def _read_tokenizer(source: str) -> Any:
    """The source's tokenizer, or None: of a folder without one, transformers would make one that knows no words."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        return None
