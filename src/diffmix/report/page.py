"""One self-contained HTML page about finished runs and studies: no script, no network, light and dark."""

from __future__ import annotations

import importlib.resources
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffmix
from diffmix.errors import RequestError, RunError
from diffmix.report import markup
from diffmix.report.album import Album
from diffmix.report.comparison import NumberedRun, comparison
from diffmix.report.runs import Run, load_run
from diffmix.report.sections import run_section
from diffmix.report.studies import load_study_result, study_section


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
    figures: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one HTML page that compares finished runs and shows each one's curves, mistakes and calibration.

    Args:
        runs: folders written by `diffmix train`, with one seed or several: classifiers, language models or both; and
            `study-NAME.json` files written by `diffmix study`.
        output: the file to write; folders on the way are made.
        predictions: (text, label, confidence) triples to show, made by the first run's model.
        title: the page's heading; the studies' and tasks' names by default.
        figures: a folder for every figure of the page as PNG and SVG; made where it is not there.
        overwrite: replace `output`, and figures of the same names, if they exist.

    Returns:
        The file written.

    Raises:
        RequestError: no run, a run that is missing or broken, an output that exists or is a folder, figures that exist.
        RunError: a file could not be written.
    """
    output = Path(output)
    if not runs:
        raise RequestError("runs is empty; give at least one folder that `diffmix train --output` wrote")
    if output.is_dir():
        raise RequestError(f"{output} is a folder; give the HTML file to write, as in {output / 'report.html'}")
    if output.exists() and not overwrite:
        raise RequestError(f"{output} exists; give another --output, or --force to replace it")
    if figures is not None and Path(figures).exists() and not Path(figures).is_dir():
        raise RequestError(f"{figures} is a file; give a folder for the figures")
    sources = [Path(run) for run in runs]
    album = Album()
    page = render(
        [load_run(run) for run in sources if not _is_study(run)],
        studies=[load_study_result(study) for study in sources if _is_study(study)],
        predictions=[Prediction(*each) for each in predictions],
        title=title,
        album=album,
    )
    files = {} if figures is None else {Path(figures) / name: content for name, content in album.files().items()}
    taken = next((file for file in files if file.exists()), None)
    if taken is not None and not overwrite:
        raise RequestError(f"{taken} exists; give another folder with --figures, or --force to replace it")
    for file, content in (*files.items(), (output, page.encode())):
        _write(file, content)
    return output


def render(
    runs: Sequence[Run],
    *,
    studies: Sequence[Mapping[str, Any]] = (),
    predictions: Sequence[Prediction] = (),
    title: str | None = None,
    album: Album | None = None,
) -> str:
    """The page as text; its figures are added to `album`."""
    album = Album() if album is None else album
    heading = title or ", ".join(dict.fromkeys([*(study["study"] for study in studies), *(run.task for run in runs)]))
    counts = ((len(studies), "study", "studies"), (len(runs), "run", "runs"))
    kinds = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
    models = [", ".join(dict.fromkeys(run.model for run in runs))] if runs else []
    about = " · ".join([*kinds, *models, f"diffmix {diffmix.__version__}"])
    parts = [
        f'<header><h1>{markup.safe(heading)}</h1><p class="note">{markup.safe(about)}</p></header><main>',
        *(study_section(study, album) for study in studies),
        *_comparisons(list(enumerate(runs, start=1)), album),
    ]
    if predictions and runs:
        parts.append(_predictions(predictions, runs[0]))
    parts += [run_section(number, run, album) for number, run in enumerate(runs, start=1)]
    style = importlib.resources.files("diffmix.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{markup.safe(heading)} · diffmix</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _is_study(source: Path) -> bool:
    return source.suffix == ".json" and not source.is_dir()


def _comparisons(runs: Sequence[NumberedRun], album: Album) -> list[str]:
    """A table of the classifiers and one of the language models: they share no score that could be compared."""
    kinds = {
        "Classifiers": [row for row in runs if not row[1].is_language_model],
        "Language models": [row for row in runs if row[1].is_language_model],
    }
    present = {name: rows for name, rows in kinds.items() if rows}
    return [comparison(rows, album, heading=name if len(present) > 1 else "Results") for name, rows in present.items()]


def _predictions(predictions: Sequence[Prediction], run: Run) -> str:
    rows = "".join(
        f'<tr><td dir="auto">{markup.safe(each.text)}</td><td dir="auto">{markup.safe(each.label)}</td>'
        f'<td class="number">{100 * each.confidence:.1f} %</td><td aria-hidden="true"><span class="bar">'
        f'<span style="width:{100 * min(max(each.confidence, 0.0), 1.0):.1f}%"></span></span></td></tr>'
        for each in predictions
    )
    return markup.section(
        "Live predictions",
        markup.scroll(
            "Live predictions",
            '<table><thead><tr><th scope="col">Text</th><th scope="col">Prediction</th>'
            '<th scope="col" class="number">Confidence</th>'
            f'<td aria-hidden="true"></td></tr></thead><tbody>{rows}</tbody></table>',
        )
        + f'<p class="note">Made by {markup.safe(run.name)} when this page was written.</p>',
    )


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and then moved: whatever happens, the old file or the new one is there, whole.
        with tempfile.NamedTemporaryFile("wb", dir=file.parent, prefix=f".{file.name}.", delete=False) as part:
            try:
                part.write(content)
                part.close()
                os.chmod(part.name, 0o644)
                os.replace(part.name, file)
            except BaseException:
                os.unlink(part.name)
                raise
    except OSError as error:
        raise RunError(
            f"{file}: the report could not be written ({error.strerror}); free space or give another --output"
        ) from None
