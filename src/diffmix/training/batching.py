"""Batches of rows of like length, so that padding costs little, the same on one process and on many."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, Sampler

from diffmix.tasks.encoding import EncodedDataset, StreamedDataset, round_length

# Rows are sorted by length inside groups of this many batches: enough to leave little padding, few enough to stay random.
MEGA_BATCH = 50
# A batch of the length warm-up is drawn from rows that differ in length by at most this factor, or from more of them where these
# are fewer than so many batches hold.
BAND, BAND_BATCHES = 1.5, 8


class LengthBucketedBatches(Sampler[list[int]]):
    """The micro-batches of one process, epoch by epoch, as lists of row numbers.

    Every epoch permutes the rows, sorts groups of `MEGA_BATCH` batches by length, cuts them into global batches and
    shuffles those. A global batch is dealt out to the processes row by row, so that all of them get the same lengths, and
    each share is cut into `accumulation` micro-batches. The order depends on `seed` and the epoch only: any number of
    processes and any accumulation sees the same global batches.

    Batches differ in size by one row at most; there is no small rest at the end. In the first epoch the batch with the
    longest row comes first, so that a lack of memory shows at once.

    The first `length_warmup` global batches, but for the very first, are drawn otherwise, for tasks whose short rows teach what
    the long ones need: from rows up to a length that grows in equal ratios, from one that a hundredth of the rows stay below to
    one that a hundredth exceed. Every second such batch, on average, is of the longest rows so far; the others are of any length
    below, in equal ratios too, so that what was learned is not forgotten. Rows may come several times, or not at all. (Elman 1993
    starts small; Li et al. 2022 warm up sequence lengths for stability.)

    Args:
        lengths: tokens of each row.
        batch_size: rows of a global batch.
        accumulation: micro-batches that one process makes of its share.
        processes, rank: how many processes there are, and which is this one.
        seed: of the order.
        length_warmup: global batches, see above.
        growth: what takes the place of lengths in them, a number for each row.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        accumulation: int = 1,
        processes: int = 1,
        rank: int = 0,
        seed: int = 0,
        length_warmup: int = 0,
        growth: np.ndarray | None = None,
    ):
        self.lengths = np.asarray(lengths)
        self.growth = self.lengths if growth is None else growth
        self.length_warmup = length_warmup
        self.accumulation, self.processes, self.rank, self.seed = accumulation, processes, rank, seed
        self.batches_per_epoch = max(1, -(-len(self.lengths) // batch_size))
        self.epoch = 0

    def __len__(self) -> int:
        return self.batches_per_epoch * self.accumulation

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order `__iter__` gives."""
        self.epoch = epoch

    def global_batches(self) -> list[np.ndarray]:
        """The row numbers of each global batch of the chosen epoch, longest rows first within a batch."""
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        cuts = np.linspace(0, len(order), self.batches_per_epoch + 1).round().astype(int)
        batches = []
        for first in range(0, self.batches_per_epoch, MEGA_BATCH):
            last = min(first + MEGA_BATCH, self.batches_per_epoch)
            start, stop = cuts[first], cuts[last]
            group = order[start:stop]
            group = group[np.argsort(-self.lengths[group], kind="stable")]
            batches += np.split(group, cuts[first + 1 : last] - start)
        batches = [batches[index] for index in random.permutation(len(batches))]
        if self.epoch == 0:
            longest = max(range(len(batches)), key=lambda index: self.lengths[batches[index][0]])
            batches[0], batches[longest] = batches[longest], batches[0]
        before = self.epoch * self.batches_per_epoch
        growing = range(1 if self.epoch == 0 else 0, min(len(batches), self.length_warmup - before))
        ascending = np.argsort(self.growth, kind="stable") if growing else order
        for number in growing:
            batches[number] = self._growing(before + number, len(batches[number]), ascending)
        return batches

    def _growing(self, number: int, size: int, ascending: np.ndarray) -> np.ndarray:
        """Global batch `number` of the length warm-up: `size` of the rows, which are given from short to long."""
        random = np.random.default_rng((self.seed, 1, number))
        lengths, ends = self.growth[ascending], len(ascending) // 100
        shortest, longest = max(lengths[ends], 1), max(lengths[-1 - ends], 1)
        limit = shortest * (longest / shortest) ** ((number + 1) / self.length_warmup)
        if random.random() < 0.5:
            limit = shortest * (limit / shortest) ** random.random()
        enough = min(BAND_BATCHES * size, len(lengths))
        high = max(int(np.searchsorted(lengths, limit, side="right")), enough)
        low = min(int(np.searchsorted(lengths, limit / BAND, side="right")), high - enough)
        batch = ascending[low + random.choice(high - low, size, replace=False)]
        return batch[np.argsort(-self.lengths[batch], kind="stable")]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            share = batch[self.rank :: self.processes]
            for micro_batch in np.array_split(share, self.accumulation):
                # All processes step together: one that is left without a row repeats the batch's first.
                yield (micro_batch if len(micro_batch) else batch[:1]).tolist()


class StreamedBatches(IterableDataset[list[dict[str, Any]]]):
    """The micro-batches of one process from a `StreamedDataset`: epoch after epoch, without end.

    Global batches are dealt out as in `LengthBucketedBatches`; the last one of an epoch is as small as it happens to be.
    """

    def __init__(self, rows: StreamedDataset, *, batch_size: int, accumulation: int, processes: int, rank: int):
        self.rows, self.batch_size = rows, batch_size
        self.accumulation, self.processes, self.rank = accumulation, processes, rank
        self.batches_per_epoch = -(-len(rows) // batch_size)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            rows = iter(self.rows)
            while batch := list(itertools.islice(rows, self.batch_size)):
                share = batch[self.rank :: self.processes]
                for part in np.array_split(np.arange(len(share)), self.accumulation):
                    yield [share[row] for row in part] or batch[:1]


def batches_by_tokens(lengths: Sequence[int] | np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Row numbers in batches for inference: rows sorted by length, longest first, rows x longest ≤ `batch_tokens`,
    with the longest rounded up as `PaddingCollator` does.

    A row longer than `batch_tokens` makes a batch of its own.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = max(1, batch_tokens // round_length(int(lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


class RowSubset(Dataset[Any]):
    """Some rows of an encoded data set."""

    def __init__(self, dataset: Any, indices: np.ndarray):
        self.dataset, self.indices = dataset, indices
        self.lengths = np.asarray(dataset.lengths)[indices]
        growth = getattr(dataset, "growth", None)  # see Examples
        self.growth = None if growth is None else growth[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def flat(self) -> EncodedDataset:
        """These rows as an EncodedDataset of their own, without labels."""
        bounds = [(self.dataset.offsets[row], self.dataset.offsets[row + 1]) for row in self.indices]
        tokens = np.concatenate([self.dataset.tokens[first:last] for first, last in bounds])
        return EncodedDataset(tokens, np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64))
