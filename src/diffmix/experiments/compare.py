"""The trade-off table: recipes trained one after the other, each in its own process, by one harness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffmix.errors import RequestError
from diffmix.experiments.cells import Notice, Run, folder_name, parse_entry, read_row, train_entry
from diffmix.experiments.results import claim_result, command_line, portable_spec, write_result


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
