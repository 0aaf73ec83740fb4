"""A recipe to be trained in a process of its own, and what its run measured: shared by comparisons, studies and the demo.

A run that is finished is not repeated, one that was interrupted is continued: its folder is named after everything that
decides its result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmix.errors import RequestError, RunError
from diffmix.experiments.results import portable, portable_spec
from diffmix.training.recipe import Recipe, load_recipe

Notice = Callable[[str], None]
Run = Callable[[Sequence[str]], int]
# Inside brackets: a quoted text, which begins where a value can (the ' of it's is no quote), or a bracket.
_IN_BRACKETS = re.compile(r"(?<=[\[{,:\s])(?:\"[^\"]*\"|'[^']*')|[\[\]{}]")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the table to be."""

    spec: str  # as asked for: NAME[:key=value,...]
    recipe_name: str
    overrides: tuple[str, ...]
    recipe: Recipe


def split_spec(spec: str) -> tuple[str, tuple[str, ...]]:
    """`NAME[:key=value,...]` → the name and its overrides; commas inside brackets or quotes belong to a value."""
    name, colon, rest = spec.partition(":")
    if colon and not rest:
        raise RequestError(f"{spec!r} ends in a colon: write NAME:key=value, or NAME alone")
    overrides, start, place = [], 0, 0
    while place < len(rest):
        if rest[place] == ",":
            overrides.append(rest[start:place])
            start = place + 1
        place = _behind(rest, place)
    return name, tuple(part.strip() for part in [*overrides, rest[start:]] if part)


def _behind(text: str, place: int) -> int:
    """Where the bracket or quote that opens at `place` is closed, plus 1; `place` + 1 where none opens, or it is left open."""
    if text[place] in "\"'":
        return max(text.find(text[place], place + 1), place) + 1
    depth = 0
    for match in _IN_BRACKETS.finditer(text, place) if text[place] in "[{" else ():
        depth += (match[0] in "[{") - (match[0] in "]}")
        if not depth:
            return match.end()
    return place + 1


def parse_entry(spec: str) -> Entry:
    """Raises RequestError where the recipe, a key or a value is wrong."""
    name, overrides = split_spec(spec)
    return Entry(spec, name, overrides, load_recipe(name, overrides))


def folder_name(entry: Entry, seeds: int, data: Path | str | None) -> str:
    """The name of a run's folder: readable, and different for whatever gives a different result."""
    decides = [entry.recipe.to_dict(), seeds, resolved_data(data)]
    return name_after(f"{Path(entry.recipe_name).stem}-{'-'.join(entry.overrides)}", decides)


def name_after(words: str, decides: Any) -> str:
    """A file name of readable `words` and a short hash of all that `decides` (plain values)."""
    readable = re.sub(r"[^A-Za-z0-9._=-]+", "-", words).strip("-")
    digest = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=4).hexdigest()
    return f"{readable[:80]}-{digest}"


def resolved_data(data: Path | str | None) -> str | None:
    """`--data` as an absolute path, which does not depend on where a process stands."""
    return None if data is None else str(Path(data).resolve())


def train_entry(
    entry: Entry,
    folder: Path,
    *,
    data: Path | str | None = None,
    seeds: int = 1,
    notice: Notice = print,
    run: Run | None = None,
) -> None:
    """Train an entry in a process of its own, or go on with it, or find it finished. Raises RequestError or RunError."""
    if (folder / "metrics.json").is_file():
        notice(f"{entry.spec} is finished: {folder}")
        return
    code = (run or _run)(train_command(entry.recipe_name, folder, entry.overrides, data=data, seeds=seeds))
    if code:
        kind = RequestError if code == 2 else RunError
        reason = "the system ended it, most likely for lack of memory" if code < 0 else "its own message stands above"
        raise kind(f"training {entry.spec} ended with exit code {code} ({reason}): mend that and repeat the command")


def train_command(
    recipe: str, folder: Path, overrides: Sequence[str] = (), *, data: Path | str | None = None, seeds: int = 1
) -> list[str]:
    """The command that trains a recipe into a folder; where that was begun, the command that goes on with it."""
    command = [sys.executable, "-m", "diffmix", "train", recipe, "--output", str(folder)]
    command += [part for override in overrides for part in ("--set", override)]
    command += [] if data is None else ["--data", str(data)]
    command += [] if seeds == 1 else ["--seeds", str(seeds)]
    command += ["--resume"] if (folder / "recipe.yaml").is_file() else []
    return command


def _run(command: Sequence[str]) -> int:
    return subprocess.run(command).returncode


def read_row(entry: Entry, folder: Path, data: Path | str | None = None) -> dict[str, Any]:
    """What a finished run measured: the metrics, each seed's metrics, its evaluations, recipe and environment."""
    seeds = sorted(folder.glob("seed-*/"), key=lambda path: int(path.name.removeprefix("seed-"))) or [folder]
    runs = [read_run(seed) for seed in seeds]
    return {
        "recipe": portable(portable_spec(entry.spec), data),
        "task": entry.recipe.task,
        "model": entry.recipe.model,
        "mixer": entry.recipe.config.get("mixer", "neighbor") if entry.recipe.model == "diffmix" else None,
        "seeds": len(seeds),
        "metrics": _read(folder / "metrics.json"),
        "per_seed": [run["metrics"] for run in runs],
        "history": [run["history"] for run in runs],
        "resolved": json.loads(portable(json.dumps(entry.recipe.to_dict()), data)),
        "environment": runs[0]["environment"],
    }


def read_run(folder: Path) -> dict[str, Any]:
    """A finished run of one seed: its `metrics` (the numbers), `history` of evaluations and `environment`."""
    environment = folder / "environment.json"
    return {
        "metrics": _numbers(_read(folder / "metrics.json")),
        "history": _history(folder / "metrics.jsonl"),
        "environment": _read(environment) if environment.is_file() else {},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read ({' '.join(str(error).split())}): delete {path.parent} and repeat"
        ) from None


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
