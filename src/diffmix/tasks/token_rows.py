"""Rows of token ids of different lengths in one flat array, which may stay on disk (memory-mapped).

n: rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class TokenRows:
    """Rows of ids: row i is `flat[offsets[i] : offsets[i + 1]] + shift`. `take` copies indices, never ids.

    flat: any whole numbers, such as a memory-mapped uint8. offsets: int64 [n + 1]. shift: added to what is stored, so that
    grey values 0 … 255 fit in bytes and 0 remains padding. Raises ValueError where offsets do not fit flat.
    """

    def __init__(self, flat: np.ndarray, offsets: np.ndarray, *, shift: int = 0, rows: np.ndarray | None = None):
        if offsets[0] != 0 or offsets[-1] != len(flat) or (np.diff(offsets) < 0).any():
            raise ValueError(
                f"offsets: they must rise from 0 to the {len(flat)} ids; give where each row begins, and the end"
            )
        self.flat, self.offsets, self.shift = flat, offsets, shift
        self._rows = rows  # int64; None: all rows in order

    @classmethod
    def concatenate(cls, parts: Sequence[TokenRows]) -> TokenRows:
        """The rows of several, one after another, copied into memory. Raises ValueError where their shifts differ."""
        shifts = {part.shift for part in parts}
        if len(shifts) != 1:
            raise ValueError(f"parts: they have the shifts {sorted(shifts)}; give parts of one")
        flat = [
            part.flat
            if part._rows is None
            else np.concatenate([part.flat[part.offsets[row] : part.offsets[row + 1]] for row in part._rows])
            for part in parts
        ]
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate(flat), np.concatenate([[0], np.cumsum(lengths)]), shift=shifts.pop())

    @property
    def highest(self) -> int:
        """The highest id that is stored, be it in a row that was not taken; -1 where there is none."""
        return int(self.flat.max()) + self.shift if len(self.flat) else -1

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        """The ids of a row, int16."""
        row = range(len(self))[index] if self._rows is None else int(self._rows[index])
        return self.flat[self.offsets[row] : self.offsets[row + 1]].astype(np.int16) + np.int16(self.shift)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Ids of each row, int64 [n]."""
        lengths = np.diff(self.offsets)
        return lengths if self._rows is None else lengths[self._rows]

    def take(self, rows: np.ndarray) -> TokenRows:
        """The rows at `rows`, in that order, sharing this one's memory."""
        rows = np.asarray(rows, dtype=np.int64)
        chosen = rows if self._rows is None else self._rows[rows]
        return TokenRows(self.flat, self.offsets, shift=self.shift, rows=chosen)
