"""The trade-off table: recipes trained one after the other, each in its own process, by one harness.

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
from diffmix.experiments.results import claim_result, command_line, portable, portable_spec, write_result
from diffmix.training.recipe import Recipe, load_recipe

Notice = Callable[[str], None]
Run = Callable[[Sequence[str]], int]


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
    overrides = re.findall(r"(?:\[[^\]]*\]|\{[^}]*\}|\"[^\"]*\"|'[^']*'|[^,])+", rest)
    return name, tuple(part.strip() for part in overrides)


def parse_entry(spec: str) -> Entry:
    """Raises RequestError where the recipe, a key or a value is wrong."""
    name, overrides = split_spec(spec)
    return Entry(spec, name, overrides, load_recipe(name, overrides))


def compare(
    specs: Sequence[str],
    *,
    data: Path | str | None = None,
    output: Path | None = None,
    runs: Path | str = "runs/compare",
    seeds: int = 1,
    force: bool = False,
    notice: Notice = print,
    run: Run | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Train and measure each recipe and write the comparison.

    Args:
        specs: recipes, NAME[:key=value,...].
        data: as for `diffmix train`.
        output: the result file; None: results/compare-TASK.json.
        runs: where the runs' folders are kept.
        seeds: of each recipe; from 2 on intervals are over seeds, of one run they are over test rows.
        force: replace a result that is there.
        notice: told what is trained.
        run: starts a command and returns its exit code; a process of its own.

    Returns:
        The result's file and content.

    Raises:
        RequestError: a wrong recipe, key or option, a result that exists.
        RunError: a training failed. What is finished is kept; the same command goes on from there.
    """
    if not specs:
        raise RequestError("no recipe given: name one or more, as in diffmix compare ag_news ag_news:mixer=softmax")
    if seeds < 1:
        raise RequestError(f"seeds is {seeds}: give 1 or more")
    entries = [parse_entry(spec) for spec in specs]
    repeated = next((spec for spec in specs if list(specs).count(spec) > 1), None)
    if repeated:
        raise RequestError(f"{repeated} is named twice: name each recipe once")
    tasks = "-".join(dict.fromkeys(entry.recipe.task for entry in entries))
    output = Path("results") / f"compare-{tasks}.json" if output is None else output
    claim_result(output, force=force)
    rows = []
    for number, entry in enumerate(entries, start=1):
        folder = Path(runs) / folder_name(entry, seeds, data)
        notice(f"{number} of {len(entries)}: {entry.spec} → {folder}")
        train_entry(entry, folder, data=data, seeds=seeds, notice=notice, run=run)
        rows.append(read_row(entry, folder, data))
    result = {
        "comparison": output.stem.removeprefix("compare-"),
        "command": command_line("compare", *map(portable_spec, specs), options={"seeds": seeds}, defaults={"seeds": 1}),
        "seeds": seeds,
        "environment": rows[0]["environment"],
        "rows": rows,
    }
    write_result(output, result, data=data)
    return output, result


def folder_name(entry: Entry, seeds: int, data: Path | str | None) -> str:
    """The name of a run's folder: readable, and different for whatever gives a different result."""
    decides = json.dumps(
        [entry.recipe.to_dict(), seeds, None if data is None else str(Path(data).resolve())], sort_keys=True
    )
    readable = re.sub(r"[^A-Za-z0-9._=-]+", "-", f"{Path(entry.recipe_name).stem}-{'-'.join(entry.overrides)}").strip(
        "-"
    )
    return f"{readable[:80]}-{hashlib.blake2b(decides.encode(), digest_size=4).hexdigest()}"


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
    command = [sys.executable, "-m", "diffmix", "train", entry.recipe_name, "--output", str(folder)]
    command += [part for override in entry.overrides for part in ("--set", override)]
    command += [] if data is None else ["--data", str(data)]
    command += [] if seeds == 1 else ["--seeds", str(seeds)]
    command += ["--resume"] if (folder / "recipe.yaml").is_file() else []
    code = (run or _run)(command)
    if code:
        kind = RequestError if code == 2 else RunError
        reason = "the system ended it, most likely for lack of memory" if code < 0 else "its own message stands above"
        raise kind(f"training {entry.spec} ended with exit code {code} ({reason}): mend that and repeat the command")


def _run(command: Sequence[str]) -> int:
    return subprocess.run(command).returncode


def read_row(entry: Entry, folder: Path, data: Path | str | None = None) -> dict[str, Any]:
    """What a finished run measured: the metrics, each seed's metrics, its evaluations, recipe and environment."""
    seeds = sorted(folder.glob("seed-*/"), key=lambda path: int(path.name.removeprefix("seed-"))) or [folder]
    environment = seeds[0] / "environment.json"
    return {
        "recipe": portable(portable_spec(entry.spec), data),
        "task": entry.recipe.task,
        "model": entry.recipe.model,
        "mixer": entry.recipe.config.get("mixer", "neighbor") if entry.recipe.model == "diffmix" else None,
        "seeds": len(seeds),
        "metrics": _read(folder / "metrics.json"),
        "per_seed": [_numbers(_read(seed / "metrics.json")) for seed in seeds],
        "history": [_history(seed / "metrics.jsonl") for seed in seeds],
        "resolved": json.loads(portable(json.dumps(entry.recipe.to_dict()), data)),
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
