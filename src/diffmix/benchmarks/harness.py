"""Sides in processes of their own, taking turns, compared repetition by repetition.

Machines speed up and slow down; two measurements that stand next to each other share that, so ratios are taken pair by
pair and their median is reported with the lowest and the highest. The shorter a turn the more is shared: `together` lets the
processes of all sides live at once and work one step at a time.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from diffmix.benchmarks.turns import TURN
from diffmix.errors import RunError

Notice = Callable[[str], None]
Spec = Mapping[str, Any]
Workers = Callable[[Sequence[Spec]], list[dict[str, Any]]]
_CALM = 0.01  # seconds between turns, in which the threads of the last one fall asleep


class _Process:
    """A worker of one spec."""

    def __init__(self, spec: Spec, stderr: IO[str]):
        command = [sys.executable, "-m", "diffmix.benchmarks.worker", json.dumps(spec)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
        self._process = subprocess.Popen(command, **pipes, text=True, encoding="utf-8")
        self._spec, self._stderr, self._last = spec, stderr, ""

    def reaches_a_turn(self) -> bool:
        """Let it work until it asks for a turn; False: it is finished. Raises RunError where it failed."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.rstrip("\n") == TURN:
                return True
            self._last = line
        code = self._process.wait()
        if code:
            self._stderr.seek(0)
            lines = self._stderr.read().strip().splitlines()
            reason = lines[-1] if lines else f"exit code {code}"
            if code == -9:
                reason = "the system ended it, most likely for lack of memory: lower --batch or --tokens"
            raise RunError(f"measuring {self._spec.get('kind')} failed: {reason}")
        return False

    def work(self) -> None:
        """Give it the turn that it asked for."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died waiting: `reaches_a_turn` says why
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def measured(self) -> dict[str, Any]:
        """What it printed at the end."""
        return json.loads(self._last)

    def end(self) -> None:
        """Stop it where it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def run_workers(specs: Sequence[Spec]) -> list[dict[str, Any]]:
    """Measurements in fresh processes: what each `diffmix.benchmarks.worker` prints. Raises RunError.

    Several live at once and take turns, step by step and in alternating order; only one works at a time.
    """
    with contextlib.ExitStack() as stack:
        processes = []
        for spec in specs:
            stderr = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
            processes.append(_Process({**spec, "turns": len(specs) > 1}, stderr))
            stack.callback(processes[-1].end)
        waiting = [process for process in processes if process.reaches_a_turn()]
        while waiting:
            again = []
            for process in waiting:
                time.sleep(_CALM)
                process.work()
                if process.reaches_a_turn():
                    again.append(process)
            waiting = again[::-1]
        return [process.measured() for process in processes]


def alternate(
    sides: Mapping[str, Spec],
    repetitions: int,
    *,
    notice: Notice = print,
    workers: Workers = run_workers,
    together: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """Measure every side once a repetition, in turn, each second repetition in reverse order.

    Args:
        sides: the worker's spec of each side.
        repetitions: at least 1.
        notice: told each measurement.
        workers: what measures specs.
        together: whether turns are single steps; all sides must make equally many.

    Returns:
        The measurements of each side, one a repetition.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for repetition in range(repetitions):
        order = list(sides) if repetition % 2 == 0 else list(sides)[::-1]
        for names in [order] if together else [[name] for name in order]:
            for name, measured in zip(names, workers([sides[name] for name in names]), strict=True):
                runs[name].append(measured)
                numbers = {key: min(_numbers(value)) for key, value in measured.items() if _numbers(value)}
                shown = ", ".join(f"{key} {value:,.4g}" for key, value in numbers.items())
                notice(f"{repetition + 1}/{repetitions} {name}: {shown}")
    return runs


def medians(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Each side's median of every number (of a list of steps, the least), with the single measurements under `runs`."""
    summary: dict[str, dict[str, Any]] = {}
    for name, measured in runs.items():
        keys = [key for key, value in measured[0].items() if _numbers(value)]
        summary[name] = {key: _median([min(_numbers(run[key])) for run in measured]) for key in keys}
        summary[name]["runs"] = [dict(run) for run in measured]
    return summary


def ratio(
    over: Sequence[Mapping[str, Any]], under: Sequence[Mapping[str, Any]], key: str
) -> dict[str, float | list[float]]:
    """over[key] / under[key], pair by pair: their median, lowest, highest, and the pairs.

    Where a measurement is a list of steps that were measured together, a pair is the median of the ratios of its steps.
    """
    pairs = [
        statistics.median(a / b for a, b in zip(_numbers(mine[key]), _numbers(other[key]), strict=True))
        for mine, other in zip(over, under, strict=True)
    ]
    return {"median": statistics.median(pairs), "low": min(pairs), "high": max(pairs), "pairs": pairs}


def _median(values: Sequence[float]) -> float:
    """The median; of whole numbers, such as bytes, a whole one."""
    median = statistics.median(values)
    return round(median) if all(isinstance(value, int) for value in values) else median


def _numbers(value: Any) -> list[float]:
    """A number, or a list of them, as a list; empty for anything else."""
    given = value if isinstance(value, list) else [value]
    numbers: list[float] = [each for each in given if isinstance(each, int | float) and not isinstance(each, bool)]
    return numbers if len(numbers) == len(given) else []
