"""How well a causal language model predicts a text, and how far its confidence can be trusted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch

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
    on_batch: Callable[[int], None] = lambda _: None,
) -> StreamingCalibration:
    """Every target of `windows` scored once by a causal model, ours or Hugging Face's; document by document.

    Args:
        model: maps input_ids [B, N] to `.logits` [B, N, V]; its mode is left as it was.
        windows: of at most the length that the model takes.
        batch_size: windows at once.
        dtype: "fp32", or "bf16" or "fp16" for autocast.
        bins: of the expected calibration error.
        temperature: logits are divided by it.
        on_batch: told how many windows are done, after each batch.
    """
    device = next(model.parameters()).device
    calibration = StreamingCalibration(bins)
    was_training = model.training
    model.eval()
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype)
    done = 0
    try:
        for start in range(0, len(windows), batch_size):
            numbers = range(start, min(start + batch_size, len(windows)))
            rows = [torch.from_numpy(windows[number]["input_ids"]).long() for number in numbers]
            owners = [torch.from_numpy(windows.documents(number)).long() for number in numbers]
            # Causally, what is filled up behind a row changes nothing before it.
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
            context = contextlib.nullcontext() if autocast is None else torch.autocast(device.type, dtype=autocast)
            with context:
                logits = model(input_ids=ids[:, :-1]).logits
            for row, document, scores in zip(rows, owners, logits, strict=True):
                targets = row[1:].to(device)
                for part in torch.arange(len(targets)).split(max(1, _SCORES_AT_ONCE // scores.shape[-1])):
                    calibration.update(scores[part].float() / temperature, targets[part], document[part])
            done += len(rows)
            on_batch(done)
    finally:
        model.train(was_training)
    return calibration


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
