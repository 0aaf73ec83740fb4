"""Training steps and epochs, timed, with the memory they take.

B batch, N tokens.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from diffmix.benchmarks.obvious import ObviousClassifier
from diffmix.models import DiffmixConfig
from diffmix.tasks.encoding import EncodedDataset, PaddingCollator
from diffmix.training.batching import LengthBucketedBatches
from diffmix.training.hardware import peak_memory
from diffmix.training.prediction import autocast

Batch = dict[str, torch.Tensor]


def import_model(kind: str) -> None:
    """Import the modules of a Hugging Face model, which are otherwise imported when it is built."""
    transformers_logging.set_verbosity_error()
    if kind != "obvious":
        importlib.import_module(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[CONFIG_MAPPING[kind]].__module__)


def build_model(kind: str, config: dict[str, Any]) -> torch.nn.Module:
    """A classifier with fresh weights: `"obvious"`, or a Hugging Face model type with keys of its configuration."""
    if kind == "obvious":
        return ObviousClassifier(DiffmixConfig(**config))
    return AutoModelForSequenceClassification.from_config(CONFIG_MAPPING[kind](**config))


def measure_step(
    *,
    model: dict[str, Any],
    batch: int,
    tokens: int,
    dtype: str,
    device: str,
    steps: int,
    warmup: int = 2,
    training: bool = True,
    checkpointing: bool = False,
    baseline: int,
) -> dict[str, float]:
    """Time and peak memory of one step on random token ids, every row `tokens` long.

    Args:
        model: {"type", "config"}, see `build_model`.
        dtype: of autocast: bf16, fp16 (with gradient scaling) or fp32. Weights are fp32.
        steps: measured, after `warmup` more.
        training: forward, backward and AdamW (fused); otherwise forward only, in evaluation mode.
        checkpointing: recompute activations in the backward pass.
        baseline: bytes resident just after the imports.

    Returns:
        seconds_per_step (median), tokens_per_second, peak_memory_bytes, parameters.
    """
    network = build_model(**_arguments(model)).to(device)
    if checkpointing:
        newer = getattr(network, "activation_checkpointing_enable", None)  # transformers' later name for it
        (newer or network.gradient_checkpointing_enable)()  # pyright: ignore[reportCallIssue]
    vocabulary, labels = int(model["config"]["vocab_size"]), int(model["config"]["num_labels"])
    inputs: Batch = {
        "input_ids": torch.randint(1, vocabulary, (batch, tokens), device=device),
        "attention_mask": torch.ones((batch, tokens), dtype=torch.int64, device=device),
        "labels": torch.randint(0, labels, (batch,), device=device),
    }
    step = _training_step(network, device, dtype) if training else _inference_step(network, device, dtype)
    seconds = []
    for number in range(warmup + steps):
        taken = _timed(lambda: step(inputs), device)
        if number >= warmup:
            seconds.append(taken)
    median = statistics.median(seconds)
    return {
        "seconds_per_step": median,
        "tokens_per_second": batch * tokens / median,
        "peak_memory_bytes": peak_memory(device, baseline),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def measure_epoch(
    *,
    model: dict[str, Any],
    rows: str,
    batch: int,
    pad_to: int | None,
    dtype: str,
    device: str,
    baseline: int,
) -> dict[str, float]:
    """One training epoch over encoded rows, with the making of its batches.

    Args:
        model: {"type", "config"}, see `build_model`.
        rows: a file of `save_rows`.
        batch: rows of a batch.
        pad_to: pad every batch to this length and take rows in random order; None: bucket by length, pad to the longest.
        baseline: bytes resident just after the imports.

    Returns:
        seconds, real_tokens, computed_tokens (with padding), real_tokens_per_second, peak_memory_bytes.
    """
    dataset = load_rows(Path(rows))
    network = build_model(**_arguments(model)).to(device)
    step = _training_step(network, device, dtype)
    collate = PaddingCollator(int(model["config"]["pad_token_id"]))
    for inputs in _batches(dataset, collate, batch, pad_to):  # warm-up on the first, which is the longest or usual one
        step({name: value.to(device) for name, value in inputs.items()})
        break
    real = computed = 0
    started = time.perf_counter()
    for inputs in _batches(dataset, collate, batch, pad_to):
        real += int(inputs["attention_mask"].sum())
        computed += inputs["input_ids"].numel()
        step({name: value.to(device) for name, value in inputs.items()})
    _finish(device)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "real_tokens": real,
        "computed_tokens": computed,
        "real_tokens_per_second": real / seconds,
        "peak_memory_bytes": peak_memory(device, baseline),
    }


def save_rows(dataset: EncodedDataset, path: Path) -> None:
    """Write encoded rows for the worker processes."""
    np.savez(path, tokens=dataset.tokens, offsets=dataset.offsets, labels=dataset.labels)  # pyright: ignore


def load_rows(path: Path) -> EncodedDataset:
    """Read encoded rows."""
    with np.load(path, allow_pickle=False) as arrays:
        return EncodedDataset(arrays["tokens"], arrays["offsets"], arrays["labels"])


def _batches(dataset: EncodedDataset, collate: PaddingCollator, batch: int, pad_to: int | None) -> Iterator[Batch]:
    if pad_to is None:
        for indices in LengthBucketedBatches(dataset.lengths, batch_size=batch):
            yield collate([dataset[index] for index in indices])
        return
    order = np.random.default_rng(0).permutation(len(dataset))
    for start in range(0, len(order), batch):
        inputs = collate([dataset[int(index)] for index in order[start : start + batch]])
        missing = pad_to - inputs["input_ids"].shape[1]
        yield {
            "input_ids": F.pad(inputs["input_ids"], (0, missing), value=collate.pad_token_id),
            "attention_mask": F.pad(inputs["attention_mask"], (0, missing)),
            "labels": inputs["labels"],
        }


def _training_step(network: torch.nn.Module, device: str, dtype: str) -> Callable[[Batch], None]:
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=dtype == "fp16")

    def step(inputs: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            loss = network(**inputs).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _inference_step(network: torch.nn.Module, device: str, dtype: str) -> Callable[[Batch], None]:
    network.eval()

    def step(inputs: Batch) -> None:
        with torch.inference_mode(), autocast(device, dtype):
            network(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])

    return step


def _arguments(model: dict[str, Any]) -> dict[str, Any]:
    return {"kind": model["type"], "config": model["config"]}


def _timed(work: Callable[[], None], device: str) -> float:
    _finish(device)
    started = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
