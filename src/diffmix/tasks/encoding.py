"""From texts to token ids: encoded in batches, kept flat, padded to about each batch's longest row, or streamed from disk.

n: rows of a split.  B: rows of a batch.  N: tokens of the batch's longest row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from diffmix.tasks.examples import Examples, StreamedExamples
from diffmix.tasks.token_rows import TokenRows

_BATCH = 1024  # texts encoded at a time


class EncodedDataset(Dataset):
    """Encoded rows: one flat int32 array of token ids and where each row begins.

    An item is {"input_ids": int32 [N], "labels": int} (pair tasks: and "input_ids_pair"; unlabelled text: no labels).
    `lengths`: int64 [n], the tokens of each row (of a pair: of the longer text).
    """

    def __init__(
        self,
        tokens: np.ndarray,
        offsets: np.ndarray,
        labels: np.ndarray | None = None,
        pair: EncodedDataset | None = None,
    ):
        self.tokens = tokens  # int32 [all tokens]
        self.offsets = offsets  # int64 [n + 1]
        self.labels = labels  # int64 [n]
        self.pair = pair

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [n]."""
        own = np.diff(self.offsets)
        return own if self.pair is None else np.maximum(own, self.pair.lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = range(len(self))[index]
        item: dict[str, Any] = {"input_ids": self.tokens[self.offsets[row] : self.offsets[row + 1]]}
        if self.pair is not None:
            item["input_ids_pair"] = self.pair[row]["input_ids"]
        if self.labels is not None:
            item["labels"] = int(self.labels[row])
        return item


class Encoder:
    """Texts to token ids, cut at `max_length`, exactly as the tokenizer itself does, but in batches and for any length."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int):
        if max_length < 1:
            raise ValueError(f"max_length: got {max_length}; give 1 or more tokens")
        # Copies, because truncation is a state of the Rust object and would be saved with it.
        self._whole = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._whole.no_truncation()
        self._whole.no_padding()
        self._cut = Tokenizer.from_str(self._whole.to_str())
        self._cut.enable_truncation(max_length)
        self._max_length = max_length
        self._long = max(1 << 16, 16 * max_length)  # characters beyond which a text is shortened first

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, at most max_length."""
        shortened = [text if len(text) <= self._long else self._shorten(text) for text in texts]
        return [encoding.ids for encoding in self._cut.encode_batch_fast(shortened)]

    def _shorten(self, text: str) -> str:
        """A beginning of `text` that has more than max_length tokens, so that a text of megabytes costs no more than one page."""
        length = self._long
        while length < len(text):
            # The margin keeps a word that the cut broke beyond max_length.
            if len(self._whole.encode(text[:length], add_special_tokens=False).ids) >= self._max_length + 512:
                return text[:length]
            length *= 4
        return text


class RowsDataset(Dataset):
    """Rows of ids that stay where they are, on disk perhaps, each cut at `max_length`. Items are as EncodedDataset's."""

    def __init__(self, rows: TokenRows, max_length: int, labels: np.ndarray, growth: np.ndarray | None = None):
        self._rows, self._max_length, self._labels = rows, max_length, labels
        self.growth = growth  # see Examples
        self.lengths = np.minimum(rows.lengths, max_length)  # int64 [n]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._rows[index][: self._max_length], "labels": int(self._labels[index])}


def encode(
    examples: Examples, tokenizer: PreTrainedTokenizerFast | None, max_length: int
) -> EncodedDataset | RowsDataset:
    """A split as token ids, each text cut at `max_length` tokens. Tasks that are ids already need no tokenizer."""
    if isinstance(examples.input_ids, TokenRows):
        return RowsDataset(examples.input_ids, max_length, examples.labels, examples.growth)
    if examples.input_ids is not None:
        rows = examples.input_ids[:, :max_length]
        offsets = np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1]
        return EncodedDataset(np.ascontiguousarray(rows, dtype=np.int32).reshape(-1), offsets, examples.labels)
    if tokenizer is None or examples.texts is None:
        raise ValueError("tokenizer: got None, but the examples are texts; give one of build_tokenizer")
    encoder = Encoder(tokenizer, max_length)
    pair = None if examples.pairs is None else EncodedDataset(*_flat(examples.pairs, encoder))
    return EncodedDataset(*_flat(examples.texts, encoder), examples.labels, pair)


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_length: int) -> EncodedDataset:
    """Unlabelled texts as token ids, each cut at `max_length` tokens."""
    return EncodedDataset(*_flat(texts, Encoder(tokenizer, max_length)))


def _flat(texts: Sequence[str], encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32 [all tokens], offsets int64 [n + 1])."""
    lengths = np.zeros(len(texts), dtype=np.int64)
    parts = [np.empty(0, dtype=np.int32)]
    for start in range(0, len(texts), _BATCH):
        ids = encoder(texts[start : start + _BATCH])
        lengths[start : start + len(ids)] = [len(row) for row in ids]
        parts.append(np.concatenate([np.asarray(row, dtype=np.int32) for row in ids]))
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def rows_of_length(tokens: int, rows: int, *, pairs: bool = False) -> EncodedDataset:
    """Rows of label 0 that hold the token 1 throughout: the longest that a stream, perhaps of pairs, may bring, to measure a
    step with."""
    offsets = np.arange(rows + 1, dtype=np.int64) * tokens
    pair = rows_of_length(tokens, rows) if pairs else None
    return EncodedDataset(np.ones(rows * tokens, dtype=np.int32), offsets, np.zeros(rows, dtype=np.int64), pair)


def round_length(tokens: int) -> int:
    """The padded length of `tokens`: multiples of 8 up to 128, then eight lengths between a power of two and the next.

    1 … 8 → 8, …, 121 … 128 → 128, 129 … 144 → 144, …, 481 … 512 → 512: at most an eighth more, on average a 24th.
    """
    step = max(8, 2 ** ((max(1, tokens) - 1).bit_length() - 4))
    return -(-max(1, tokens) // step) * step


def shortest_input(config: Any, max_length: int) -> int:
    """How many tokens, padding included, a batch must have for a model of this Hugging Face configuration: 1, but for BigBird,
    whose sparse attention at fewer tokens than it reaches turns into full attention, for good.

    Where texts are cut at fewer (`max_length`), it is full attention from the first batch on, and nothing is gained by padding.
    """
    if config.model_type != "big_bird" or config.attention_type != "block_sparse":
        return 1
    needed = (5 + 2 * config.num_random_blocks) * config.block_size + 1
    return needed if max_length >= needed else 1


class PaddingCollator:
    """Rows to a batch, padded on the right to the longest of them, rounded up by `round_length` (not beyond `longest`),
    and to `shortest` at least.

    Few different shapes: oneDNN prepares each product anew for a shape that it has not seen, and keeps what it prepared.

    {"input_ids": int64 [B, N], "attention_mask": int64 [B, N], "labels": int64 [B] where the rows have labels}; pair tasks
    also "input_ids_pair" and "attention_mask_pair", padded on their own.
    """

    def __init__(self, pad_token_id: int, longest: int | None = None, shortest: int = 1):
        self.pad_token_id, self.longest, self.shortest = pad_token_id, longest, shortest

    def _width(self, tokens: int) -> int:
        rounded = round_length(tokens)
        width = rounded if self.longest is None else max(tokens, min(rounded, self.longest))
        return max(self.shortest, width)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad `rows`, items of an EncodedDataset or StreamedDataset."""
        batch = {}
        for suffix in ("", "_pair"):
            if f"input_ids{suffix}" in rows[0]:
                ids, mask = self._pad([row[f"input_ids{suffix}"] for row in rows])
                batch[f"input_ids{suffix}"], batch[f"attention_mask{suffix}"] = ids, mask
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=torch.int64)
        return batch

    def _pad(self, rows: Sequence[Sequence[int] | np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(self._width(int(lengths.max()))) < lengths[:, None]
        ids = np.full(mask.shape, self.pad_token_id, dtype=np.int64)
        ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


class StreamedDataset(IterableDataset):
    """Rows of a file larger than memory: read anew in every epoch, shuffled and bucketed by length inside a buffer.

    The buffer (`buffer_rows`, rounded to whole batches) holds encoded rows. When it is full, its rows are sorted by length, cut
    into batches of `batch_size` neighbours, and the batches come out in random order; a DataLoader of the same batch size
    thus pads little. With DataLoader workers each takes every k-th of the file's batches.
    Items are those of EncodedDataset. `set_epoch` changes the order; the same seed and epoch give the same order.
    `pairs`: whether the rows are pairs of texts, for who must know it before reading one.
    """

    def __init__(
        self,
        examples: StreamedExamples,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        *,
        batch_size: int,
        buffer_rows: int = 32_768,
        seed: int = 0,
        pairs: bool = False,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; give 1 row or more")
        self._examples = examples
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._batch_size = batch_size
        self._buffer_rows = max(1, buffer_rows // batch_size) * batch_size
        self._seed = seed
        self._epoch = 0
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self._examples)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        turn, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if worker is not None:  # a forked process must not use the parent's Rust threads
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        encoder = Encoder(self._tokenizer, self._max_length)
        rng = np.random.default_rng([self._seed, self._epoch, turn])
        buffer: list[dict[str, Any]] = []
        for number, (texts, pairs, labels) in enumerate(self._examples.read()):
            if number % turns != turn:
                continue
            buffer += self._encoded(encoder, texts, pairs, labels)
            while len(buffer) >= self._buffer_rows:
                yield from self._bucketed(buffer[: self._buffer_rows], rng)
                del buffer[: self._buffer_rows]
        yield from self._bucketed(buffer, rng)

    @staticmethod
    def _encoded(
        encoder: Encoder, texts: list[str], pairs: list[str] | None, labels: np.ndarray
    ) -> Iterator[dict[str, Any]]:
        for start in range(0, len(texts), _BATCH):
            part = slice(start, start + _BATCH)
            second = [None] * len(texts[part]) if pairs is None else encoder(pairs[part])
            for ids, ids_pair, label in zip(encoder(texts[part]), second, labels[part], strict=True):
                item: dict[str, Any] = {"input_ids": np.asarray(ids, dtype=np.int32), "labels": int(label)}
                if ids_pair is not None:
                    item["input_ids_pair"] = np.asarray(ids_pair, dtype=np.int32)
                yield item

    def _bucketed(self, rows: list[dict[str, Any]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        order = rng.permutation(len(rows))  # equal lengths in random order, because the sort is stable
        lengths = np.array([max(len(rows[i]["input_ids"]), len(rows[i].get("input_ids_pair", ()))) for i in order])
        order = order[np.argsort(lengths, kind="stable")]
        whole = len(order) - len(order) % self._batch_size
        batches = list(order[:whole].reshape(-1, self._batch_size)) if whole else []
        for place in rng.permutation(len(batches)):
            yield from (rows[i] for i in batches[place])
        yield from (rows[i] for i in order[whole:])  # the file's last rows: less than a batch
