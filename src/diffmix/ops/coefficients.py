"""The weights θ_0 … θ_K of the hops of attention diffusion, Σ_k θ_k A^k V."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from torch import Tensor


def personalized_pagerank(alpha: float, hops: int) -> tuple[float, ...]:
    """θ_k = α(1-α)^k for k < K, and θ_K = (1-α)^K: those of the power iteration Z_{k+1} = (1-α) A Z_k + α V from Z_0 = V.

    Args:
        alpha: α, the probability to teleport back to the token itself, 0 ≤ α ≤ 1. With 0 only A^K is left.
        hops: K ≥ 0.

    Returns:
        K+1 floats that sum to 1.

    Raises:
        ValueError: α or K out of range.

    Source: Feng et al. (2023), equation 5, after Gasteiger et al. (2019).
    """
    if not (is_number(alpha) and 0 <= alpha <= 1):
        raise ValueError(f"alpha is {alpha!r}; give a number from 0 to 1")
    hops, alpha = _hops(hops), float(alpha)
    return _closed([alpha * (1 - alpha) ** k for k in range(hops)])


def heat(time: float, hops: int) -> tuple[float, ...]:
    """θ_k = e^{-t} t^k / k! for k < K, and the remainder at K: the heat kernel exp(-t(I - A)) cut after K hops.

    Args:
        time: t ≥ 0, finite.
        hops: K ≥ 0.

    Returns:
        K+1 floats that sum to 1.

    Raises:
        ValueError: t or K out of range.

    Source: Kondor & Lafferty (2002); Gasteiger et al. (2019).
    """
    if not (is_number(time) and 0 <= time < math.inf):
        raise ValueError(f"time is {time!r}; give a finite number, 0 or more")
    hops = _hops(hops)
    if time == 0:
        return _closed([1.0] + [0.0] * (hops - 1) if hops else [])
    return _closed([math.exp(k * math.log(time) - time - math.lgamma(k + 1)) for k in range(hops)])


def truncation_error(coefficients: Sequence[float], *, alpha: float | None = None, time: float | None = None) -> float:
    """What the last coefficient holds beyond its own term of the endless series: the mass of all hops after K.

    Σ_{k>K} α(1-α)^k = (1-α)^{K+1} for `alpha`, Σ_{k>K} e^{-t} t^k / k! for `time`. In the truncated operator this mass stands at
    hop K. Two distributions on the hops that differ by ε in this way give, for row-stochastic A, outputs that differ by at most
    2ε max|V|, so this number says what the choice of K can change. (Published: 2(1-α)^K max|V|.)

    Args:
        coefficients: θ of `personalized_pagerank(alpha, K)` or of `heat(time, K)`.
        alpha, time: which of the two; exactly one.

    Raises:
        ValueError: none or both given, or coefficients of something else.
    """
    check_coefficients(coefficients)
    if (alpha is None) == (time is None):
        raise ValueError(f"alpha is {alpha!r} and time is {time!r}; give the one that the coefficients were made of")
    hops = len(coefficients) - 1
    if alpha is not None:
        name, made, own = f"alpha={alpha}", personalized_pagerank(alpha, hops), alpha * (1 - alpha) ** hops
    else:
        assert time is not None
        name, made, own = f"time={time}", heat(time, hops), heat(time, hops + 1)[hops]
    if any(not math.isclose(a, b, abs_tol=1e-9) for a, b in zip(coefficients, made, strict=True)):
        raise ValueError(f"coefficients is {tuple(coefficients)!r}, not those of {name}; give what they were made of")
    return max(coefficients[-1] - own, 0.0)


def check_coefficients(coefficients: Sequence[float]) -> None:
    """At least one finite number; their sum is 1. Raises ValueError."""
    values = tuple(coefficients) if isinstance(coefficients, Iterable) else ()
    if not values or any(not (is_number(value) and math.isfinite(value)) for value in values):
        raise ValueError(
            f"coefficients is {coefficients!r}; give K+1 finite numbers that take no gradient, such as "
            "personalized_pagerank(0.1, 5)"
        )
    if not math.isclose(math.fsum(values), 1.0, abs_tol=1e-6):
        raise ValueError(f"coefficients is {values!r}, which sums to {math.fsum(values):.6g}; divide them by their sum")


def is_number(value: Any) -> bool:
    """Whether it is a number, or a tensor of one that takes no gradient: θ, t and α are not trained here."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.requires_grad
    return isinstance(value, Real) and not isinstance(value, bool)


def _closed(weights: list[float]) -> tuple[float, ...]:
    """The weights and what is missing to 1."""
    return (*weights, max(0.0, 1.0 - math.fsum(weights)))


def _hops(hops: int) -> int:
    try:
        number = -1 if isinstance(hops, bool) else operator.index(hops)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"hops is {hops!r}; give a whole number, 0 or more")
    return number
