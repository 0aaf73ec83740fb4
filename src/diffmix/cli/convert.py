"""`diffmix convert`: a pretrained encoder for long texts, with attention diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder with config.json and model.safetensors of BERT, RoBERTa or a relative, or a name on the hub.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="A new or empty folder for the result.", show_default=False)],
    max_length: Annotated[
        int,
        typer.Option(
            "--max_length", "--max-length", min=1, help="How many tokens the result takes.", show_default=False
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Pattern and coefficients, such as diffusion_window=128; repeatable."
        ),
    ] = None,
) -> None:
    """Give a pretrained encoder more positions and attention diffusion; it keeps its Hugging Face class."""
    from diffmix.training.prediction import quiet_transformers
    from diffmix.training.recipe import parse_overrides

    settings = parse_overrides(set_ or [])
    quiet_transformers()
    from diffmix.models.conversion import convert_checkpoint

    done = convert_checkpoint(source, output, max_length=max_length, settings=settings)
    typer.echo(f"{done.architecture}: {done.positions_before:,} positions, now {done.positions:,}")
    typer.echo(", ".join(f"{name.removeprefix('diffusion_')} {value}" for name, value in done.settings.items()))
    if not done.has_tokenizer:
        typer.echo(f"{source} has no tokenizer: none was written")
    typer.echo(
        f"Wrote {output}; load it after diffmix.register_attention() with attn_implementation='attention_diffusion'"
    )
