"""Read the folders that `diffmix train` writes, one seed or several, and refuse what is broken with one line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from diffmix.errors import RequestError


@dataclass(frozen=True)
class Evaluation:
    """What `evaluation.json` holds: where the model is wrong and how well it knows it."""

    labels: tuple[str, ...]  # [C]
    confusion: NDArray[np.int64]  # [C, C], row = the label, column = the prediction; [0, 0] where none was recorded
    reliability: tuple[Mapping[str, Any], ...]  # one a bin: low, high, confidence, accuracy, count
    split: str
    n: int


Times = tuple[tuple[Mapping[str, float], ...], ...]  # layer → head → mean, std, min and max of the diffusion time


@dataclass(frozen=True)
class Run:
    """One row of a comparison: a trained folder, or a folder of seed-0, seed-1, ... with their mean."""

    path: Path
    metrics: Mapping[str, Any]  # flat keys of metrics.json; with several seeds, means and t-intervals
    recipe: Mapping[str, Any]
    histories: tuple[tuple[Mapping[str, Any], ...], ...]  # one a seed: the lines of metrics.jsonl, by step
    evaluation: Evaluation | None  # over all seeds; None where the run recorded none
    environment: Mapping[str, Any]
    seeds: int
    times: tuple[Times, ...] = ()  # one a seed; empty where every diffusion time is fixed

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def task(self) -> str:
        """The recipe's task."""
        return str(self.recipe.get("task", "unknown task"))

    @property
    def model(self) -> str:
        """The recipe's model, with the mixer, and how its time is found, where it is one of ours."""
        model = str(self.recipe.get("model", "diffmix"))
        mixer = self.recipe.get("mixer", "neighbor")
        mode = self.recipe.get("heat_time_mode", "fixed") if mixer == "heat_kernel" else None
        return f"{model} ({mixer}{f', {mode} time' if mode else ''})" if model == "diffmix" else model

    @property
    def split(self) -> str:
        """The split that the run is judged by: test where it was scored, validation otherwise."""
        return "test" if "test/accuracy" in self.metrics else "validation"

    @property
    def is_language_model(self) -> bool:
        """Whether it was judged by perplexity; a classifier otherwise."""
        return any(f"{split}/perplexity" in self.metrics for split in ("test", "validation"))

    @property
    def start_time(self) -> float | None:
        """The diffusion time that learned and adaptive ones started from; None where every time is fixed."""
        if not self.times:
            return None
        if isinstance(self.recipe.get("heat_time"), int | float):
            return float(self.recipe["heat_time"])
        from diffmix.models.diffusion_time import depth_scaled_time

        return depth_scaled_time(len(self.times[0]))

    def metric(self, key: str) -> float | None:
        """A metric as a finite number, or None. Keys that start with / are those of the split judged by."""
        value = self.metrics.get(self.split + key if key.startswith("/") else key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            return None
        return float(value)


def load_run(folder: str | Path) -> Run:
    """Read a run's folder.

    Raises:
        RequestError: no such folder, not a finished run, a file that is missing or cannot be understood.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such run folder; give the folder that `diffmix train --output` wrote")
    metrics = _json(folder / "metrics.json", "the run has not finished; end it with `diffmix train ... --resume`")
    seeds = sorted(folder.glob("seed-*/"), key=lambda seed: (len(seed.name), seed.name)) or [folder]
    first = seeds[0]
    evaluations = [_evaluation(seed / "evaluation.json") for seed in seeds if (seed / "evaluation.json").exists()]
    return Run(
        path=folder,
        metrics=metrics,
        recipe=_recipe(first / "recipe.yaml"),
        histories=tuple(_history(seed / "metrics.jsonl") for seed in seeds if (seed / "metrics.jsonl").exists()),
        evaluation=_pool(evaluations, folder) if evaluations else None,
        environment=_json(first / "environment.json", _AGAIN) if (first / "environment.json").exists() else {},
        seeds=len(seeds),
        times=tuple(_times(seed / "times.json") for seed in seeds if (seed / "times.json").exists()),
    )


_AGAIN = "train the run again, or restore the file"


def _read(path: Path, mend: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RequestError(f"{path.parent} has no {path.name}: {mend}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not UTF-8 text (byte {error.start}); {_AGAIN}") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from None


def _json(path: Path, mend: str) -> dict[str, Any]:
    return _parse(_read(path, mend), str(path))


def _parse(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise RequestError(f"{place}: not JSON ({what}); {_AGAIN}") from None
    if not isinstance(value, dict):
        raise RequestError(f"{place}: holds a {type(value).__name__}, not an object of keys; {_AGAIN}")
    return value


def _recipe(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(_read(path, _AGAIN))
    except yaml.YAMLError as error:
        raise RequestError(f"{path}: not YAML ({' '.join(str(error).split())}); {_AGAIN}") from None
    if not isinstance(value, dict):
        raise RequestError(f"{path}: holds no recipe keys; {_AGAIN}")
    return value


def _history(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The evaluations by step. After a resume a step can stand there twice: the later line is the one that counts."""
    by_step: dict[float, Mapping[str, Any]] = {}
    for number, line in enumerate(_read(path, _AGAIN).splitlines(), start=1):
        if line.strip():
            record = _parse(line, f"{path} line {number}")
            step = record.get("step")
            if isinstance(step, bool) or not isinstance(step, int | float):
                raise RequestError(f"{path} line {number}: has no number under step; {_AGAIN}")
            by_step[step] = record
    return tuple(by_step[step] for step in sorted(by_step))


def _evaluation(path: Path) -> Evaluation:
    record = _json(path, _AGAIN)
    try:
        labels = tuple(str(label) for label in record["labels"])
        confusion = np.array(record["confusion"], dtype=np.int64)
        if not confusion.size:
            confusion = confusion.reshape(0, 0)  # of a language model, or of many classes
        bins = tuple(
            {
                "low": float(row["low"]),
                "high": float(row["high"]),
                "confidence": float(row["confidence"]) if row["count"] else None,
                "accuracy": float(row["accuracy"]) if row["count"] else None,
                "count": int(row["count"]),
            }
            for row in record["reliability"]
        )
        evaluation = Evaluation(labels, confusion, bins, str(record["split"]), int(record["n"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RequestError(
            f"{path}: {type(error).__name__} {error} where an evaluation was expected; {_AGAIN}"
        ) from None
    if confusion.shape not in ((0, 0), (len(labels), len(labels))) or (confusion < 0).any() or not bins:
        raise RequestError(
            f"{path}: confusion has shape {list(confusion.shape)} for {len(labels)} labels and there are {len(bins)} "
            f"reliability bins; it must be square with a row of counts for each label; {_AGAIN}"
        )
    return evaluation


def _times(path: Path) -> Times:
    try:
        times = tuple(
            tuple({key: float(head[key]) for key in ("mean", "std", "min", "max")} for head in heads)
            for heads in _json(path, _AGAIN).values()
        )
        numbers = [head[key] for heads in times for head in heads for key in ("mean", "min", "max")]
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"{path}: {type(error).__name__} {error} where times of heads were expected; {_AGAIN}"
        ) from None
    if not numbers or not all(0 < number < np.inf for number in numbers):
        raise RequestError(f"{path}: holds a time that is not above 0 and finite, or none at all; {_AGAIN}")
    return times


def _pool(evaluations: Iterable[Evaluation], folder: Path) -> Evaluation:
    """Several seeds' evaluations as one: their predictions put together."""
    first, *others = evaluations
    shape = (first.labels, len(first.reliability), first.confusion.shape)
    if any((other.labels, len(other.reliability), other.confusion.shape) != shape for other in others):
        raise RequestError(f"{folder}: its seeds have different labels or bins; report the seeds one by one")
    if not others:
        return first
    everyone = [first, *others]
    bins = []
    for rows in zip(*(each.reliability for each in everyone), strict=True):
        filled = [row for row in rows if row["count"]]
        count = sum(row["count"] for row in filled)
        means = {
            key: sum(row[key] * row["count"] for row in filled) / count if count else None
            for key in ("confidence", "accuracy")
        }
        bins.append({"low": rows[0]["low"], "high": rows[0]["high"], **means, "count": count})
    confusion = np.sum([each.confusion for each in everyone], axis=0)
    return Evaluation(first.labels, confusion, tuple(bins), first.split, first.n)
