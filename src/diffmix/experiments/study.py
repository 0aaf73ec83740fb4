"""Running a study: a grid of recipes, each trained once in its own process, and the summary over seeds.

A cell's folder is named after its place in the grid and a hash of its resolved recipe, and `metrics.json` there says that it
is finished. A cell that the study's result file already holds, trained with the same recipe, is finished too: so a study goes on
on another machine from its result alone. A second start trains what is missing and gives the same summary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from diffmix.errors import RequestError, RunError
from diffmix.experiments.cells import Notice, name_after, read_run, resolved_data
from diffmix.experiments.results import read_result, write_result
from diffmix.experiments.study_engines import Job, complaint, find_engine, is_held, terminated_as_interrupted
from diffmix.experiments.study_file import Cell, Study, select_cells
from diffmix.experiments.study_summary import near_metric, study_result
from diffmix.training.checkpoints import write_atomically
from diffmix.training.recipe import Recipe, recipe_from_mapping


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a start of a study leaves: its result, where that was written, and the cells that failed, with the reason."""

    result: dict[str, Any]
    path: Path | None  # None: no cell is finished yet
    failed: tuple[tuple[str, str], ...]


def run_study(
    study: Study,
    *,
    data: Path | str | None = None,
    output: Path = Path("results"),
    runs: Path = Path("runs/study"),
    only: Sequence[str] = (),
    engine: str = "local",
    jobs: int | None = None,
    notice: Notice = print,
) -> Finished:
    """Train the cells that are not finished and write `study-NAME.json`, over all finished cells of the study.

    Args:
        study: from `load_study`.
        data: as for `diffmix train`.
        output: folder of the result, or the result's own `.json` file.
        runs: where the cells' folders are kept, under the study's name.
        only: `axis=value` choices; other cells are not trained.
        engine: `local` or `ray`.
        jobs: cells at a time; None: one, with Ray what the cluster holds.
        notice: told what happens.

    Raises:
        RequestError: a wrong choice, engine or output, a folder that holds another recipe. Nothing was trained.
        RunError: interrupted, or a finished cell cannot be read. The same call goes on.
    """
    if jobs is not None and jobs < 1:
        raise RequestError(f"--jobs is {jobs}: give 1 or more")
    train = find_engine(engine)
    chosen = select_cells(study, only)
    path = claim_study_result(study, output, data)
    recorded = recorded_cells(study, path, data)
    states = list_cells(study, data=data, runs=runs, only=only, recorded=recorded)
    todo = [
        _job(cell, folder, data)
        for cell, (state, _, folder) in zip(chosen, states, strict=True)
        if state not in ("finished", "recorded")
    ]
    finished, failed = len(chosen) - len(todo), []
    taken = sum(state == "recorded" for state, *_ in states)
    notice(f"{study.name}: {len(chosen)} cells, {finished - taken} of them finished, in {Path(runs) / study.name}")
    if taken:
        notice(f"{taken} are recorded in {path}; another --output trains them anew")
    try:
        with (
            terminated_as_interrupted(),
            tqdm(total=len(chosen), initial=finished, unit="cell", disable=None, file=sys.stderr) as bar,
            contextlib.closing(train(todo, jobs, notice)) as ended,
        ):
            for job, code in ended if todo else ():
                bar.update(1)
                if code:
                    failed.append((job.label, complaint(job.log, code)))
                    notice(f"{job.label} failed: {failed[-1][1]}")
                else:
                    finished += 1
                    notice(f"{job.label} is finished ({finished} of {len(chosen)})")
    except KeyboardInterrupt:
        raise RunError(
            f"interrupted: {finished} of {len(chosen)} cells are finished; the same command goes on from there"
        ) from None
    result = collect(study, runs, data, recorded)
    written = any(cell["state"] == "finished" for cell in result["cells"])
    if written:
        write_result(path, result, data=data)
    return Finished(result, path if written else None, tuple(failed))


def collect(
    study: Study,
    runs: Path,
    data: Path | str | None = None,
    recorded: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The result of a study as far as its cells are finished, or else among the `recorded_cells`."""
    finished = dict(recorded or {})
    for cell in study.cells:
        folder = cell_folder(study, cell, runs, data)
        if cell_state(cell.recipe, folder) == "finished":
            finished[cell.label] = read_run(folder)
    return study_result(study, finished, own_data=data is not None)


def recorded_cells(study: Study, path: Path, data: Path | str | None = None) -> dict[str, dict[str, Any]]:
    """Label → what `read_run` gave, of the cells in the result `path` whose recipe is still that of the study.

    With `data` none: a result does not say which data they were. Raises RequestError where the file is damaged.
    """
    if data is not None or not path.exists():
        return {}
    result = read_result(path)
    found = {}
    try:
        entries = {json.dumps(entry["axes"], sort_keys=True): entry for entry in result["cells"]}
        for cell in study.cells:
            entry = entries.get(json.dumps(cell.values, sort_keys=True))
            if entry is None or entry["state"] != "finished":
                continue
            if _deciding({**result["resolved"], **entry["resolved"]}) == _deciding(cell.recipe.to_dict()):
                environment = {**result["environment"], **entry["environment"]}
                run = {"metrics": {**entry["metrics"]}, "history": [*entry["history"]]}
                found[cell.label] = {**run, "environment": environment}
    except (KeyError, TypeError, AttributeError):
        raise RequestError(f"result {path} is damaged: move it away, or give another --output") from None
    return found


def unknown_metrics(study: Study, result: Mapping[str, Any]) -> str | None:
    """One line about metrics of the summary that no finished cell has; None: there are none."""
    known = dict.fromkeys(key for cell in result["cells"] for key in cell.get("metrics", {}))
    absent = [metric for metric in study.metrics if metric not in known]
    if not known or not absent:
        return None
    hints = "; ".join(f"{metric!r}{near_metric(metric, known)}" for metric in absent)
    return f"study {study.source}: no finished cell has the metric {hints}. Mend metrics and start again: no cell is repeated"


def cell_folder(study: Study, cell: Cell, runs: Path | str, data: Path | str | None) -> Path:
    """The folder of a cell: readable, and another one for whatever gives another result."""
    decides = _deciding(cell.recipe.to_dict())
    words = "-".join(f"{axis}={value}" for axis, value in cell.values.items())
    return Path(runs) / study.name / name_after(words, [decides, resolved_data(data)])


def _deciding(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe that decide its result, without those at their defaults: a key that a later version adds does not
    orphan what is trained."""
    usual = Recipe(name="").to_dict()
    return {key: value for key, value in recipe.items() if key != "name" and (key not in usual or usual[key] != value)}


def cell_state(recipe: Recipe, folder: Path) -> str:
    """`new`, `unfinished` or `finished`. Raises RequestError where the folder holds a run of another recipe."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        return "new"
    mend = f"delete {folder}, or give another folder with --runs"
    try:
        recorded = yaml.safe_load(file.read_text(encoding="utf-8"))
        before = recipe_from_mapping(recorded, name="recorded").to_dict()
    except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError):
        raise RequestError(f"{file} is damaged: {mend}") from None
    except RequestError as error:
        raise RequestError(f"{file} is of another version ({error}): {mend}") from None
    now = recipe.to_dict()
    for key in {**before, **now}:
        if key != "name" and before.get(key) != now.get(key):
            raise RequestError(
                f"{folder} holds a run with {key}={before.get(key)!r}, the study has {key}={now.get(key)!r}: {mend}"
            )
    return "finished" if (folder / "metrics.json").is_file() else "unfinished"


def list_cells(
    study: Study,
    *,
    data: Path | str | None = None,
    runs: Path = Path("runs/study"),
    only: Sequence[str] = (),
    recorded: Mapping[str, Any] | None = None,
) -> list[tuple[str, str, Path]]:
    """Each chosen cell's state, label and folder.

    The states: `new`, `unfinished`, `running`, `finished`, and `recorded` for one that is not finished in its folder but stands
    among the `recorded_cells`.
    """
    rows = []
    for cell in select_cells(study, only):
        folder = cell_folder(study, cell, runs, data)
        state = cell_state(cell.recipe, folder)
        if state != "finished" and cell.label in (recorded or {}):
            state = "recorded"
        elif state != "finished" and is_held(_beside(folder, ".log")):
            state = "running"
        rows.append((state, cell.label, folder))
    return rows


def claim_study_result(study: Study, output: Path, data: Path | str | None = None) -> Path:
    """The file that the result goes to; an earlier result of this very study there is replaced.

    Raises RequestError where something else stands there.
    """
    path = output if output.suffix == ".json" else output / f"study-{study.name}.json"
    mend = "give another --output, or move it away"
    if path.is_dir() or (output.exists() and not output.is_dir() and path != output):
        raise RequestError(f"output {output} is in the way: give a folder, or a file that ends in .json")
    if path.exists():
        before = read_result(path)
        if before.get("study") != study.name:
            raise RequestError(f"output {path} is no result of the study {study.name}: {mend}")
        if before.get("overrides", []) != list(study.overrides):
            was = " ".join(f"--set {override}" for override in before.get("overrides", [])) or "no --set"
            raise RequestError(f"output {path} holds the study with {was}: {mend}")
        if before.get("own_data", False) != (data is not None):
            was = "without --data" if data is not None else "with --data"
            raise RequestError(f"output {path} holds the study {was}: {mend}")
    return path


def _job(cell: Cell, folder: Path, data: Path | str | None) -> Job:
    """Write down the cell's resolved recipe: what is trained does not change if a file is edited meanwhile."""
    recipe = _beside(folder, ".yaml").absolute()
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(recipe, cell.recipe.to_yaml())
    log = _beside(folder, ".log").absolute()
    data_folder = os.environ.get("DIFFMIX_DATA")
    return Job(cell.label, recipe, folder.absolute(), log, resolved_data(data), str(Path.cwd()), data_folder)


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)
