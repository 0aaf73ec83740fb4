"""How well a causal language model predicts a text, and how far its confidence can be trusted.

B windows at once, N tokens, V token ids; n targets.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmix.errors import RequestError
from diffmix.evaluation.streaming import StreamingCalibration, fit_temperature
from diffmix.models.positions import longest_input
from diffmix.tasks.language import Documents, TokenWindows
from diffmix.tasks.pixels import PixelImages, PixelWindows

_SCORES_AT_ONCE = 2**25  # scores of tokens over the vocabulary that are held at a time
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_FEW_PASSES = 10  # each reads the validation text once


def target_scores(
    model: torch.nn.Module,
    windows: TokenWindows | PixelWindows,
    numbers: Sequence[int] | None = None,
    *,
    batch_size: int = 8,
    dtype: str = "fp32",
    on_batch: Callable[[int], object] = lambda _: None,
    gradients: bool = False,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits [n, V] in fp32 or better, targets [n] and their documents [n], part by part: every target once, in order.

    Args:
        model: maps input_ids [B, N] to `.logits` [B, N, V], causally; its mode is left as it was.
        windows: of at most as many targets as the model takes tokens.
        numbers: which windows; all by default.
        batch_size: windows at once.
        dtype: "fp32" computes in the model's own dtype, "bf16" and "fp16" in autocast.
        on_batch: told how many windows were scored, after each batch.
        gradients: keep what a backward pass needs.

    Raises:
        RequestError: a window longer than the model's positions, or a token that the model does not know.
    """
    _check_fit(model, windows)
    if dtype not in _AUTOCAST:
        raise ValueError(f"dtype is {dtype!r}; give one of {', '.join(_AUTOCAST)}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give 1 or more windows")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        numbers = range(len(windows)) if numbers is None else numbers
        for chosen in _batches(windows, numbers, batch_size):
            rows = [torch.from_numpy(windows[number]["input_ids"]).long() for number in chosen]
            ids = torch.stack(rows).to(device)
            autocast = _AUTOCAST[dtype]
            with (
                contextlib.nullcontext() if gradients else torch.inference_mode(),
                contextlib.nullcontext() if autocast is None else torch.autocast(device.type, dtype=autocast),
            ):
                logits = model(input_ids=ids[:, :-1]).logits
            part = max(1, _SCORES_AT_ONCE // logits.shape[-1])
            for number, row, scores in zip(chosen, rows, logits, strict=True):
                targets = row[1:].to(device)
                owners = torch.from_numpy(windows.documents(number)).long()
                for some, their, documents in zip(
                    scores[: len(targets)].split(part), targets.split(part), owners.split(part), strict=True
                ):
                    yield some.to(torch.promote_types(some.dtype, torch.float32)), their, documents
            on_batch(len(chosen))
    finally:
        model.train(was_training)


def _batches(windows: TokenWindows | PixelWindows, numbers: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    """`numbers` in order, windows of one length at once (the last of a text is shorter): whoever watches the model, as
    `recorded_times` does, sees no filling."""
    lengths = windows.lengths
    start = 0
    for end in range(1, len(numbers) + 1):
        full = end - start == batch_size
        if full or end == len(numbers) or lengths[numbers[end]] != lengths[numbers[start]]:
            yield numbers[start:end]
            start = end


def score_text(
    model: torch.nn.Module,
    windows: TokenWindows | PixelWindows,
    *,
    batch_size: int = 8,
    dtype: str = "fp32",
    bins: int = 15,
    temperature: float = 1.0,
    on_batch: Callable[[int], object] = lambda _: None,
) -> StreamingCalibration:
    """Every target of `windows` scored once by a causal model, ours or Hugging Face's; document by document.

    Args:
        model, windows, batch_size, dtype, on_batch: as in `target_scores`, which also says what it raises.
        bins: of the expected calibration error.
        temperature: logits are divided by it.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; give a finite number above 0: 1 leaves the model as it is")
    calibration = StreamingCalibration(bins)
    parts = target_scores(model, windows, batch_size=batch_size, dtype=dtype, on_batch=on_batch)
    with torch.inference_mode():
        for logits, targets, documents in parts:
            calibration.update(logits / temperature, targets, documents)
    return calibration


def total_nll(
    model: torch.nn.Module,
    windows: TokenWindows | PixelWindows,
    numbers: Sequence[int] | None = None,
    *,
    batch_size: int = 8,
    dtype: str = "fp32",
    on_batch: Callable[[int], object] = lambda _: None,
) -> tuple[float, int]:
    """(summed negative log-likelihood in nats, number of targets) over some windows, or all: what validation asks for."""
    total, count = 0.0, 0
    parts = target_scores(model, windows, numbers, batch_size=batch_size, dtype=dtype, on_batch=on_batch)
    with torch.inference_mode():
        for logits, targets, _ in parts:
            total += float(F.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
    return total, count


def fit_text_temperature(
    model: torch.nn.Module,
    windows: TokenWindows | PixelWindows,
    numbers: Sequence[int] | None = None,
    *,
    batch_size: int = 8,
    dtype: str = "fp32",
    on_batch: Callable[[int], object] = lambda _: None,
) -> float:
    """The temperature that minimises the NLL of `windows`, some or all, which are of a validation split: see `fit_temperature`.

    Each of its few Newton steps is one pass of the model over the windows.
    """

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        scores = target_scores(model, windows, numbers, batch_size=batch_size, dtype=dtype, on_batch=on_batch)
        for logits, targets, _ in scores:
            yield logits, targets

    with torch.inference_mode():
        return fit_temperature(parts, tolerance=1e-3, passes=_FEW_PASSES)


def language_metrics(
    calibration: StreamingCalibration, documents: Documents | PixelImages, *, bootstrap: int = 1000
) -> dict[str, float]:
    """`StreamingCalibration.metrics` of a whole split, and per token, word and byte:

    - `perplexity`: exp of the mean negative log-likelihood a token.
    - `word_perplexity`: exp of the sum over the split's words, counted as word-level models count them, which makes
      tokenizers comparable.
    - `bits_per_byte`: the sum in bits, over the UTF-8 bytes of the split.

    Of images, whose tokens are pixels, in place of the last two:

    - `bits_per_dim`: the mean in bits, over all pixels. Padding and the start token have ids, too, so that it bounds what a
      model of grey values alone would reach from above.

    Their `…_low` and `…_high` follow from those of nll. With a tokenizer that has neither an end mark nor a separator the
    sums lack the split's first token, which nothing stands before.
    """
    metrics = calibration.metrics(bootstrap=bootstrap)
    tokens = metrics["n"]
    for suffix in ("", "_low", "_high"):
        nll = metrics.get(f"nll{suffix}")
        if nll is not None:
            metrics[f"perplexity{suffix}"] = _exp(nll)
            if isinstance(documents, PixelImages):
                metrics[f"bits_per_dim{suffix}"] = nll / math.log(2)
                continue
            metrics[f"word_perplexity{suffix}"] = _exp(nll * tokens / max(1, documents.words))
            metrics[f"bits_per_byte{suffix}"] = nll * tokens / math.log(2) / max(1, documents.bytes)
    return metrics


def _check_fit(model: Any, windows: TokenWindows | PixelWindows) -> None:
    """Refuse, before anything is computed, a text that the model cannot read."""
    positions = longest_input(model.config) if hasattr(model, "config") else None
    if positions is not None and min(windows.length, windows.targets) > positions:
        raise RequestError(
            f"windows of {windows.length} tokens are longer than the model's {positions} positions: "
            f"give windows of at most {positions}"
        )
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    highest = int(windows.tokens.max())
    if embedding is not None and highest >= embedding.weight.shape[0]:
        raise RequestError(
            f"the tokenizer gives token {highest} but the model knows {embedding.weight.shape[0]} tokens: "
            "give the tokenizer that the model was trained with"
        )


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # a float's end
