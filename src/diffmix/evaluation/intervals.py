"""Intervals: over seeds (Student t), over examples (bootstrap), of a proportion (Wilson). All are two-sided."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # not scipy.stats, which takes a second to import

# Resamples are drawn in blocks of about this many draws: 32 MB of float64 weights, however many examples there are.
_DRAWS_PER_BLOCK = 4_000_000


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent runs with its Student t interval: mean ± t_{n-1} · s / √n.

    Args:
        values: [n], one number a seed.
        confidence: the interval's coverage, in (0, 1).

    Returns:
        (mean, low, high). One value has no spread to judge by: low and high are then NaN.

    Raises:
        ValueError: no value, a value that is not finite, a confidence outside (0, 1).
    """
    x = _finite_vector("values", values)
    _check_confidence(confidence)
    mean = float(x.mean())
    if len(x) == 1:
        return mean, math.nan, math.nan
    half = float(special.stdtrit(len(x) - 1, (1 + confidence) / 2)) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return mean, mean - half, mean + half


def proportion_interval(
    successes: ArrayLike, trials: ArrayLike, *, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's score interval of k successes in n trials, element by element: (low, high), both inside [0, 1].

    Raises:
        ValueError: trials below 1, successes outside [0, trials], a confidence outside (0, 1).
    """
    k, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(trials, np.float64))
    _check_confidence(confidence)
    if not (n >= 1).all():
        raise ValueError(f"trials is {n.min()} at its least; it must be at least 1: leave empty bins out")
    if not ((k >= 0) & (k <= n)).all():
        raise ValueError("successes has a value outside [0, trials]; give counts of the same trials")
    z2 = float(special.ndtri((1 + confidence) / 2)) ** 2
    centre = (k + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * (k * (n - k) / n + z2 / 4)) / (n + z2)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def bootstrap_weights(n: int, resamples: int, *, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Yield `resamples` bootstrap resamples of n examples as blocks [b, n] of how often each example was drawn.

    A statistic that is a sum over examples is then `weights @ contributions`, one product for all resamples.
    """
    generator = np.random.default_rng(seed)
    block = max(1, min(resamples, _DRAWS_PER_BLOCK // n))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        weights = np.empty((rows, n))
        for row in weights:
            row[:] = np.bincount(generator.integers(0, n, n), minlength=n)
        yield weights


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of first - second over the same examples, with its paired bootstrap percentile interval.

    Two models are compared example by example (`first[i]`, `second[i]`: right or wrong, NLL, ...): what both find hard
    cancels, so this interval is narrower than the two models' own intervals suggest. An interval that excludes 0 is a
    difference that this test set can show. For a few seeds use `mean_interval(first - second)` instead.

    Args:
        first, second: [n] per-example scores of the two models, in the same order.
        resamples: bootstrap resamples, at least 1.
        confidence: the interval's coverage, in (0, 1).
        seed: of the resampling.

    Returns:
        (difference, low, high).

    Raises:
        ValueError: empty, different lengths, a value that is not finite, resamples < 1, a confidence outside (0, 1).
    """
    a, b = _finite_vector("first", first), _finite_vector("second", second)
    if len(a) != len(b):
        raise ValueError(
            f"second has {len(b)} values and first has {len(a)}; give both models' scores of the same examples"
        )
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1: 1000 is the usual choice")
    _check_confidence(confidence)
    difference = a - b
    means = np.concatenate([w @ difference for w in bootstrap_weights(len(a), resamples, seed=seed)]) / len(a)
    low, high = percentile_interval(means, confidence=confidence)
    return float(difference.mean()), low, high


def percentile_interval(statistics: NDArray[np.float64], *, confidence: float = 0.95) -> tuple[float, float]:
    """The central `confidence` of bootstrap statistics [resamples] as (low, high)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail])
    return float(low), float(high)


def _finite_vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}; it must be a non-empty list of numbers")
    if not np.isfinite(x).all():
        at = int((~np.isfinite(x)).argmax())
        raise ValueError(f"{name}[{at}] is {x[at]}; it must be finite: leave failed runs out and say so")
    return x


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0 and 1: 0.95 for a 95 % interval")
