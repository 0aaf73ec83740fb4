"""What heat-kernel attention in the place of a pretrained model's own does to its predictions, and the time that suits it.

N tokens of a window, V token ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import optimize
from torch import Tensor

from diffmix.evaluation.intervals import bootstrap_weights, percentile_interval
from diffmix.evaluation.language import language_metrics, score_text, target_scores, total_nll
from diffmix.evaluation.streaming import StreamingCalibration
from diffmix.models.attention import HeatTime, exact_heat_times, swapped_attention
from diffmix.tasks.language import Documents, TokenWindows

FACTORS = (0.5, 0.7, 1.4, 2.0)
_COMPARED = 2  # windows whose logits are compared one by one
_STEPS = 8  # of the search for a time of each layer


def measure_swap(
    model: Any,
    windows: TokenWindows,
    documents: Documents,
    *,
    factors: Sequence[float] = FACTORS,
    times: Mapping[str, HeatTime] | None = None,
    batch_size: int = 4,
    dtype: str = "fp32",
    bins: int = 15,
    bootstrap: int = 1000,
    on_batch: Callable[[int], object] = lambda _: None,
) -> dict[str, Any]:
    """Perplexity and calibration of a causal Hugging Face model with its own attention and with `heat_kernel` at several times.

    At the exact time of a layer, 1 / (2·scaling), softmax(q·k / 2t) is the model's own attention.

    Args:
        model: any causal language model whose attention comes from Hugging Face's registry. It is put back as it was.
        windows, documents: the text, once as tokens and once as it is: see `score_text` and `language_metrics`.
        factors: multiples of the exact time to measure beside it.
        times: further times by name, such as what `fit_heat_time` gives.
        batch_size, dtype, bins, bootstrap, on_batch: as in `score_text` and `language_metrics`.

    Returns:
        `exact_time`: a number, or one for each layer; `max_logit_difference`: between the model's own logits and those at the
        exact time, over the `compared_tokens` first tokens; `rows`: for each attention its name, time, and metrics, to which
        `nll_difference` (with `_low`, `_high`: a bootstrap over documents, paired) adds what it costs against the first row.

    Raises:
        RequestError: a model that cannot be swapped, a factor or a time that is no finite number above 0.
    """
    exact = exact_heat_times(model)
    named: dict[str, HeatTime] = {"heat_kernel, exact time": simplest(exact)}
    named |= {f"heat_kernel, {factor:g} × exact": simplest([factor * time for time in exact]) for factor in factors}
    named |= {f"heat_kernel, {name}": time for name, time in (times or {}).items()}

    def score() -> StreamingCalibration:
        return score_text(model, windows, batch_size=batch_size, dtype=dtype, bins=bins, on_batch=on_batch)

    own = score()
    rows = [{"attention": "own", "time": None, "metrics": language_metrics(own, documents, bootstrap=bootstrap)}]
    for name, time in named.items():
        with swapped_attention(model, time):
            scored = score()
        metrics = language_metrics(scored, documents, bootstrap=bootstrap) | _difference(scored, own, bootstrap)
        rows.append({"attention": name, "time": time, "metrics": metrics})
    compared = range(min(_COMPARED, len(windows)))
    before = _logits(model, windows, compared, dtype)
    with swapped_attention(model, None):
        after = _logits(model, windows, compared, dtype)
    return {
        "exact_time": simplest(exact),
        "max_logit_difference": float((after - before).abs().max()),
        "compared_tokens": len(before),
        "rows": rows,
    }


def fit_heat_time(
    model: Any,
    windows: TokenWindows,
    *,
    per_layer: bool = False,
    largest_factor: float = 4.0,
    tolerance: float = 0.01,
    batch_size: int = 4,
    dtype: str = "fp32",
    on_batch: Callable[[int], object] = lambda _: None,
) -> float | list[float]:
    """The diffusion time at which a causal Hugging Face model predicts a text best, ready for `config.heat_time`.

    It is f · t_l, with t_l = 1 / (2·scaling) the exact time of layer l: f minimises the NLL by Brent's method on ln f. The
    result is never worse on `windows` than the exact times, which it falls back to. With `per_layer`, a factor for each layer
    follows from there by L-BFGS with the gradient of the NLL.

    Args:
        model: as in `measure_swap`; it is put back as it was.
        windows: of validation data, never of what is measured afterwards.
        per_layer: a factor for each layer in place of one.
        largest_factor: f is between its inverse and it.
        tolerance: of ln f.
        batch_size, dtype, on_batch: as in `score_text`.

    Returns:
        One number where all layers have the same time, else a list.
    """
    if not (math.isfinite(largest_factor) and largest_factor > 1):
        raise ValueError(f"largest_factor is {largest_factor}; give a finite number above 1")
    exact = exact_heat_times(model)
    bound = math.log(largest_factor)

    def nll(log_factors: Sequence[float] | float) -> float:
        with swapped_attention(model, _scaled(exact, log_factors)):
            total, count = total_nll(model, windows, batch_size=batch_size, dtype=dtype, on_batch=on_batch)
        return total / count

    found: Any = optimize.minimize_scalar(nll, bounds=(-bound, bound), method="bounded", options={"xatol": tolerance})
    start, least = (float(found.x), float(found.fun)), nll(0.0)
    best = [start[0] if start[1] < least else 0.0] * len(exact)
    if not per_layer:
        return simplest(_scaled(exact, best))
    at_start = min(start[1], least)
    search: Any = optimize.minimize(
        lambda point: _nll_and_slope(model, windows, exact, point, batch_size, dtype, on_batch),
        best,
        jac=True,
        method="L-BFGS-B",
        bounds=[(-bound, bound)] * len(exact),
        options={"maxiter": _STEPS},
    )
    if search.fun < at_start:
        best = [float(value) for value in search.x]
    return simplest(_scaled(exact, best))


def simplest(times: Sequence[float]) -> float | list[float]:
    """One number where all times are equal."""
    return times[0] if len(set(times)) == 1 else list(times)


def _scaled(exact: Sequence[float], log_factors: Sequence[float] | float) -> list[float]:
    factors = np.broadcast_to(np.exp(log_factors), len(exact))
    return [float(factor * time) for factor, time in zip(factors, exact, strict=True)]


def _nll_and_slope(
    model: Any,
    windows: TokenWindows,
    exact: Sequence[float],
    log_factors: np.ndarray,
    batch_size: int,
    dtype: str,
    on_batch: Callable[[int], object],
) -> tuple[float, np.ndarray]:
    """The mean NLL at t_l exp(x_l) and its derivatives by x_l."""
    total, count, slope = 0.0, 0, np.zeros(len(exact))
    needed = {parameter: parameter.requires_grad for parameter in model.parameters()}
    was_training = model.training
    model.eval().requires_grad_(False)  # only the times get a gradient
    try:
        for start in range(0, len(windows), batch_size):
            numbers = range(start, min(start + batch_size, len(windows)))
            point = torch.tensor(log_factors, dtype=torch.float32, device=model.device, requires_grad=True)
            times = [time * factor for time, factor in zip(exact, point.exp().unbind(), strict=True)]
            loss = point.new_zeros(())
            with swapped_attention(model, times):
                for logits, targets, _ in target_scores(
                    model, windows, numbers, batch_size=batch_size, dtype=dtype, on_batch=on_batch, gradients=True
                ):
                    loss = loss + F.cross_entropy(logits, targets, reduction="sum")
                    count += len(targets)
            slope += torch.autograd.grad(loss, point)[0].double().cpu().numpy()
            total += float(loss.detach())
    finally:
        model.train(was_training)
        for parameter, flag in needed.items():
            parameter.requires_grad_(flag)
    return total / count, slope / count


def _logits(model: Any, windows: TokenWindows, numbers: range, dtype: str) -> Tensor:
    """[n, V]."""
    parts = [logits for logits, _, _ in target_scores(model, windows, numbers, batch_size=1, dtype=dtype)]
    return torch.cat(parts)


def _difference(scored: StreamingCalibration, own: StreamingCalibration, bootstrap: int) -> dict[str, float]:
    """Mean NLL of one minus that of the other over the same text, with a bootstrap over its documents."""
    counts, sums = own.document_nll()
    change = scored.document_nll()[1] - sums
    metrics = {"nll_difference": float(change.sum() / counts.sum())}
    if bootstrap and len(counts) > 1:
        drawn = [(w @ change) / (w @ counts) for w in bootstrap_weights(len(counts), bootstrap)]
        low, high = percentile_interval(np.concatenate(drawn))
        metrics |= {"nll_difference_low": low, "nll_difference_high": high}
    return metrics
