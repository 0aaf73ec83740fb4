"""`diffmix generate`: a language model goes on with a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from diffmix.cli.predict import check_utf8
from diffmix.errors import RequestError


def generate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run's folder, or any causal Hugging Face model's.")],
    prompt: Annotated[str, typer.Option(help="The text to go on with; empty: from nothing.")] = "",
    max_tokens: Annotated[int, typer.Option("--max_tokens", "--max-tokens", min=1, help="New tokens at most.")] = 100,
    num_samples: Annotated[
        int, typer.Option("--num_samples", "--num-samples", min=1, help="How many continuations.")
    ] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 1.0,
    top_k: Annotated[
        int, typer.Option("--top_k", "--top-k", min=0, help="Draw among the k likeliest tokens; 0: among all.")
    ] = 0,
    top_p: Annotated[
        float, typer.Option("--top_p", "--top-p", max=1, help="Draw among the likeliest tokens that make up this mass.")
    ] = 1.0,
    num_beams: Annotated[
        int, typer.Option("--num_beams", "--num-beams", min=1, help="Beams of a search, in place of one path.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line a continuation.")] = False,
) -> None:
    """Go on with a text."""
    check_utf8("--prompt", prompt)
    if top_p <= 0:
        raise RequestError(f"--top_p {top_p}: give a number over 0 and up to 1")
    if num_beams > 1 and num_samples > num_beams:
        raise RequestError(f"--num_samples {num_samples} of --num_beams {num_beams}: give as many beams or more")
    if temperature == 0 and num_beams == 1 and num_samples > 1:
        raise RequestError(
            f"--num_samples {num_samples} at --temperature 0 are all the same: give one, or a temperature"
        )
    import torch
    from transformers import set_seed

    from diffmix.training.language import load_language_model

    loaded = load_language_model(model, dtype="fp32")
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise RequestError(f"{model} goes on with pixels, not with text: measure it with diffmix evaluate")
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    mark = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if not ids:
        if mark is None:
            raise RequestError(
                "--prompt is empty and this model's tokenizer has no end mark to start from: give a text"
            )
        ids = [mark]
    if len(ids) + max_tokens > loaded.max_length:
        raise RequestError(
            f"the prompt's {len(ids)} tokens and --max_tokens {max_tokens} are more than the {loaded.max_length} that this "
            "model takes: shorten them"
        )
    set_seed(seed)
    draws = temperature > 0
    choices = {"temperature": temperature, "top_k": top_k, "top_p": top_p} if draws else {}
    given = torch.tensor([ids], device=loaded.model.device)
    with torch.inference_mode():
        results = loaded.model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=max_tokens,
            do_sample=draws,
            num_return_sequences=num_samples,
            num_beams=num_beams,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **choices,
        )
    start = tokenizer.decode(ids, skip_special_tokens=True)
    for number, result in enumerate(results):
        whole = tokenizer.decode(result, skip_special_tokens=True)
        if whole.startswith(start):  # decoded alone, many tokenizers' first word would lose the space before it
            text = whole[len(start) :]
        else:
            text = tokenizer.decode(result[len(ids) :], skip_special_tokens=True)
        if as_json:
            typer.echo(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
            continue
        if number:
            typer.echo("---")
        typer.echo(prompt + text)
