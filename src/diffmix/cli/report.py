"""`diffmix report`: one HTML page about one or several finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN ...", help="Folders that `diffmix train` wrote, or study-NAME.json files.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The HTML file; RUN/report.html for one run, report.html here for several.", show_default=False
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="A folder for every figure as PNG and SVG.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Write one HTML page that compares runs and shows curves, mistakes, calibration and diffusion times."""
    from diffmix.report.page import write_report  # matplotlib takes a second to import

    if output is None:
        output = runs[0] / "report.html" if len(runs) == 1 and runs[0].is_dir() else Path("report.html")
    typer.echo(f"Wrote {write_report(runs, output, figures=figures, overwrite=force)}")
    if figures is not None:
        typer.echo(f"Wrote its figures as PNG and SVG to {figures}")
