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
SPREAD = 1.2  # with shortest_first, rows come among others that are up to this much longer or shorter


class LengthBucketedBatches(Sampler[list[int]]):
    """The micro-batches of one process, epoch by epoch, as lists of row numbers.

    Every epoch permutes the rows, sorts groups of `MEGA_BATCH` batches by length, cuts them into global batches and
    shuffles those. A global batch is dealt out to the processes row by row, so that all of them get the same lengths, and
    each share is cut into `accumulation` micro-batches. The order depends on `seed` and the epoch only: any number of
    processes and any accumulation sees the same global batches.

    Batches differ in size by one row at most; there is no small rest at the end. In the first epoch the batch with the
    longest row comes first, so that a lack of memory shows at once.

    With `shortest_first` the first epoch goes from short rows to long ones instead (SortaGrad, Amodei et al. 2016): a curriculum
    for tasks whose short rows teach what the long ones need.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a global batch.
        accumulation: micro-batches that one process makes of its share.
        processes, rank: how many processes there are, and which is this one.
        seed: of the order.
        shortest_first: see above.
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
        shortest_first: bool = False,
    ):
        self.lengths = np.asarray(lengths)
        self.shortest_first = shortest_first
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
        ascending = self.shortest_first and self.epoch == 0
        if ascending:
            order = np.argsort(self.lengths * random.uniform(1, SPREAD, len(self.lengths)))
        else:
            order = random.permutation(len(self.lengths))
        cuts = np.linspace(0, len(order), self.batches_per_epoch + 1).round().astype(int)
        batches = []
        for first in range(0, self.batches_per_epoch, MEGA_BATCH):
            last = min(first + MEGA_BATCH, self.batches_per_epoch)
            start, stop = cuts[first], cuts[last]
            group = order[start:stop]
            group = group[np.argsort(-self.lengths[group], kind="stable")]
            together = np.split(group, cuts[first + 1 : last] - start)
            batches += [together[index] for index in random.permutation(len(together))] if ascending else together
        if ascending:
            return batches
        batches = [batches[index] for index in random.permutation(len(batches))]
        if self.epoch == 0:
            longest = max(range(len(batches)), key=lambda index: self.lengths[batches[index][0]])
            batches[0], batches[longest] = batches[longest], batches[0]
        return batches

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

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def flat(self) -> EncodedDataset:
        """These rows as an EncodedDataset of their own, without labels."""
        bounds = [(self.dataset.offsets[row], self.dataset.offsets[row + 1]) for row in self.indices]
        tokens = np.concatenate([self.dataset.tokens[first:last] for first, last in bounds])
        return EncodedDataset(tokens, np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64))
