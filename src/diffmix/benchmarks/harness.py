"""Sides in processes of their own, taking turns, compared repetition by repetition.

Machines speed up and slow down; two measurements that stand next to each other share that, so ratios are taken pair by
pair and their median is reported with the lowest and the highest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffmix.errors import RunError

Notice = Callable[[str], None]


def run_worker(spec: Mapping[str, Any]) -> dict[str, Any]:
    """One measurement in a fresh process: what `diffmix.benchmarks.worker` prints. Raises RunError."""
    command = [sys.executable, "-m", "diffmix.benchmarks.worker", json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        if done.returncode == -9:
            reason = "the system ended it, most likely for lack of memory: lower --batch or --tokens"
        raise RunError(f"measuring {spec.get('kind')} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def alternate(
    sides: Mapping[str, Mapping[str, Any]],
    repetitions: int,
    *,
    notice: Notice = print,
    worker: Callable[[Mapping[str, Any]], dict[str, Any]] = run_worker,
) -> dict[str, list[dict[str, Any]]]:
    """Measure every side once a repetition, in turn, each second repetition in reverse order.

    Args:
        sides: the worker's spec of each side.
        repetitions: at least 1.
        notice: told each measurement.
        worker: what measures a spec.

    Returns:
        The measurements of each side, one a repetition.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for repetition in range(repetitions):
        for name in list(sides) if repetition % 2 == 0 else reversed(list(sides)):
            runs[name].append(worker(sides[name]))
            shown = ", ".join(f"{key} {value:,.4g}" for key, value in runs[name][-1].items() if _is_number(value))
            notice(f"{repetition + 1}/{repetitions} {name}: {shown}")
    return runs


def medians(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Each side's median of every number, with the single measurements under `runs`."""
    summary: dict[str, dict[str, Any]] = {}
    for name, measured in runs.items():
        keys = [key for key, value in measured[0].items() if _is_number(value)]
        summary[name] = {key: statistics.median(run[key] for run in measured) for key in keys}
        summary[name]["runs"] = [dict(run) for run in measured]
    return summary


def ratio(
    over: Sequence[Mapping[str, Any]], under: Sequence[Mapping[str, Any]], key: str
) -> dict[str, float | list[float]]:
    """over[key] / under[key], pair by pair: their median, lowest, highest, and the pairs."""
    pairs = [float(a[key]) / float(b[key]) for a, b in zip(over, under, strict=True)]
    return {"median": statistics.median(pairs), "low": min(pairs), "high": max(pairs), "pairs": pairs}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
