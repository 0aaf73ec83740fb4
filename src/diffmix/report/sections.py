"""One run on the page: its curves, where it is wrong, how well it knows it, and how it was made."""

from __future__ import annotations

import numpy as np
import yaml

from diffmix.report import figures, markup
from diffmix.report.album import Album
from diffmix.report.comparison import scale
from diffmix.report.language_figures import learned_times
from diffmix.report.runs import Evaluation, Run


def run_section(number: int, run: Run, album: Album) -> str:
    """Everything about run `number` of the page."""
    files = f"{number}-{run.name}"
    about = " · ".join([f"{run.model} on {run.task}", *scale(run)])
    parts = [f'<p class="note">{markup.safe(about)}</p><h3>Training</h3>{_curves(run, files, album)}']
    pooled = f", {run.seeds} seeds together" if run.seeds > 1 else ""
    evaluation = run.evaluation
    if run.is_language_model:
        parts.append(_language_boxes(run, evaluation, pooled, files, album))
    elif evaluation is None:
        parts.append(
            '<p class="note">No confusion matrix and no reliability diagram: the run has no evaluation.json.</p>'
        )
    else:
        parts.append(_classifier_boxes(run, evaluation, pooled, files, album))
    recipe = markup.safe(yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True))
    parts += [
        markup.details("Recipe", f"<pre>{recipe}</pre>", run.name),
        markup.details("Environment", markup.key_table(run.environment), run.name) if run.environment else "",
        markup.details("All metrics", markup.key_table(run.metrics), run.name),
    ]
    return markup.section(
        markup.badge(number) + f"<bdi>{markup.safe(run.name)}</bdi>", "".join(parts), id=f"run-{number}"
    )


def _classifier_boxes(run: Run, evaluation: Evaluation, pooled: str, files: str, album: Album) -> str:
    diagram = f"<h3>Reliability</h3>{_reliability(run, evaluation, pooled, files, album)}"
    if not evaluation.confusion.size:
        return (
            f'<p class="note">No confusion matrix: the run recorded none of its {len(evaluation.labels):,} labels.</p>'
            + _paired((diagram,), wide=None)
        )
    matrix = f"<h3>Confusion matrix</h3>{_confusion(run, evaluation, pooled, files, album)}"
    pairs = f"<h3>Most confused</h3>{_confused_pairs(evaluation)}"
    # A large matrix takes the whole width; a small one shares it, and the list of pairs goes under both.
    boxes = (matrix, diagram, pairs) if len(evaluation.labels) <= 16 else (matrix, pairs, diagram)
    return _paired(boxes, wide=pairs if len(evaluation.labels) <= 16 else matrix)


def _language_boxes(run: Run, evaluation: Evaluation | None, pooled: str, files: str, album: Album) -> str:
    times = f"<h3>Diffusion times</h3>{_learned_times(run, files, album)}" if run.times else ""
    if evaluation is None:
        return '<p class="note">No reliability diagram: the run has no evaluation.json.</p>' + times
    diagram = f"<h3>Reliability</h3>{_reliability(run, evaluation, pooled, files, album)}"
    slots = max((len(heads) for seed in run.times for heads in seed), default=0) * len(run.times)
    many = slots * max(map(len, run.times), default=0) > 40
    return _paired((diagram, times), wide=times if many else None)


def _paired(boxes: tuple[str, ...], *, wide: str | None) -> str:
    return (
        '<div class="pair">'
        + "".join(f'<div class="wide">{box}</div>' if box is wide else f"<div>{box}</div>" for box in boxes if box)
        + "</div>"
    )


def _curves(run: Run, files: str, album: Album) -> str:
    if max((len(history) for history in run.histories), default=0) < 2:
        return '<p class="note">No curve: the run recorded fewer than two evaluations.</p>'
    score = "perplexity" if run.is_language_model else "accuracy"
    scored = [
        (record[f"validation/{score}"], record["step"])
        for history in run.histories
        for record in history
        if isinstance(record.get(f"validation/{score}"), int | float) and np.isfinite(record[f"validation/{score}"])
    ]
    if not scored:
        summary = f"no validation {score}"
    elif run.is_language_model:
        value, step = min(scored)
        summary = f"best validation perplexity {value:,.2f} at step {step:,.0f}"
    else:
        value, step = max(scored)
        summary = f"best validation accuracy {100 * value:.2f} % at step {step:,.0f}"
    overlaid = f" {run.seeds} seeds overlaid." if run.seeds > 1 else ""
    return album.place(
        f"{files}-curves",
        figures.training_curves(run.histories, score),
        f"Loss and validation {score} of {run.name} by step: {summary}",
        f"{summary[0].upper() + summary[1:]}.{overlaid}",
    )


def _confusion(run: Run, evaluation: Evaluation, pooled: str, files: str, album: Album) -> str:
    right, total = int(np.trace(evaluation.confusion)), int(evaluation.confusion.sum())
    cells = "cells in per cent of their row; " if len(evaluation.labels) <= 12 else ""
    return album.place(
        f"{files}-confusion",
        figures.confusion_figure(evaluation.confusion, evaluation.labels),
        f"Confusion matrix of {run.name}: {right:,} of {total:,} right",
        f"{right:,} of {total:,} right ({markup.safe(evaluation.split)}{pooled}). "
        f"{cells.capitalize()}{'shade' if cells else 'Shade'} grows with the square root of the share, mistakes in red.",
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
                f'<tr><td dir="auto">{markup.safe(evaluation.labels[label])}</td>'
                f'<td dir="auto">{markup.safe(evaluation.labels[predicted])}</td>'
                f'<td class="number">{wrong:,} of {of:,}</td><td class="number">{100 * wrong / of:.1f} %</td></tr>'
            )
    if not rows:
        return '<p class="note">No mistake at all.</p>'
    return markup.scroll(
        "Most confused pairs",
        '<table><thead><tr><th scope="col">Label</th><th scope="col">Taken for</th>'
        '<th scope="col" class="number">Examples</th><th scope="col" class="number">Share</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
    )


def _reliability(run: Run, evaluation: Evaluation, pooled: str, files: str, album: Album) -> str:
    if not any(row["count"] for row in evaluation.reliability):
        return '<p class="note">No diagram: every bin is empty.</p>'
    ece, floor = run.metric("/ece"), run.metric("/ece_noise_floor")
    numbers = "" if ece is None else f"ECE {ece:.4f}" + ("" if floor is None else f", noise floor {floor:.4f}") + ". "
    alone = ", as if tokens were independent" if run.is_language_model else ""
    return album.place(
        f"{files}-reliability",
        figures.reliability_diagram(
            evaluation.reliability, repeats=run.seeds, of="tokens" if run.is_language_model else "examples"
        ),
        f"Reliability diagram of {run.name}: accuracy by confidence. {numbers}",
        f"{numbers}Points below the dashed line: overconfident. Bars on points: Wilson 95 % intervals{alone}{pooled}.",
    )


def _learned_times(run: Run, files: str, album: Album) -> str:
    means = [head["mean"] for seed in run.times for heads in seed for head in heads]
    start = run.start_time
    moved = any(head["max"] > head["min"] for seed in run.times for heads in seed for head in heads)
    extent = " Bars: from the least to the greatest over the test tokens." if moved else ""
    between = f"Mean times of heads from {min(means):.3g} to {max(means):.3g}"
    return album.place(
        f"{files}-times",
        learned_times(run.times, start=start),
        f"Diffusion times of {run.name} by layer and head. {between}, from {start:.3g} at the start",
        f"{between}; {start:.3g} at the start (dashed).{extent}",
    )
