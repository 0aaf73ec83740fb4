"""What the second paper claims of diffusion attention.

Source: Curry (2025), the README of its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffmix.evaluation.intervals import mean_interval
from diffmix.experiments.claims import Claim, Finding, RowMissingError, Verdict, by_interval

COMPETITIVE = 1.05  # perplexity at most so many times that of softmax
SAME = 0.01  # total variation between two attention rows that are called the same
STUDY = "study-calibration"
FIXED, ADAPTIVE, SOFTMAX = "heat_fixed", "heat_adaptive", "softmax"
_AT = "diffmix study calibration --only num_hidden_layers={}"


def _metrics(result: Mapping[str, Any], layers: int, attention: str) -> dict[str, Mapping[str, Any]]:
    """seed → metrics of the finished cells."""
    cells = {
        cell["axes"]["seed"]: cell["metrics"]
        for cell in result["cells"]
        if cell["state"] == "finished"
        and cell["axes"]["attention"] == attention
        and int(cell["axes"]["num_hidden_layers"]) == layers
    }
    if len(cells) < 2:
        raise RowMissingError(f"{attention} at {layers} layers with two seeds or more")
    return cells


def _relative(
    result: Mapping[str, Any], layers: int, key: str, attention: str = FIXED, base: str = SOFTMAX, base_key: str = ""
) -> tuple[float, float, float]:
    """How much smaller `key` is than the baseline's, as a part of it: mean and interval over seeds, paired."""
    ours, theirs = _metrics(result, layers, attention), _metrics(result, layers, base)
    shared = sorted(ours.keys() & theirs.keys())
    if len(shared) < 2:
        raise RowMissingError(f"{attention} and {base} at {layers} layers with the same two seeds or more")
    return mean_interval([1 - ours[seed][key] / theirs[seed][base_key or key] for seed in shared])


def _percent(reduction: tuple[float, float, float]) -> str:
    mean, low, high = (-100 * part for part in reduction)
    return f"{mean:+.1f} % ({high:+.1f} to {low:+.1f})"


def _mean(cells: Mapping[str, Mapping[str, Any]], key: str) -> float:
    return sum(metrics[key] for metrics in cells.values()) / len(cells)


def _ece_reduction(layers: int, target: float) -> Callable[[Mapping[str, Any]], Finding]:
    def judge(result: Mapping[str, Any]) -> Finding:
        ours, theirs = _metrics(result, layers, FIXED), _metrics(result, layers, SOFTMAX)
        reduction = _relative(result, layers, "test/ece")
        scaled = _relative(result, layers, "test/scaled_ece", SOFTMAX, base_key="test/ece")
        nll, brier = (_relative(result, layers, f"test/{key}") for key in ("nll", "brier"))
        numbers = (
            f"ECE {_mean(theirs, 'test/ece'):.4f} with softmax, {_mean(ours, 'test/ece'):.4f} with the heat kernel: "
            f"{_percent(reduction)} over {len(ours)} seeds, NLL {_percent(nll)}, multiclass Brier {_percent(brier)}; a "
            f"temperature fitted on validation changes the ECE of softmax by {_percent(scaled)}; its noise floor at these "
            f"{_mean(ours, 'test/n'):,.0f} tokens is {_mean(ours, 'test/ece_noise_floor'):.4f}"
        )
        return Finding(by_interval(*reduction[1:], target), numbers)

    return judge


def _with_depth(result: Mapping[str, Any]) -> Finding:
    few, many = (_relative(result, layers, "test/ece") for layers in (4, 12))
    verdict: Verdict = "undecided"
    if many[1] > few[2]:
        verdict = "holds"
    elif many[2] < few[1]:
        verdict = "does not hold"
    return Finding(verdict, f"ECE against softmax {_percent(few)} at 4 layers, {_percent(many)} at 12")


def _competitive(result: Mapping[str, Any]) -> Finding:
    ours, theirs = _metrics(result, 4, FIXED), _metrics(result, 4, SOFTMAX)
    shared = sorted(ours.keys() & theirs.keys())
    mean, low, high = mean_interval([ours[s]["test/perplexity"] / theirs[s]["test/perplexity"] for s in shared])
    verdict: Verdict = "holds" if high <= COMPETITIVE else "does not hold" if low > COMPETITIVE else "undecided"
    numbers = (
        f"perplexity a token {_mean(theirs, 'test/perplexity'):.1f} with softmax, {_mean(ours, 'test/perplexity'):.1f} with the "
        f"heat kernel of fixed time: {mean:.3f} times ({low:.3f} to {high:.3f}) over {len(shared)} seeds, 4 layers"
    )
    return Finding(verdict, numbers)


def _adaptive(result: Mapping[str, Any]) -> Finding:
    likelihood = _relative(result, 4, "test/nll", ADAPTIVE, FIXED)
    calibration = _relative(result, 4, "test/ece", ADAPTIVE, FIXED)
    numbers = f"against the fixed time, the adaptive one has NLL {_percent(likelihood)} and ECE {_percent(calibration)}, 4 layers"
    if likelihood[1] > 0 and calibration[2] < 0:
        return Finding("holds", numbers)
    return Finding("does not hold" if likelihood[2] < 0 or calibration[1] > 0 else "undecided", numbers)


def _equilibrium(result: Mapping[str, Any]) -> Finding:
    end = result["to_softmax"]["end"]
    numbers = (
        f"the greatest total variation to softmax over {result['queries']} queries and {result['keys']} keys is {end:.2g} at "
        f"the end, {result['to_softmax']['start']:.2g} (median) at the start. So it is for every process with detailed balance: "
        "that softmax is its equilibrium says nothing about attention"
    )
    return Finding("holds" if end < 1e-6 else "does not hold", numbers)


def _stopped(result: Mapping[str, Any]) -> Finding:
    nearest, entropy = result["heat_to_nearest"], result["entropy"]
    numbers = (
        f"at its nearest the process is {nearest['median']:.2g} ({nearest['low']:.2g} to {nearest['high']:.2g} for 90 % of "
        f"queries) away in total variation from the heat kernel at t = {result['diffusion_time']}; softmax is "
        f"{result['heat_to_softmax']:.2g} away. On its way the entropy falls from {entropy['start']:.2f} to that of softmax, "
        f"{entropy['softmax']:.2f} nats, and the heat kernel has {entropy['heat']:.2f}: it is softmax at a lower temperature, "
        "sharper than the equilibrium, and no state before it"
    )
    verdict: Verdict = (
        "holds" if nearest["high"] <= SAME else "does not hold" if nearest["median"] > SAME else "undecided"
    )
    return Finding(verdict, numbers)


_PAIRED = "paired over seeds, as a part of softmax's"

CLAIMS = (
    Claim(
        "Softmax attention is the equilibrium of drift-diffusion on similarity scores",
        "holds if a walker that drifts along the scores ends within 1e-6 of softmax, in total variation, for every query",
        "equilibrium",
        "diffmix bench equilibrium",
        _equilibrium,
    ),
    Claim(
        "Diffusion attention is that process, stopped before equilibrium",
        f"holds if at some time the walker is within {SAME} of the heat kernel, in total variation, for 95 % of queries; "
        "does not hold if it never is for half of them, else undecided",
        "equilibrium",
        "diffmix bench equilibrium",
        _stopped,
    ),
    Claim(
        "A fixed t = 0.28 lowers ECE by 6 to 12 % at 4 layers",
        f"{_PAIRED}: holds if the interval lies at 6 % or more, does not hold if below, else undecided",
        STUDY,
        _AT.format(4),
        _ece_reduction(4, 0.06),
    ),
    Claim(
        "ECE is 24 to 46 % lower at 12 layers",
        f"{_PAIRED}: holds if the interval lies at 24 % or more, does not hold if below, else undecided",
        STUDY,
        _AT.format(12),
        _ece_reduction(12, 0.24),
    ),
    Claim(
        "Calibration improves more the deeper the model",
        "holds if the interval of the reduction at 12 layers lies above that at 4, does not hold if below, else undecided",
        STUDY,
        "diffmix study calibration",
        _with_depth,
    ),
    Claim(
        "Competitive perplexity",
        f"{_PAIRED}: holds if perplexity is at most {COMPETITIVE} times that of softmax, by the interval, does not hold if "
        "above, else undecided",
        STUDY,
        _AT.format(4),
        _competitive,
    ),
    Claim(
        "Adaptive t optimises perplexity, not calibration",
        "against the fixed time, paired over seeds: holds if NLL is lower and ECE higher, both by their intervals; does not hold "
        "if one is the other way round, else undecided",
        STUDY,
        _AT.format(4),
        _adaptive,
    ),
)
