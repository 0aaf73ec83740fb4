"""What the third paper claims of attention diffusion, as far as its abstract gives numbers.

Source: Feng et al. (2023).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from diffmix.evaluation.intervals import mean_interval
from diffmix.experiments.claims import Claim, Finding, RowMissingError, Verdict, by_interval
from diffmix.experiments.long_range_tables import COLUMNS

CLASSIFICATION_GAIN, ARENA_GAIN = 0.0094, 0.0230  # accuracy, the mean over tasks
MEMORY_SAVING = 1.67
HOPS, SPARSE = "diffusion", "sparse"


def _accuracies(result: Mapping[str, Any], axis: str) -> dict[str, dict[str, dict[str, float]]]:
    """task → seed → attention → test accuracy of the finished cells, of the seeds that have both attentions."""
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for cell in result["cells"]:
        if cell["state"] == "finished":
            axes = cell["axes"]
            found[axes[axis]][axes["seed"]][axes["attention"]] = cell["metrics"]["test/accuracy"]
    return {
        task: {seed: sides for seed, sides in seeds.items() if sides.keys() >= {HOPS, SPARSE}}
        for task, seeds in found.items()
    }


def _gain(target: float, counts: Callable[[str], bool] = lambda task: True) -> Callable[[Mapping[str, Any]], Finding]:
    """Accuracy over the same pattern without diffusion, the mean over tasks that count, paired over seeds."""
    return lambda result: _judge_gain(result, target, counts)


def _judge_gain(result: Mapping[str, Any], target: float, counts: Callable[[str], bool]) -> Finding:
    # A task of which other attentions alone have run says nothing about hops.
    tasks = {task: seeds for task, seeds in _accuracies(result, "recipe").items() if seeds and counts(task)}
    shared = sorted(set.intersection(*(set(seeds) for seeds in tasks.values()))) if tasks else []
    if len(tasks) < 2 or len(shared) < 2:
        raise RowMissingError("two tasks with five hops and with the same pattern alone, of the same two seeds or more")
    gains = {task: [seeds[seed][HOPS] - seeds[seed][SPARSE] for seed in shared] for task, seeds in tasks.items()}
    mean, low, high = mean_interval([statistics.fmean(each) for each in zip(*gains.values(), strict=True)])
    told = "; ".join(f"`{task}` {_points(*mean_interval(gain))}" for task, gain in gains.items())
    numbers = (
        f"five hops gain {_points(mean, low, high)} of accuracy over the same pattern alone, paired over {len(shared)} seeds and "
        f"averaged over tasks ({told}), trained from scratch{_pattern(result)}. The paper's tasks and baselines were different"
    )
    return Finding(by_interval(low, high, target), numbers)


def _pattern(result: Mapping[str, Any]) -> str:
    """The pattern in words, where all cells share it."""
    keys = ("diffusion_window", "diffusion_global_tokens", "diffusion_random_links")
    shared = [
        f"{key.removeprefix('diffusion_')} {result['resolved'][key]}" for key in keys if key in result["resolved"]
    ]
    return f" ({', '.join(shared)})" if shared else ""


def _points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"


def _farther(result: Mapping[str, Any]) -> Finding:
    tasks = _accuracies(result, "task")
    if not tasks or any(len(seeds) < 2 for seeds in tasks.values()):
        raise RowMissingError("every distance with five hops and with the same pattern alone, of two seeds or more")
    settings = result["resolved"]
    layers, window = settings["num_hidden_layers"], settings["diffusion_window"]
    reach = {SPARSE: layers * window, HOPS: 5 * layers * window}
    between, told = [], []
    for task, seeds in sorted(tasks.items(), key=lambda item: _distance(item[0])):
        distance = _distance(task)
        means = {side: statistics.fmean(sides[side] for sides in seeds.values()) for side in (SPARSE, HOPS)}
        told.append(f"{distance} tokens: {100 * means[SPARSE]:.1f} % without, {100 * means[HOPS]:.1f} % with them")
        if reach[SPARSE] < distance <= reach[HOPS]:
            between.append(mean_interval([sides[HOPS] - sides[SPARSE] for sides in seeds.values()]))
    numbers = (
        f"{layers} layers with a window of {window} reach {reach[SPARSE]} tokens without diffusion, {reach[HOPS]} with five "
        f"hops; accuracy where the answer stands at {'; at '.join(told)}. Guessing gives 10 %"
    )
    verdict: Verdict = "undecided"
    if between and all(low > 0 for _, low, _ in between):
        verdict = "holds"
    elif between and not any(low > 0 for _, low, _ in between):
        verdict = "does not hold"
    return Finding(verdict, numbers)


def _distance(task: str) -> int:
    return int(task.rpartition("-")[2])


def _memory(result: Mapping[str, Any]) -> Finding:
    layer = result["ratios"]["layer of 5 hops with links, less memory than Longformer's"]
    fused = result["ratios"]["memory of fused attention"]
    numbers = (
        f"a layer of five hops, random links among its edges, takes {layer['median']:.3g}x less than Longformer's (pairs "
        f"{layer['low']:.3g} to {layer['high']:.3g}); fused full attention, which stores no weights, takes "
        f"{fused['median']:.3g}x less than five hops, {result['dtype']}, {result['environment'].get('device')}"
    )
    return Finding(by_interval(layer["low"], layer["high"], MEMORY_SAVING), numbers)


CLAIMS = (
    Claim(
        "Diffusion hears farther than its sparse pattern",
        "same layers, same pattern, a symbol at a known distance, paired over seeds: holds if five hops answer better, by the "
        "interval, at every distance within their reach but not the pattern's; does not hold if at none, else undecided",
        "study-hops",
        "diffmix study hops",
        _farther,
    ),
    Claim(
        "+0.94 % on text classification",
        "over the same pattern without diffusion, paired over seeds, the mean over tasks: holds if the interval lies at 0.94 "
        "points or more, does not hold if below, else undecided",
        "study-long_documents",
        "diffmix study long_documents",
        _gain(CLASSIFICATION_GAIN),
    ),
    Claim(
        "+2.30 % on the Long Range Arena",
        "as above, over the arena's published tasks: holds if the interval lies at 2.30 points or more, does not hold if below, "
        "else undecided",
        "study-lra",
        "diffmix study lra",
        _gain(ARENA_GAIN, lambda task: COLUMNS.get(task) is not None),
    ),
    Claim(
        "1.67x less memory (one attention layer)",
        f"forward and backward pass of one attention layer with its projections, against Longformer's, same window, 4,096 "
        "tokens: holds if every pair "
        f"of measurements reaches {MEMORY_SAVING}x, does not hold if none does, else undecided",
        "bench-diffusion",
        "diffmix bench diffusion",
        _memory,
    ),
)
