"""`diffmix demo`: the main job on embedded data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option(help="The folder to write; an earlier demo's is replaced.")] = Path("demo"),
) -> None:
    """Train an attention-free classifier and a softmax transformer, compare them and write a report."""
    from diffmix.experiments.demo import run_demo

    run_demo(output, notice=typer.echo)
