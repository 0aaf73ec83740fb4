"""What the second paper claims of diffusion attention.

Source: Curry (2025), the README of its code.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from diffmix.evaluation.intervals import mean_interval
from diffmix.experiments.claims import Claim, Finding, RowMissingError, Verdict, by_interval

COMPETITIVE = 1.05  # perplexity at most so many times that of softmax
USEFUL = 0.06  # reduction of the ECE that the paper calls one
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


def _pairs(
    result: Mapping[str, Any], layers: int, key: str, attention: str = FIXED, base: str = SOFTMAX, base_key: str = ""
) -> list[tuple[float, float]]:
    """`key` of both, of the seeds that both have."""
    ours, theirs = _metrics(result, layers, attention), _metrics(result, layers, base)
    shared = sorted(ours.keys() & theirs.keys())
    pairs = [(ours[seed].get(key), theirs[seed].get(base_key or key)) for seed in shared]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    if len(known) < 2:
        raise RowMissingError(f"{attention} and {base} at {layers} layers with {key} of the same two seeds or more")
    return known


def _relative(*args: Any, **kwargs: Any) -> tuple[float, float, float]:
    """How much smaller `key` of `_pairs` is than the baseline's, as a part of it: mean and interval over seeds."""
    return mean_interval([1 - one / other for one, other in _pairs(*args, **kwargs)])


def _percent(reduction: tuple[float, float, float]) -> str:
    mean, low, high = (-100 * part for part in reduction)
    return f"{mean:+.1f} % ({high:+.1f} to {low:+.1f})"


def _ece_reduction(layers: int, target: float) -> Callable[[Mapping[str, Any]], Finding]:
    def judge(result: Mapping[str, Any]) -> Finding:
        pairs = _pairs(result, layers, "test/ece")
        ours, theirs = (statistics.fmean(side) for side in zip(*pairs, strict=True))
        floor = statistics.fmean(one for one, _ in _pairs(result, layers, "test/ece_noise_floor"))
        tokens = statistics.fmean(one for one, _ in _pairs(result, layers, "test/n"))
        reduction, nll, brier = (_relative(result, layers, f"test/{key}") for key in ("ece", "nll", "brier"))
        scaled = _relative(result, layers, "test/scaled_ece", SOFTMAX, base_key="test/ece")
        numbers = (
            f"ECE {theirs:.4f} with softmax, {ours:.4f} with the heat kernel: {_percent(reduction)} over {len(pairs)} seeds, NLL "
            f"{_percent(nll)}, multiclass Brier {_percent(brier)}; a temperature fitted on validation changes the ECE of "
            f"softmax by {_percent(scaled)}; the noise floor at {tokens:,.0f} tokens is {floor:.4f}. {_scale(result)}"
        )
        verdict = by_interval(*reduction[1:], target)
        if verdict == "holds" and (abs(ours - theirs) < floor or nll[2] < 0):
            return Finding(
                "undecided", f"{numbers}: the difference is below the floor, or bought with a worse likelihood"
            )
        return Finding(verdict, numbers)

    return judge


def _scale(result: Mapping[str, Any]) -> str:
    """What was trained, in words: the paper's models are wider and have another tokenizer."""
    resolved = result.get("resolved", {})
    tokens = resolved.get("max_tokens")
    much = "all tokens of train" if tokens is None else f"{tokens:,} tokens of train"
    return f"Width {resolved.get('hidden_size')}, {resolved.get('tokenizer')}, {much}, {resolved.get('epochs')} epochs"


def _with_depth(result: Mapping[str, Any]) -> Finding:
    few, many = (_relative(result, layers, "test/ece") for layers in (4, 12))
    verdict: Verdict = "undecided"
    if many[1] > few[2]:
        verdict = "holds"
    elif many[2] < few[1]:
        verdict = "does not hold"
    return Finding(verdict, f"ECE against softmax {_percent(few)} at 4 layers, {_percent(many)} at 12")


def _competitive(result: Mapping[str, Any]) -> Finding:
    pairs = _pairs(result, 4, "test/perplexity")
    mean, low, high = mean_interval([one / other for one, other in pairs])
    verdict: Verdict = "holds" if high <= COMPETITIVE else "does not hold" if low > COMPETITIVE else "undecided"
    ours, theirs = (statistics.fmean(side) for side in zip(*pairs, strict=True))
    numbers = (
        f"perplexity a token {theirs:.1f} with softmax, {ours:.1f} with the heat kernel of fixed time: {mean:.3f} times "
        f"({low:.3f} to {high:.3f}) over {len(pairs)} seeds, 4 layers. {_scale(result)}"
    )
    return Finding(verdict, numbers)


def _adaptive(result: Mapping[str, Any]) -> Finding:
    likelihood = _relative(result, 4, "test/nll", ADAPTIVE, FIXED)
    calibration = _relative(result, 4, "test/ece", ADAPTIVE, FIXED)
    against_softmax = _relative(result, 4, "test/nll", ADAPTIVE, SOFTMAX)
    numbers = (
        f"against the fixed time, the adaptive time changes NLL by {_percent(likelihood)} and ECE by {_percent(calibration)}, "
        f"4 layers; against softmax it changes NLL by {_percent(against_softmax)}"
    )
    if likelihood[1] > 0 and calibration[2] < USEFUL:
        return Finding("holds", numbers)
    return Finding("does not hold" if likelihood[2] < 0 or calibration[1] > 0 else "undecided", numbers)


def _equilibrium(result: Mapping[str, Any]) -> Finding:
    ends = {start: distances["end"] for start, distances in result["to_softmax"].items()}
    numbers = (
        f"the greatest total variation to softmax over {result['queries']} queries and {result['keys']} keys is "
        f"{max(ends.values()):.2g} at the end. The rates were chosen to make it so, which any distribution allows: that "
        "softmax is the equilibrium of some process says nothing about attention"
    )
    return Finding("holds" if max(ends.values()) < 1e-6 else "does not hold", numbers)


def _stopped(form: str) -> Callable[[Mapping[str, Any]], Finding]:
    def judge(result: Mapping[str, Any]) -> Finding:
        cases, entropy = result["heat_to_nearest"][form], result["entropy"]
        best = min(cases, key=lambda start: cases[start]["median"])
        told = "; ".join(
            f"started {_STARTS[start]}, the walker comes within {case['median']:.2g} of it (median; {case['low']:.2g} to "
            f"{case['high']:.2g} for 90 % of queries), and its entropy "
            f"goes from {entropy[f'start, {start}']:.2f} to that of softmax, "
            f"{entropy['softmax']:.2f} nats"
            for start, case in cases.items()
        )
        numbers = (
            f"the heat kernel at t = {result['diffusion_time']} has an entropy of {entropy[form]:.2f} nats and a median total "
            f"variation of {result['heat_to_softmax'][form]:.2g} to softmax. {told[0].upper() + told[1:]}"
        )
        if cases[best]["high"] <= SAME:
            return Finding("holds", numbers)
        return Finding("does not hold" if cases[best]["median"] > SAME else "undecided", numbers)

    return judge


_STARTS = {"even": "evenly over the keys", "nearest": "at the most similar key"}
_STOPPED = (
    f"the walker starts evenly or at the most similar key, whichever comes nearer: holds if at some time it is within {SAME} "
    "of the heat kernel, in total variation, for 95 % of queries; does not hold if it never is for half of them, else undecided"
)
_PAIRED = "paired over seeds, relative to softmax"
_AND = ", the difference exceeds the noise floor and NLL is not significantly worse"

CLAIMS = (
    Claim(
        "Softmax attention is the equilibrium of drift-diffusion on similarity scores",
        "holds if a walker that drifts along the scores, at rates in detailed balance with softmax, ends within 1e-6 of it, in "
        "total variation, for every query and both starts",
        "equilibrium",
        "diffmix bench equilibrium",
        _equilibrium,
    ),
    Claim(
        "Diffusion attention (`dot`, the default) is that process, stopped before equilibrium",
        _STOPPED,
        "equilibrium",
        "diffmix bench equilibrium",
        _stopped("dot"),
    ),
    Claim(
        "Diffusion attention (`normalized`) is that process, stopped before equilibrium",
        _STOPPED,
        "equilibrium",
        "diffmix bench equilibrium",
        _stopped("normalized"),
    ),
    Claim(
        "A fixed t = 0.28 lowers ECE by 6 to 12 % at 4 layers",
        f"{_PAIRED}: holds if the interval lies at 6 % or more{_AND}, does not hold if below, else undecided",
        STUDY,
        _AT.format(4),
        _ece_reduction(4, 0.06),
    ),
    Claim(
        "ECE is 24 to 46 % lower at 12 layers",
        f"{_PAIRED}: holds if the interval lies at 24 % or more{_AND}, does not hold if below, else undecided",
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
        f"against the fixed time, paired over seeds: holds if NLL is lower by its interval and that of the ECE excludes a "
        f"reduction of {100 * USEFUL:.0f} %; does not hold if NLL is higher or ECE lower by theirs, else undecided",
        STUDY,
        _AT.format(4),
        _adaptive,
    ),
)
