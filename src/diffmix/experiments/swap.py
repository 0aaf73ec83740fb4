"""`diffmix bench swap`: heat-kernel attention in the place of a pretrained model's own, measured and written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffmix.errors import RequestError
from diffmix.experiments.markdown import markdown
from diffmix.experiments.results import claim_result, command_line, portable_path, write_result

TASK = "wikitext2_raw"
WINDOW = 512  # tokens
BATCH = 4  # windows
DEFAULTS = {"task": TASK, "tokens": WINDOW, "batch": BATCH, "dtype": "fp32", "device": "auto"}


def bench_swap(
    model: Path,
    *,
    task: str = TASK,
    data: Path | str | None = None,
    tokens: int = WINDOW,
    batch: int = BATCH,
    limit: int | None = None,
    dtype: str = "fp32",
    device: str = "auto",
    output: Path | None = None,
    force: bool = False,
    notice: Callable[[str], None] = print,
) -> tuple[Path, dict[str, Any]]:
    """Perplexity and calibration on test: own attention, `heat_kernel` at the exact time, at factors of it, at the fitted ones.

    The times, one for all layers and one for each, are fitted on the validation split; then test is read, once.

    Args:
        model: a causal Hugging Face model's folder, or a GGUF file.
        task: one of `LANGUAGE_TASKS`.
        data: where the text lies.
        tokens, batch: of a window, and windows at once.
        limit: at most this many tokens of test, its first lines; a third of that of validation. None: all.
        dtype, device: of the computation.
        output: the result; None: results/swap-MODEL.json.
        force: replace it.
        notice: told what is done.

    Raises:
        RequestError: a model that cannot be swapped, a task without test split, a result that exists.
    """
    name = model.stem if model.suffix == ".gguf" else model.resolve().name
    output = Path("results") / f"swap-{name}.json" if output is None else output
    claim_result(output, force=force)
    from tqdm import tqdm

    from diffmix.evaluation.swap import FACTORS, fit_heat_time, measure_swap
    from diffmix.tasks.language import Documents, TokenWindows, load_language
    from diffmix.training.hardware import environment
    from diffmix.training.language import load_language_model

    text = load_language(task, data=data, on_notice=notice)
    if not isinstance(text.validation, Documents):
        raise RequestError(
            f"task {task} has pixels, which no pretrained model reads: give a text, such as wikitext2_raw"
        )
    loaded = load_language_model(model, device=device, dtype=dtype)
    choices: dict[str, Any] = {"batch_size": batch, "dtype": loaded.dtype}

    validation = text.validation if limit is None else text.validation.first(limit // 3, loaded.tokenizer)
    windows = TokenWindows(validation, loaded.tokenizer, tokens)
    fitted_on = {"split": "validation", "documents": len(validation.texts), "tokens": len(windows.tokens) - 1}
    times: dict[str, Any] = {}
    for label, per_layer in (("one fitted time", False), ("a fitted time a layer", True)):
        notice(f"fitting {label} on {fitted_on['tokens']:,} tokens of validation")
        with tqdm(unit="window", disable=None) as bar:
            times[label] = fit_heat_time(loaded.model, windows, per_layer=per_layer, on_batch=bar.update, **choices)

    test = text.load_test()
    if not isinstance(test, Documents):
        raise RequestError(f"task {task} has no test split: give one that has, such as wikitext2_raw")
    whole = len(test.texts)
    test = test if limit is None else test.first(limit, loaded.tokenizer)
    windows = TokenWindows(test, loaded.tokenizer, tokens)
    notice(f"scoring {len(windows.tokens) - 1:,} tokens of test, {2 + len(FACTORS) + len(times)} times")
    with tqdm(unit="window", disable=None) as bar:
        measured = measure_swap(loaded.model, windows, test, times=times, on_batch=bar.update, **choices)

    options = {
        "run": portable_path(model),
        "task": task,
        "tokens": tokens,
        "batch": batch,
        "limit": limit,
        "dtype": dtype,
    }
    result = {
        "swap": name,
        "command": command_line("bench", "swap", options=options, defaults=DEFAULTS),
        "model": {"name": name, "type": loaded.model.config.model_type, "parameters": loaded.model.num_parameters()},
        "environment": {**environment(loaded.model.device.type), "dtype": loaded.dtype},
        "task": {"name": text.name, **text.facts},
        "window": tokens,
        "fitted_on": fitted_on,
        "measured_on": {
            "split": "test",
            "documents": len(test.texts),
            "of_documents": whole,
            "tokens": len(windows.tokens) - 1,
            "words": test.words,
            "bytes": test.bytes,
        },
        **measured,
    }
    write_result(output, result, data=data)
    return output, result


def swap_table(result: dict[str, Any]) -> str:
    """The Markdown table of a result."""
    headings = (
        "attention",
        "time",
        "perplexity",
        "word perplexity",
        "ECE",
        "overconfidence",
        "Brier",
        "NLL against own",
    )
    rows = []
    for row in result["rows"]:
        metrics, time = row["metrics"], row["time"]
        change = metrics.get("nll_difference")
        cost = "" if change is None else f"{change:+.4f}"
        if change is not None and "nll_difference_low" in metrics:
            cost += f" ({metrics['nll_difference_low']:+.4f} to {metrics['nll_difference_high']:+.4f})"
        shown = (
            f"{min(time):.2f} to {max(time):.2f}" if isinstance(time, list) else "" if time is None else f"{time:.3g}"
        )
        numbers = (f"{metrics[key]:,.2f}" for key in ("perplexity", "word_perplexity"))
        shares = (f"{metrics[key]:.4f}" for key in ("ece", "overconfidence", "brier"))
        rows.append((row["attention"], shown, *numbers, *shares, cost))
    place = result["measured_on"]
    floor = result["rows"][0]["metrics"]["ece_noise_floor"]
    few = "" if place["documents"] >= 20 else ", too few for that to cover its 95 %"
    caption = (
        f"{result['model']['name']} on {place['tokens']:,} tokens ({place['documents']} of {place['of_documents']} documents) "
        f"of {result['task']['name']}'s test split, windows of {result['window']}; times fitted on "
        f"{result['fitted_on']['tokens']:,} tokens of validation. ECE noise floor {floor:.4f}; at the exact time the "
        f"logits differ by at most {result['max_logit_difference']:.1e} over {result['compared_tokens']:,} tokens. "
        f"In brackets the 95 % bootstrap interval over documents{few}."
    )
    return f"{markdown(headings, rows)}\n\n{caption}"
