"""The one check that every metric of predicted probabilities shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A softmax in float32 misses 1 by about 1e-6 and one in half precision by about 1e-3; logits miss it by far more.
_ROW_SUM_TOLERANCE = 5e-3


def check_predictions(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """Return `probabilities` [n, C] in their own floating dtype and `labels` [n] as int64, or raise.

    Raises:
        ValueError: a wrong shape, no example, fewer than two classes, a value that is not finite or outside [0, 1], a
            row that does not sum to 1, labels that are not integers in [0, C).
    """
    p = np.asarray(probabilities)
    y = np.asarray(labels)
    if p.ndim != 2 or p.shape[0] == 0 or p.shape[1] < 2:
        raise ValueError(
            f"probabilities has shape {list(p.shape)}; it must be [n, C] with n >= 1 examples and C >= 2 classes: "
            "give a binary classifier both columns, [1 - p, p]"
        )
    if not np.issubdtype(p.dtype, np.floating):
        raise ValueError(f"probabilities has dtype {p.dtype}; it must be floating: give softmax(logits), not classes")
    if y.shape != (p.shape[0],):
        raise ValueError(
            f"labels has shape {list(y.shape)}; it must be [{p.shape[0]}], one label for each row of probabilities: "
            "give class indices, not one-hot rows"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"labels has dtype {y.dtype}; it must be an integer dtype: map label names to 0..{p.shape[1] - 1}"
        )
    _refuse_first(~np.isfinite(p).all(axis=1), p, "has a value that is not finite", "finite: look for a diverged model")
    # Compared in float64, so that the tolerance means the same for every dtype.
    sums = p.sum(axis=1, dtype=np.float64)
    _refuse_first((p < 0).any(axis=1), p, "has a negative value", "at least 0: apply softmax to logits first")
    _refuse_first(
        np.abs(sums - 1) > _ROW_SUM_TOLERANCE, p, "does not sum to 1", "a distribution: apply softmax to logits first"
    )
    outside = (y < 0) | (y >= p.shape[1])
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"labels[{row}] is {y[row]}; it must be in 0..{p.shape[1] - 1}, the columns of probabilities: "
            "drop the example or widen the model's head"
        )
    return p, y.astype(np.int64)


def _refuse_first(bad: ArrayLike, p: NDArray[np.floating], what: str, mend: str) -> None:
    bad = np.asarray(bad)
    if bad.any():
        row = int(bad.argmax())
        shown = np.array2string(p[row, :4].astype(np.float64), precision=4, separator=", ", max_line_width=120)
        if p.shape[1] > 4:
            shown = shown[:-1] + ", ...]"
        raise ValueError(f"probabilities[{row}] {what}: {shown}; each row must be {mend}")
