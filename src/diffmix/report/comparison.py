"""Runs side by side: the table of results and what they cost. Classifiers and language models each have their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from diffmix.report import figures, markup
from diffmix.report.album import Album
from diffmix.report.runs import Run
from diffmix.report.text import short_count, short_size

NumberedRun = tuple[int, Run]  # its number on the page, from 1


class _Column(NamedTuple):
    heading: str
    key: str  # of metrics.json; a leading / stands for the split the run is judged by
    form: Callable[[float], str]
    better: Callable[[Sequence[float]], float] | None  # which of several is best; None: none is
    interval: bool = False
    any_tokenizer: bool = False  # comparable on the same text, whatever the tokens


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.2e}"


_SCORES = (
    _Column("NLL", "/nll", lambda x: f"{x:.4f}", min, interval=True),
    _Column("Brier", "/brier", lambda x: f"{x:.4f}", min, interval=True),
    _Column("ECE", "/ece", lambda x: f"{x:.4f}", min, interval=True),
)
_PARAMETERS = _Column("Parameters", "parameters", short_count, min)
_MEMORY = _Column("Peak memory", "train/peak_memory_bytes", short_size, min)
_SPEED = _Column("Tokens/s", "train/tokens_per_second", short_count, max)
_TIME = _Column("Training", "train/seconds", lambda x: f"{x:.3g} s" if x < 600 else f"{x / 60:.1f} min", min)
_CLASSIFIER = (
    _Column("Accuracy", "/accuracy", lambda x: f"{100 * x:.2f} %", max, interval=True),
    _Column("Macro F1", "/macro_f1", lambda x: f"{100 * x:.2f} %", max, interval=True),
    *_SCORES,
    _PARAMETERS,
    _MEMORY,
    _SPEED,
    _TIME,
)
_LANGUAGE_MODEL = (
    _Column("Perplexity", "/perplexity", _perplexity, min, interval=True),
    _Column("per word", "/word_perplexity", _perplexity, min, interval=True, any_tokenizer=True),
    _Column("Bits/byte", "/bits_per_byte", lambda x: f"{x:.3f}", min, interval=True, any_tokenizer=True),
    _Column("Bits/dim", "/bits_per_dim", lambda x: f"{x:.3f}", min, interval=True),
    *_SCORES,
    _Column("Entropy", "/entropy", lambda x: f"{x:.3f}", None),
    _PARAMETERS,
    _MEMORY,
    _TIME,  # with the speed below it: the table is wide enough
)


def comparison(runs: Sequence[NumberedRun], album: Album, *, heading: str = "Results") -> str:
    """The table of runs of one kind, and of several what they cost."""
    of_language = runs[0][1].is_language_model
    parts = [_table(runs, _LANGUAGE_MODEL if of_language else _CLASSIFIER, heading)]
    if len(runs) > 1:
        parts.append(_trade_off(runs, album))
    return "".join(parts)


def scale(run: Run) -> list[str]:
    """On how much the numbers stand: what was trained on, what was scored, seeds."""
    trained, scored = ("train windows", "tokens") if run.is_language_model else ("train rows", "rows")
    rows = run.metric("train/examples")
    n = run.metric("/n") or (run.evaluation.n if run.evaluation else None)
    return [
        *([f"{rows:,.0f} {trained}"] if rows is not None else []),
        run.split if n is None else f"{n:,.0f} {run.split} {scored}",
        markup.plural(run.seeds, "seed"),
    ]


def _table(runs: Sequence[NumberedRun], possible: Sequence[_Column], heading: str) -> str:
    columns = [column for column in possible if any(run.metric(column.key) is not None for _, run in runs)]
    # Only what was measured on the same examples has a best one.
    texts = {(run.task, run.split, run.metrics.get("data/source"), run.metric("/documents")) for _, run in runs}
    same_text = len(runs) > 1 and len(texts) == 1
    same_examples = len(runs) > 1 and len({(run.task, run.split, run.metric("/n")) for _, run in runs}) == 1
    best = {}
    for column in columns:
        values = [value for _, run in runs if (value := run.metric(column.key)) is not None]
        comparable = same_examples or (column.any_tokenizer and same_text)
        if comparable and column.better and len(set(values)) > 1:
            best[column.key] = column.better(values)
    several_tasks = len({run.task for _, run in runs}) > 1
    rows = []
    for number, run in runs:
        about = [*([run.task] * several_tasks), run.model, *scale(run)]
        cells = "".join(_cell(run, column, best.get(column.key)) for column in columns)
        details = "".join(f"<small>{markup.safe(line)}</small>" for line in about)
        link = f'<a href="#run-{number}" dir="auto">{markup.safe(run.name)}</a>'
        rows.append(f'<tr><th scope="row">{markup.badge(number)}{link}{details}</th>{cells}</tr>')
    headings = "".join(f'<th scope="col" class="number">{column.heading}</th>' for column in columns)
    return markup.section(
        heading,
        markup.scroll(
            f"{heading}: every run",
            f'<table class="results"><thead><tr><th scope="col">Run</th>{headings}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table>",
        )
        + f'<p class="note">{" ".join(_notes(runs, marked=bool(best)))}</p>',
    )


def _notes(runs: Sequence[NumberedRun], *, marked: bool) -> list[str]:
    of_language = runs[0][1].is_language_model
    several, single = any(run.seeds > 1 for _, run in runs), any(run.seeds == 1 for _, run in runs)
    over = "documents" if of_language else "examples"
    return [
        *([f"The small numbers of a single run are 95 % bootstrap intervals over the {over}."] * single),
        *(["Several seeds: mean, with its 95 % t-interval over the seeds."] * several),
        *(
            [
                "Perplexity per token depends on the tokenizer; per word and bits per byte do not. Entropy is the mean of "
                "the predictions' own, in nats, with its standard deviation: next to NLL it says how sure the model is."
            ]
            * of_language
        ),
        "NLL (nats) and the multiclass Brier score judge accuracy and calibration together; they are the ones to trust. "
        "ECE's floor is what a perfectly calibrated model with the same confidences would score on so many "
        f"{'tokens' if of_language else 'examples'}.",
        *(["Bold: best of its column; intervals that overlap decide nothing."] * marked),
    ]


def _cell(run: Run, column: _Column, best: float | None) -> str:
    value = run.metric(column.key)
    if value is None:
        return f'<td class="number">{markup.MISSING}</td>'
    low, high = run.metric(column.key + "_low"), run.metric(column.key + "_high")
    below = []
    if column.interval and low is not None and high is not None:
        below.append(f"{column.form(low).removesuffix(' %')} – {column.form(high).removesuffix(' %')}")
    floor = run.metric("/ece_noise_floor") if column.key == "/ece" else None
    if floor is not None:
        below.append(f"floor {column.form(floor)}")
    speed = run.metric(_SPEED.key) if column is _TIME and run.is_language_model else None
    if speed is not None:
        below.append(f"{short_count(speed)} tokens/s")
    deviation = run.metric("/entropy_std") if column.key == "/entropy" else None
    if deviation is not None:
        below.append(f"std {column.form(deviation)}")
    mark, spoken = (
        (' class="number best"', '<span class="unseen"> (best)</span>') if value == best else (' class="number"', "")
    )
    return f"<td{mark}>{column.form(value)}{spoken}{''.join(f'<small>{line}</small>' for line in below)}</td>"


def _trade_off(runs: Sequence[NumberedRun], album: Album) -> str:
    of_language = runs[0][1].is_language_model
    of_images = any(run.metric("/bits_per_dim") is not None for _, run in runs)
    score = ("bits per dimension" if of_images else "bits per byte") if of_language else "accuracy"
    key = ("/bits_per_dim" if of_images else "/bits_per_byte") if of_language else "/accuracy"
    points = []
    for _, run in runs:
        value = run.metric(key)
        if value is None:
            return ""
        points.append(
            figures.TradeOffPoint(
                value,
                run.metric(f"{key}_low"),
                run.metric(f"{key}_high"),
                run.metric("train/tokens_per_second"),
                run.metric("train/peak_memory_bytes"),
            )
        )
    numbers = [number for number, _ in runs]
    described = "; ".join(
        f"{number}, {run.name}: " + (f"{point.score:.3f}" if of_language else f"{100 * point.score:.2f} %")
        for (number, run), point in zip(runs, points, strict=True)
    )
    caption = (
        f"What {f'few {score} cost' if of_language else 'accuracy costs'}. Numbers are the runs of the table; bars are "
        "95 % intervals."
    )
    figure = album.place(
        f"trade-off-{score}",
        figures.trade_off(points, score, numbers=numbers),
        f"{score.capitalize()} against training speed and peak memory. {described}",
        caption,
    )
    return markup.section("Trade-off", figure)
