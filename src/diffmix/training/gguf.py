"""Pretrained language models in GGUF, the format of llama.cpp, read by transformers through the package gguf."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffmix.errors import RequestError, RunError
from diffmix.models.foreign_attention import with_attention


def load_gguf(file: Path, **options: Any) -> tuple[Any, Any]:
    """The model in fp32, its weights dequantised, and the tokenizer that the file carries.

    options: of `from_pretrained`. Raises RequestError where the file or the package gguf is missing, RunError where the file
    cannot be read.
    """
    if not file.is_file():
        raise RequestError(f"{file} is no file: give a GGUF file or a model's folder")
    if importlib.util.find_spec("gguf") is None:
        raise RequestError(f"{file} is in GGUF, which the package gguf reads: run pip install 'diffmix[gguf]'")
    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
        model = with_attention(
            lambda: AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where, **options),
            options.get("attn_implementation"),
        )
    except RequestError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{file} could not be read ({reason}): give a whole GGUF file of a causal language model"
        ) from None
    return model, tokenizer
