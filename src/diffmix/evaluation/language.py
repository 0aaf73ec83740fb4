"""How well a causal language model predicts a text, and how far its confidence can be trusted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from diffmix.evaluation.streaming import StreamingCalibration
from diffmix.tasks.language import Documents, TokenWindows

_SCORES_AT_ONCE = 2**25  # scores of tokens over the vocabulary that are held at a time


@torch.inference_mode()
def score_text(
    model: torch.nn.Module,
    windows: TokenWindows,
    *,
    batch_size: int = 8,
    dtype: str = "fp32",
    bins: int = 15,
    temperature: float = 1.0,
    on_batch: Callable[[int], object] = lambda _: None,
) -> StreamingCalibration:
    """Every target of `windows` scored once by a causal model, ours or Hugging Face's; document by document.

    Args:
        model: maps input_ids [B, N] to `.logits` [B, N, V]; its mode is left as it was.
        windows: of at most as many targets as the model takes tokens.
        batch_size: windows at once.
        dtype: "fp32", or "bf16" or "fp16" for autocast.
        bins: of the expected calibration error.
        temperature: logits are divided by it.
        on_batch: told how many windows were scored, after each batch.
    """
    calibration = StreamingCalibration(bins)
    for numbers, logits, targets in _predictions(model, windows, range(len(windows)), batch_size, dtype):
        for number, scores, tokens in zip(numbers, logits, targets, strict=True):
            owners = torch.from_numpy(windows.documents(number)).long()
            for part in torch.arange(len(owners)).split(max(1, _SCORES_AT_ONCE // scores.shape[-1])):
                calibration.update(scores[part].float() / temperature, tokens[part], owners[part])
        on_batch(len(numbers))
    return calibration


@torch.inference_mode()
def total_nll(
    model: torch.nn.Module, windows: TokenWindows, numbers: Sequence[int], *, batch_size: int = 8, dtype: str = "fp32"
) -> tuple[float, int]:
    """(summed negative log-likelihood in nats, number of targets) over some windows: what validation asks for."""
    total, count = 0.0, 0
    for _, logits, targets in _predictions(model, windows, numbers, batch_size, dtype):
        for scores, tokens in zip(logits, targets, strict=True):
            total += float(F.cross_entropy(scores[: len(tokens)].float(), tokens, reduction="sum"))
            count += len(tokens)
    return total, count


def _predictions(
    model: torch.nn.Module, windows: TokenWindows, numbers: Sequence[int], batch_size: int, dtype: str
) -> Iterator[tuple[Sequence[int], torch.Tensor, list[torch.Tensor]]]:
    """Batches of window numbers, logits [b, ≥ L, V] and each window's targets [≤ L]; the model's mode is put back."""
    device = next(model.parameters()).device
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(numbers), batch_size):
            chosen = numbers[start : start + batch_size]
            rows = [torch.from_numpy(windows[number]["input_ids"]).long() for number in chosen]
            # What is filled up behind a row changes nothing before it, since no token hears the future.
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
            with torch.autocast(device.type, dtype=autocast) if autocast else contextlib.nullcontext():
                logits = model(input_ids=ids[:, :-1]).logits
            yield chosen, logits, [row[1:].to(device) for row in rows]
    finally:
        model.train(was_training)


def language_metrics(
    calibration: StreamingCalibration, documents: Documents, *, bootstrap: int = 1000
) -> dict[str, float]:
    """`StreamingCalibration.metrics` of a whole split, and per token, word and byte:

    - `perplexity`: exp of the mean negative log-likelihood a token.
    - `word_perplexity`: exp of the sum over the split's words, counted as word-level models count them, which makes
      tokenizers comparable.
    - `bits_per_byte`: the sum in bits, over the UTF-8 bytes of the split.

    Their `…_low` and `…_high` follow from those of nll.
    """
    metrics = calibration.metrics(bootstrap=bootstrap)
    tokens = metrics["n"]
    for suffix in ("", "_low", "_high"):
        nll = metrics.get(f"nll{suffix}")
        if nll is not None:
            metrics[f"perplexity{suffix}"] = _exp(nll)
            metrics[f"word_perplexity{suffix}"] = _exp(nll * tokens / max(1, documents.words))
            metrics[f"bits_per_byte{suffix}"] = nll * tokens / math.log(2) / max(1, documents.bytes)
    return metrics


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # a float's end
