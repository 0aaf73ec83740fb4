"""One self-contained HTML page about one or several finished runs: no script, no network, light and dark."""

from __future__ import annotations

import html
import importlib.resources
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

import diffmix
from diffmix.errors import RequestError, RunError
from diffmix.report import figures
from diffmix.report.runs import Evaluation, Run, load_run
from diffmix.report.text import short_count, short_size, shown

_MISSING = '<span class="note">–</span>'


class Prediction(NamedTuple):
    """One live prediction to show."""

    text: str
    label: str
    confidence: float  # in [0, 1]


def write_report(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    predictions: Sequence[Prediction | tuple[str, str, float]] = (),
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one HTML page that compares finished runs and shows each one's curves, mistakes and calibration.

    Args:
        runs: folders written by `diffmix train`, with one seed or several.
        output: the file to write; folders on the way are made.
        predictions: (text, label, confidence) triples to show, made by the first run's model.
        title: the page's heading; the tasks' names by default.
        overwrite: replace `output` if it exists.

    Returns:
        The file written.

    Raises:
        RequestError: no run, a run that is missing or broken, an output that exists or is a folder.
        RunError: the file could not be written.
    """
    output = Path(output)
    if not runs:
        raise RequestError("runs is empty; give at least one folder that `diffmix train --output` wrote")
    if output.is_dir():
        raise RequestError(f"{output} is a folder; give the HTML file to write, as in {output / 'report.html'}")
    if output.exists() and not overwrite:
        raise RequestError(f"{output} exists; give another --output, or --force to replace it")
    page = render([load_run(run) for run in runs], predictions=[Prediction(*each) for each in predictions], title=title)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and then moved: whatever happens, the old file or the new one is there, whole.
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=output.parent, prefix=f".{output.name}.", delete=False
        ) as file:
            try:
                file.write(page)
                file.close()
                os.chmod(file.name, 0o644)
                os.replace(file.name, output)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise RunError(
            f"{output}: the report could not be written ({error.strerror}); free space or give another --output"
        ) from None
    return output


def render(runs: Sequence[Run], *, predictions: Sequence[Prediction] = (), title: str | None = None) -> str:
    """The page as text."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    heading = title or ", ".join(tasks)
    models = ", ".join(dict.fromkeys(run.model for run in runs))
    about = f"{_plural(len(runs), 'run')} · {models} · diffmix {diffmix.__version__}"
    parts = [
        f'<header><h1>{_text(heading)}</h1><p class="note">{_text(about)}</p></header><main>',
        _comparison(runs, tasks),
    ]
    if len(runs) > 1:
        parts.append(_trade_off(runs))
    if predictions:
        parts.append(_predictions(predictions, runs[0]))
    parts += [_run_section(number, run) for number, run in enumerate(runs, start=1)]
    style = importlib.resources.files("diffmix.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(heading)} · diffmix</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


class _Column(NamedTuple):
    heading: str
    key: str  # of metrics.json; a leading / stands for the split the run is judged by
    form: Callable[[float], str]
    better: Callable[[Sequence[float]], float]  # which of several is best
    interval: bool = False


_COLUMNS = (
    _Column("Accuracy", "/accuracy", lambda x: f"{100 * x:.2f} %", max, interval=True),
    _Column("Macro F1", "/macro_f1", lambda x: f"{100 * x:.2f} %", max, interval=True),
    _Column("NLL", "/nll", lambda x: f"{x:.4f}", min, interval=True),
    _Column("Brier", "/brier", lambda x: f"{x:.4f}", min, interval=True),
    _Column("ECE", "/ece", lambda x: f"{x:.4f}", min, interval=True),
    _Column("Parameters", "parameters", short_count, min),
    _Column("Peak memory", "train/peak_memory_bytes", short_size, min),
    _Column("Tokens/s", "train/tokens_per_second", short_count, max),
    _Column("Training", "train/seconds", lambda x: f"{x:.3g} s" if x < 600 else f"{x / 60:.1f} min", min),
)


def _comparison(runs: Sequence[Run], tasks: Sequence[str]) -> str:
    # Only what was measured on the same examples has a best one.
    comparable = len(runs) > 1 and len({(run.task, run.split, run.metric("/n")) for run in runs}) == 1
    columns = [column for column in _COLUMNS if any(run.metric(column.key) is not None for run in runs)]
    best = {}
    for column in columns:
        values = [value for run in runs if (value := run.metric(column.key)) is not None]
        if comparable and len(set(values)) > 1:
            best[column.key] = column.better(values)
    rows = []
    for number, run in enumerate(runs, start=1):
        about = [*([run.task] * (len(tasks) > 1)), run.model, *_scale(run)]
        cells = "".join(_cell(run, column, best.get(column.key)) for column in columns)
        details = "".join(f"<small>{_text(line)}</small>" for line in about)
        link = f'<a href="#run-{number}" dir="auto">{_text(run.name)}</a>'
        rows.append(f'<tr><th scope="row">{_badge(number)}{link}{details}</th>{cells}</tr>')
    headings = "".join(f'<th scope="col" class="number">{column.heading}</th>' for column in columns)
    several, single = any(run.seeds > 1 for run in runs), any(run.seeds == 1 for run in runs)
    notes = [
        *(["The small numbers of a single run are 95 % bootstrap intervals over the examples."] * single),
        *(["Several seeds: mean, with its 95 % t-interval over the seeds."] * several),
        "NLL (nats) and the multiclass Brier score judge accuracy and calibration together; they are the ones to trust. "
        "ECE's floor is what a perfectly calibrated model with the same confidences would score on so many examples.",
        *(["Bold: best of its column; intervals that overlap decide nothing."] * bool(best)),
    ]
    return _section(
        "Results",
        _scroll(
            "Results of every run",
            f'<table class="results"><thead><tr><th scope="col">Run</th>{headings}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table>",
        )
        + f'<p class="note">{" ".join(notes)}</p>',
    )


def _cell(run: Run, column: _Column, best: float | None) -> str:
    value = run.metric(column.key)
    if value is None:
        return f'<td class="number">{_MISSING}</td>'
    low, high = run.metric(column.key + "_low"), run.metric(column.key + "_high")
    below = []
    if column.interval and low is not None and high is not None:
        below.append(f"{column.form(low).removesuffix(' %')} – {column.form(high).removesuffix(' %')}")
    floor = run.metric("/ece_noise_floor") if column.key == "/ece" else None
    if floor is not None:
        below.append(f"floor {column.form(floor)}")
    mark, spoken = (
        (' class="number best"', '<span class="unseen"> (best)</span>') if value == best else (' class="number"', "")
    )
    return f"<td{mark}>{column.form(value)}{spoken}{''.join(f'<small>{line}</small>' for line in below)}</td>"


def _scale(run: Run) -> list[str]:
    """On how much the numbers stand: rows trained on, examples scored, seeds."""
    rows = run.metric("train/examples")
    n = run.metric("/n") or (run.evaluation.n if run.evaluation else None)
    return [
        *([f"{rows:,.0f} train rows"] if rows is not None else []),
        run.split if n is None else f"{n:,.0f} {run.split} rows",
        _plural(run.seeds, "seed"),
    ]


def _trade_off(runs: Sequence[Run]) -> str:
    measured = [(run, run.metric("/accuracy")) for run in runs]
    if any(accuracy is None for _, accuracy in measured):
        return ""
    points = [
        figures.TradeOffPoint(
            accuracy,
            run.metric("/accuracy_low"),
            run.metric("/accuracy_high"),
            run.metric("train/tokens_per_second"),
            run.metric("train/peak_memory_bytes"),
        )
        for run, accuracy in measured
        if accuracy is not None
    ]
    described = "; ".join(
        f"{number}, {run.name}: {100 * point.accuracy:.2f} %"
        for number, (run, point) in enumerate(zip(runs, points, strict=True), start=1)
    )
    figure = figures.to_svg(
        figures.trade_off(points), shown(f"Accuracy against training speed and peak memory. {described}", 400)
    )
    caption = "What accuracy costs. Numbers are the runs of the table; bars are the accuracies' 95 % intervals."
    return _section("Trade-off", f"<figure>{figure}<figcaption>{caption}</figcaption></figure>")


def _predictions(predictions: Sequence[Prediction], run: Run) -> str:
    rows = "".join(
        f'<tr><td dir="auto">{_text(each.text)}</td><td dir="auto">{_text(each.label)}</td>'
        f'<td class="number">{100 * each.confidence:.1f} %</td><td aria-hidden="true"><span class="bar">'
        f'<span style="width:{100 * min(max(each.confidence, 0.0), 1.0):.1f}%"></span></span></td></tr>'
        for each in predictions
    )
    return _section(
        "Live predictions",
        _scroll(
            "Live predictions",
            '<table><thead><tr><th scope="col">Text</th><th scope="col">Prediction</th>'
            '<th scope="col" class="number">Confidence</th>'
            f'<td aria-hidden="true"></td></tr></thead><tbody>{rows}</tbody></table>',
        )
        + f'<p class="note">Made by {_text(run.name)} when this page was written.</p>',
    )


def _run_section(number: int, run: Run) -> str:
    evaluation = run.evaluation
    about = " · ".join([f"{run.model} on {run.task}", *_scale(run)])
    parts = [f'<p class="note">{_text(about)}</p><h3>Training</h3>{_curves(run)}']
    if evaluation is None:
        parts.append(
            '<p class="note">No confusion matrix and no reliability diagram: the run has no evaluation.json.</p>'
        )
    else:
        pooled = f", {run.seeds} seeds together" if run.seeds > 1 else ""
        matrix = f"<h3>Confusion matrix</h3>{_confusion(run, evaluation, pooled)}"
        pairs = f"<h3>Most confused</h3>{_confused_pairs(evaluation)}"
        diagram = f"<h3>Reliability</h3>{_reliability(run, evaluation, pooled)}"
        # A large matrix takes the whole width; a small one shares it, and the list of pairs goes under both.
        boxes = (matrix, diagram, pairs) if len(evaluation.labels) <= 16 else (matrix, pairs, diagram)
        wide = pairs if len(evaluation.labels) <= 16 else matrix
        parts.append(
            '<div class="pair">'
            + "".join(f'<div class="wide">{box}</div>' if box is wide else f"<div>{box}</div>" for box in boxes)
            + "</div>"
        )
    recipe = yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True)
    parts += [
        _details("Recipe", f"<pre>{_text(recipe)}</pre>", run),
        _details("Environment", _key_table(run.environment), run) if run.environment else "",
        _details("All metrics", _key_table(run.metrics), run),
    ]
    return _section(_badge(number) + f"<bdi>{_text(run.name)}</bdi>", "".join(parts), id=f"run-{number}")


def _curves(run: Run) -> str:
    if max((len(history) for history in run.histories), default=0) < 2:
        return '<p class="note">No curve: the run recorded fewer than two evaluations.</p>'
    best = max(
        (
            (record["validation/accuracy"], record["step"])
            for history in run.histories
            for record in history
            if isinstance(record.get("validation/accuracy"), int | float)
        ),
        default=None,
    )
    summary = (
        f"best validation accuracy {100 * best[0]:.2f} % at step {best[1]:,.0f}" if best else "no validation accuracy"
    )
    svg = figures.to_svg(
        figures.training_curves(run.histories),
        shown(f"Loss and validation accuracy of {run.name} by step: {summary}", 300),
    )
    overlaid = f" {run.seeds} seeds overlaid." if run.seeds > 1 else ""
    return f"<figure>{svg}<figcaption>{summary[0].upper() + summary[1:]}.{overlaid}</figcaption></figure>"


def _confusion(run: Run, evaluation: Evaluation, pooled: str) -> str:
    right, total = int(np.trace(evaluation.confusion)), int(evaluation.confusion.sum())
    svg = figures.to_svg(
        figures.confusion_figure(evaluation.confusion, evaluation.labels),
        shown(f"Confusion matrix of {run.name}: {right:,} of {total:,} right", 300),
    )
    cells = "cells in per cent of their row; " if len(evaluation.labels) <= 12 else ""
    return (
        f"<figure>{svg}<figcaption>{right:,} of {total:,} right ({_text(evaluation.split)}{pooled}). "
        f"{cells.capitalize()}{'shade' if cells else 'Shade'} grows with the square root of the share, mistakes in red."
        "</figcaption></figure>"
    )


def _confused_pairs(evaluation: Evaluation, most: int = 8) -> str:
    mistakes = evaluation.confusion.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
    rows = []
    for label, predicted in zip(*np.unravel_index(order, mistakes.shape), strict=True):
        wrong, of = int(mistakes[label, predicted]), int(evaluation.confusion[label].sum())
        if wrong:
            rows.append(
                f'<tr><td dir="auto">{_text(evaluation.labels[label])}</td>'
                f'<td dir="auto">{_text(evaluation.labels[predicted])}</td>'
                f'<td class="number">{wrong:,} of {of:,}</td><td class="number">{100 * wrong / of:.1f} %</td></tr>'
            )
    if not rows:
        return '<p class="note">No mistake at all.</p>'
    return _scroll(
        "Most confused pairs",
        '<table><thead><tr><th scope="col">Label</th><th scope="col">Taken for</th>'
        '<th scope="col" class="number">Examples</th><th scope="col" class="number">Share</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
    )


def _reliability(run: Run, evaluation: Evaluation, pooled: str) -> str:
    if not any(row["count"] for row in evaluation.reliability):
        return '<p class="note">No diagram: every bin is empty.</p>'
    ece, floor = run.metric("/ece"), run.metric("/ece_noise_floor")
    numbers = "" if ece is None else f"ECE {ece:.4f}" + ("" if floor is None else f", noise floor {floor:.4f}") + ". "
    svg = figures.to_svg(
        figures.reliability_diagram(evaluation.reliability, repeats=run.seeds),
        shown(f"Reliability diagram of {run.name}: accuracy by confidence. {numbers}", 300),
    )
    return (
        f"<figure>{svg}<figcaption>{numbers}Points below the dashed line: overconfident. Bars on points: Wilson 95 % "
        f"intervals{pooled}.</figcaption></figure>"
    )


def _key_table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_text(key)}</th><td>{_text(_plain(value))}</td></tr>' for key, value in values.items()
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _details(summary: str, content: str, run: Run) -> str:
    return f"<details><summary>{summary}</summary>{_scroll(f'{summary} of {run.name}', content)}</details>"


def _section(heading: str, content: str, *, id: str | None = None) -> str:
    anchor = f' id="{id}"' if id else ""
    return f"<section{anchor}><h2>{heading}</h2>{content}</section>"


def _scroll(label: str, content: str) -> str:
    """A box that scrolls sideways on narrow screens and can be reached by the keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(label)}">{content}</div>'


def _badge(number: int) -> str:
    return f'<span class="badge" style="background:var(--{figures.series_colour(number - 1)})">{number}</span>'


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _text(value: object) -> str:
    """Foreign text made safe for HTML: markup escaped, lone surrogates replaced so that UTF-8 can hold it."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))
