"""Subword dropout for WordPiece: every epoch spells words a little differently, which teaches what pieces mean.

MaxMatch-Dropout (Hiraoka, 2022): WordPiece takes the longest piece that is in the vocabulary; here each such match is passed
over with probability p, in training only. It does for WordPiece what BPE-dropout does for BPE, and is reproducible from a seed.

n rows, W distinct words, V spellings kept of each.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from diffmix.tasks.encoding import EncodedDataset

SPELLINGS = 16  # drawn once for each distinct word; an epoch picks one of them for each place where the word stands


class SubwordDropout(Dataset):
    """The rows of a split, spelled anew for each epoch; an `EncodedDataset` whose content `set_epoch` chooses.

    Args:
        texts: of the split.
        labels: int64 [n], or None.
        tokenizer: a WordPiece tokenizer.
        max_length: tokens at which a row is cut.
        probability: p, of passing over a match; 0 < p < 1.
        seed: of the spellings and of what each epoch picks.

    Raises:
        ValueError: the tokenizer is not WordPiece, or p is out of range.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: np.ndarray | None,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_length: int,
        probability: float,
        seed: int,
    ):
        backend = tokenizer.backend_tokenizer
        model = json.loads(backend.to_str())["model"]
        if model["type"] != "WordPiece":
            raise ValueError(
                f"tokenizer is {model['type']}; subword dropout takes WordPiece, as in tokenizer=wordpiece-16000"
            )
        if tokenizer.num_special_tokens_to_add():
            raise ValueError(
                "tokenizer adds special tokens, which subword dropout does not; take tokenizer=wordpiece-16000"
            )
        if not 0 < probability < 1:
            raise ValueError(f"probability is {probability}; give a number between 0 and 1, both excluded")
        self.labels, self.max_length, self.seed = labels, max_length, seed
        numbers: dict[str, int] = {}
        rows = []
        for text in texts:
            normal = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
            words = backend.pre_tokenizer.pre_tokenize_str(normal)
            rows.append([numbers.setdefault(word, len(numbers)) for word, _ in words])
        self._row_words = np.array([len(row) for row in rows])
        self._words = np.fromiter(
            (word for row in rows for word in row), dtype=np.int64, count=int(self._row_words.sum())
        )
        speller = _Speller(model, probability, random.Random(seed))
        spellings = [spelling for word in numbers for spelling in speller.spellings(word)]
        self._spelling_lengths = np.array([len(spelling) for spelling in spellings], dtype=np.int64)  # [W·V]
        self._spelling_starts = np.concatenate([[0], np.cumsum(self._spelling_lengths)])
        self._pieces = np.fromiter((piece for spelling in spellings for piece in spelling), dtype=np.int32)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Spell the rows as epoch `epoch` reads them."""
        self._current = self.encode_epoch(epoch)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row in the chosen epoch, int64 [n]."""
        return self._current.lengths

    def __len__(self) -> int:
        return len(self._row_words)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._current[index]

    def encode_epoch(self, epoch: int) -> EncodedDataset:
        """The split as epoch `epoch` reads it."""
        pick = np.random.default_rng((self.seed, epoch)).integers(SPELLINGS, size=len(self._words))
        chosen = self._words * SPELLINGS + pick
        lengths = self._spelling_lengths[chosen]
        first = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(first[-1]) - np.repeat(first[:-1], lengths)
        tokens = self._pieces[np.repeat(self._spelling_starts[chosen], lengths) + within]
        bounds = first[np.concatenate([[0], np.cumsum(self._row_words)])]  # where each row begins
        keep = np.minimum(np.diff(bounds), self.max_length)
        offsets = np.concatenate([[0], np.cumsum(keep)])
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], keep)
        return EncodedDataset(tokens[np.repeat(bounds[:-1], keep) + place], offsets, self.labels)


class _Speller:
    def __init__(self, model: dict, probability: float, draw: random.Random):
        self.vocab: dict[str, int] = model["vocab"]
        self.unknown = self.vocab[model["unk_token"]]
        self.prefix: str = model["continuing_subword_prefix"]
        self.longest_word: int = model["max_input_chars_per_word"]
        self.longest_piece = max(map(len, self.vocab))
        self.probability, self.draw = probability, draw

    def spellings(self, word: str) -> list[list[int]]:
        """V spellings of a word as token ids."""
        if len(word) > self.longest_word or self._spell(word, 0.0) is None:
            return [[self.unknown]] * SPELLINGS
        # A match of one character cannot be passed over, so a word that has a spelling may still lose it here.
        return [self._spell(word, self.probability) or self._spell(word, 0.0) or [] for _ in range(SPELLINGS)]

    def _spell(self, word: str, probability: float) -> list[int] | None:
        pieces, start = [], 0
        while start < len(word):
            for end in range(min(len(word), start + self.longest_piece), start, -1):
                piece = self.vocab.get((self.prefix if start else "") + word[start:end])
                if piece is not None and (end - start == 1 or self.draw.random() >= probability):
                    pieces.append(piece)
                    start = end
                    break
            else:
                return None
        return pieces
