"""Denoising pre-training: hidden tokens of unlabelled rows are predicted from their neighbourhood.

B rows, N tokens.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import numpy as np
import torch

from diffmix.models.token_loss import IGNORED
from diffmix.tasks.encoding import EncodedDataset, PaddingCollator


def in_blocks(dataset: EncodedDataset, max_length: int) -> EncodedDataset:
    """Long rows cut into blocks of at most `max_length` tokens, so that all of a text is learned from. Empty rows go."""
    starts = [
        np.arange(first, last, max_length)
        for first, last in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)
    ]
    offsets = np.concatenate([*starts, dataset.offsets[-1:]]).astype(np.int64)
    return EncodedDataset(dataset.tokens, offsets)


def first_of_equal(dataset: Any) -> np.ndarray:
    """The numbers of the encoded rows that equal none before them, rising, int64. One row is in memory at a time."""
    first: dict[bytes, int] = {}
    for number in range(len(dataset)):
        ids = np.asarray(dataset[number]["input_ids"], dtype=np.int32)
        first.setdefault(hashlib.blake2b(ids.tobytes(), digest_size=16).digest(), number)
    return np.fromiter(first.values(), dtype=np.int64)


class MaskingCollator:
    """Batches of `PaddingCollator` with hidden tokens: labels [B, N] hold the ids that were hidden, IGNORED elsewhere.

    Of the chosen tokens 80 % become the mask token, 10 % a random one, 10 % stay (BERT). Draws follow from the seed, the epoch
    and the batch, not from what was drawn before: batches are made ahead of their step, and a resumed run makes the same ones.

    Args:
        pad_token_id, mask_token_id, vocab_size: of the tokenizer.
        special_ids: tokens that are never hidden.
        probability: of a token to be chosen.
        longest, shortest: see `PaddingCollator`.
        seed: of the draws.
    """

    def __init__(
        self,
        *,
        pad_token_id: int,
        mask_token_id: int,
        vocab_size: int,
        special_ids: list[int],
        probability: float,
        longest: int | None = None,
        shortest: int = 1,
        seed: int = 0,
    ):
        self.pad = PaddingCollator(pad_token_id, longest, shortest)
        self.epoch = 0
        self.mask_token_id, self.vocab_size, self.probability, self.seed = mask_token_id, vocab_size, probability, seed
        self.special_ids = torch.tensor(sorted(special_ids))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch: each hides other tokens of the same batch."""
        self.epoch = epoch

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad and mask `rows`. At least one token is chosen, so that the loss is defined."""
        batch = self.pad(rows)
        ids = batch["input_ids"]
        random = np.random.default_rng((self.seed, self.epoch, zlib.crc32(ids.numpy().tobytes())))
        maskable = batch["attention_mask"].bool() & ~torch.isin(ids, self.special_ids)
        draw, kind = torch.from_numpy(random.random((2, *ids.shape)))
        chosen = maskable & (draw < self.probability)
        if not chosen.any() and maskable.any():
            chosen.view(-1)[maskable.view(-1).nonzero()[0]] = True
        batch["labels"] = ids.masked_fill(~chosen, IGNORED)
        random_ids = torch.from_numpy(random.integers(self.vocab_size, size=ids.shape))
        ids = torch.where(chosen & (kind < 0.8), self.mask_token_id, ids)
        batch["input_ids"] = torch.where(chosen & (kind >= 0.9), random_ids, ids)
        return batch


@torch.inference_mode()
def masked_metrics(
    model: torch.nn.Module, dataset: Any, collate: MaskingCollator, batches: list[np.ndarray], context: Any
) -> tuple[float, int, int]:
    """(summed loss, tokens asked, tokens right) of hidden tokens over `batches` of row numbers. Changes no mode."""
    device = next(model.parameters()).device
    loss, asked, right = 0.0, 0, 0
    for rows in batches:
        batch = {name: value.to(device) for name, value in collate([dataset[int(row)] for row in rows]).items()}
        labels = batch.pop("labels")
        chosen = labels != IGNORED
        with context():
            logits = model(**batch).logits[chosen].float()
        loss += float(torch.nn.functional.cross_entropy(logits, labels[chosen], reduction="sum"))
        asked += int(chosen.sum())
        right += int((logits.argmax(dim=-1) == labels[chosen]).sum())
    return loss, asked, right
