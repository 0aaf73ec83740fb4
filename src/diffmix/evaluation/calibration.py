"""Calibration of the top prediction: does a confidence of 80 % mean right four times in five?

confidence c_i = max_k p_ik, correct_i = 1 if argmax_k p_ik is the label. Bins are open to the left, (low, high], and
the first one includes 0, as in Guo et al., "On Calibration of Modern Neural Networks" (2017). (torchmetrics closes them on
the left, [low, high), and gives a confidence of exactly 1 a bin of its own; elsewhere the numbers are equal.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffmix.evaluation.inputs import check_predictions


@dataclass(frozen=True)
class ConfidenceBins:
    """Three sums a bin, which is all that a reliability diagram, ECE and its noise floor need."""

    edges: NDArray[np.float64]  # [bins + 1]
    count: NDArray[np.int64]  # [bins]
    confidence_sum: NDArray[np.float64]  # [bins]
    correct_sum: NDArray[np.float64]  # [bins]

    @property
    def error(self) -> float:
        """ECE = Σ_b (n_b / n) |accuracy_b - confidence_b|, in [0, 1]."""
        return float(np.abs(self.correct_sum - self.confidence_sum).sum() / self.count.sum())

    @property
    def noise_floor(self) -> float:
        """The ECE to expect of a perfectly calibrated predictor with these confidences: see `noise_floor`."""
        counts, sums = self.count.tolist(), self.confidence_sum.tolist()
        deviation = sum(_binomial_mean_absolute_deviation(n, s / n) for n, s in zip(counts, sums, strict=True) if n)
        return deviation / int(self.count.sum())

    def rows(self) -> list[dict[str, float | int | None]]:
        """The reliability diagram's data: see `reliability`."""
        return [
            {
                "low": float(self.edges[b]),
                "high": float(self.edges[b + 1]),
                "confidence": float(self.confidence_sum[b] / n) if n else None,
                "accuracy": float(self.correct_sum[b] / n) if n else None,
                "count": int(n),
            }
            for b, n in enumerate(self.count)
        ]


def confidence_and_correctness(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[n] confidence of the predicted class (the first of equals), and [n] 1.0 where it is the label."""
    predicted = probabilities.argmax(axis=1)
    # Rounding lets a float32 softmax reach 1 + 1e-7, which would fall out of the last bin.
    confidence = np.minimum(probabilities[np.arange(len(labels)), predicted].astype(np.float64), 1.0)
    return confidence, (predicted == labels).astype(np.float64)


def bin_edges(confidence: NDArray[np.float64], bins: int, *, equal_mass: bool = False) -> NDArray[np.float64]:
    """[bins + 1] edges from 0 to 1: equal widths, or at the sample's quantiles.

    Equal confidences always share a bin, so the order of the examples never matters; where many are equal, equal-mass
    bins are therefore only as equal as they can be and some may be empty.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1: 15 is the usual choice")
    if not equal_mass:
        return np.linspace(0, 1, bins + 1)
    inner = np.quantile(confidence, np.arange(1, bins) / bins, method="inverted_cdf")
    return np.concatenate([[0.0], inner, [1.0]])


def bin_index(confidence: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n] index b with edges[b] < confidence <= edges[b + 1]."""
    return np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)


def fill_bins(
    confidence: NDArray[np.float64], correct: NDArray[np.float64], bins: int, *, equal_mass: bool = False
) -> ConfidenceBins:
    """Sort n confidences [n] and correctnesses [n] into bins."""
    edges = bin_edges(confidence, bins, equal_mass=equal_mass)
    index = bin_index(confidence, edges)
    return ConfidenceBins(
        edges,
        np.bincount(index, minlength=bins).astype(np.int64),
        np.bincount(index, weights=confidence, minlength=bins).astype(np.float64),
        np.bincount(index, weights=correct, minlength=bins).astype(np.float64),
    )


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15, *, equal_mass: bool = False
) -> list[dict[str, float | int | None]]:
    """The reliability diagram's data: one dict a bin with low, high, confidence, accuracy (means, in [0, 1]), count.

    An empty bin has count 0 and None for confidence and accuracy.

    Args:
        probabilities: [n, C], rows summing to 1.
        labels: [n] integers in [0, C).
        bins: how many, at least 1.
        equal_mass: edges at the sample's quantiles instead of equal widths.

    Raises:
        ValueError: see `diffmix.evaluation.inputs.check_predictions`; bins < 1.
    """
    return fill_bins(
        *confidence_and_correctness(*check_predictions(probabilities, labels)), bins, equal_mass=equal_mass
    ).rows()


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15, *, equal_mass: bool = False
) -> float:
    """ECE = Σ_b (n_b / n) |accuracy_b - confidence_b| of the top prediction, in [0, 1]; 0 is perfect.

    Biased upwards: even a perfect predictor scores about `noise_floor` on n examples. Arguments as in `reliability`.
    """
    return fill_bins(
        *confidence_and_correctness(*check_predictions(probabilities, labels)), bins, equal_mass=equal_mass
    ).error


def noise_floor(confidence: ArrayLike, bins: int = 15, *, equal_mass: bool = False) -> float:
    """The ECE to expect on n examples of a perfectly calibrated predictor with exactly these confidences [n].

    If calibrated, the number right in bin b is a sum S_b of Bernoulli(c_i), and its share of ECE is E|S_b - E S_b| / n.
    We take S_b as Binomial(n_b, mean c), whose mean absolute deviation de Moivre gave in closed form,

        2 v C(n_b, v) c^v (1 - c)^(n_b - v + 1),   v = floor(n_b c) + 1.

    By Hoeffding (1956) this is never below the exact expectation, and inside a bin of width 1/15 it is within a few
    per cent of it. For full bins it tends to sqrt(2/π) sqrt(n_b c (1 - c)): with confidences spread evenly over [0, 1]
    and 15 bins it is 0.0173 at n = 5,000, 0.0055 at 50,000, 0.0024 at 250,000. A model that is mostly sure, as a good
    one is, has a lower floor.

    Args:
        confidence: [n] confidences of the predicted class, in [0, 1].
        bins: how many, at least 1.
        equal_mass: edges at the sample's quantiles instead of equal widths.

    Raises:
        ValueError: confidence empty, not a vector or outside [0, 1]; bins < 1.
    """
    c = np.asarray(confidence, np.float64)
    if c.ndim != 1 or len(c) == 0:
        raise ValueError(
            f"confidence has shape {list(c.shape)}; it must be [n] with n >= 1: give probabilities.max(axis=1)"
        )
    if not ((c >= 0) & (c <= 1)).all():
        raise ValueError("confidence has a value outside [0, 1]; give probabilities.max(axis=1), after softmax")
    return fill_bins(c, np.zeros_like(c), bins, equal_mass=equal_mass).noise_floor


def _binomial_mean_absolute_deviation(n: int, p: float) -> float:
    """E|X - np| for X ~ Binomial(n, p): de Moivre's formula, in logarithms because C(n, v) overflows."""
    if p <= 0 or p >= 1:
        return 0.0
    v = math.floor(n * p) + 1
    if v > n:  # n p rounded up to n: p is 1 for every purpose
        return 0.0
    log_choose = math.lgamma(n + 1) - math.lgamma(v + 1) - math.lgamma(n - v + 1)
    return 2 * math.exp(math.log(v) + log_choose + v * math.log(p) + (n - v + 1) * math.log1p(-p))
