"""`diffmix demo`: the main job on data that every installation has, from raw text to a report.

Two classifiers learn which of 48 languages a short name is in: one attention-free, one a softmax transformer of the same
width and depth. Both are trained afresh, each in its own process, and compared.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffmix.errors import RequestError
from diffmix.experiments.cells import Run, parse_entry, read_row, train_entry
from diffmix.experiments.results import write_result

MARKER = ".diffmix-demo"  # in a folder that a demo made, and another may replace
RECIPE = "language_id"
# Of both sides: large batches, as an optimiser step costs much next to a few short names, and what fits in a few minutes.
BRIEF = ("batch_size=256", "epochs=3")
SIDES = {"attention-free": (), "softmax": ("mixer=softmax",)}  # what differs from the recipe
STRINGS = (  # invented names, of the kind that the task holds
    "Königreich der sieben Berge",
    "República de las Montañas",
    "het eiland van de wolken",
    "język rzecznych ludzi",
    "lintujen saarten kieli",
    "kuşlar denizi cumhuriyeti",
    "нова річкова республіка",
    "το νησί των πουλιών",
    "鳥の島ことば",
    "tiếng của đảo chim",
)


def run_demo(
    output: Path,
    *,
    overrides: Sequence[str] = (),
    notice: Callable[[str], None] = print,
    run: Run | None = None,
) -> Path:
    """Train both sides, compare them, predict a few strings and write the report; its path.

    Args:
        output: the folder to make; a folder of an earlier demo is replaced.
        overrides: recipe keys for both sides, as `--set key=value`.
        notice: told what happens.
        run: starts a training command; a process of its own.

    Raises:
        RequestError: output holds something that no demo wrote.
        RunError: a training failed.
    """
    started = time.perf_counter()
    _take(output)
    entries = {
        name: parse_entry(":".join(filter(None, (RECIPE, ",".join([*BRIEF, *keys, *overrides])))))
        for name, keys in SIDES.items()
    }
    notice("Which language is a short name in? 48 languages; names from Unicode CLDR, which Babel carries.")
    rows = []
    for number, (name, entry) in enumerate(entries.items(), start=1):
        notice(f"\n{number} of 2: training {_described(name)}, from nothing, in its own process")
        train_entry(entry, output / name, notice=notice, run=run)
        rows.append(read_row(entry, output / name))
    comparison = {
        "comparison": "demo",
        "command": "diffmix demo",
        "seeds": 1,
        "environment": rows[0]["environment"],
        "rows": rows,
    }
    write_result(output / "comparison.json", comparison)
    from diffmix.experiments.tables import comparison_table

    notice(f"\nBoth, on names of which no translation was in train:\n\n{comparison_table(comparison)}\n")
    notice("The attention-free model on new phrases:")
    predictions = predict(output / "attention-free", STRINGS)
    for text, label, confidence in predictions:
        notice(f"  {text}  →  {label} ({100 * confidence:.0f} %)")
    from diffmix.report.page import write_report

    report = write_report(
        [output / name for name in entries],
        output / "report.html",
        predictions=predictions,
        title="Which language? Attention-free against softmax",
        overwrite=True,
    )
    notice(f"\nDone in {time.perf_counter() - started:.0f} s. Report: {report}")
    return report


def predict(folder: Path, texts: Sequence[str]) -> list[tuple[str, str, float]]:
    """(text, most probable label, its probability) of each text, by a trained run."""
    from diffmix.tasks import Examples
    from diffmix.training.prediction import load_classifier

    classifier = load_classifier(folder)
    probabilities = classifier.probabilities(Examples(np.zeros(len(texts), dtype=np.int64), texts=list(texts)))
    best = probabilities.argmax(axis=1)
    return [
        (text, classifier.label_names[label], float(row[label]))
        for text, label, row in zip(texts, best, probabilities, strict=True)
    ]


def _described(name: str) -> str:
    return "the attention-free classifier" if name == "attention-free" else "a softmax transformer of the same width"


def _take(output: Path) -> None:
    """An empty folder `output` with the marker; an earlier demo there is removed, anything else refused."""
    if output.exists() and not output.is_dir():
        raise RequestError(f"output {output} is a file: give a folder with --output")
    if output.is_dir() and any(output.iterdir()):
        if not (output / MARKER).is_file():
            raise RequestError(f"output {output} holds something that is not a demo: give another folder with --output")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).write_text("Written by diffmix demo, which may replace this folder.\n", encoding="utf-8")
