"""The named benchmarks of `diffmix bench`."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffmix.benchmarks.diffusion import diffusion, kernels
from diffmix.benchmarks.generation import generation
from diffmix.benchmarks.harness import Notice, Workers, alternate, medians, ratio, run_workers
from diffmix.benchmarks.long_range import long_range
from diffmix.benchmarks.specs import (
    Options,
    distilbert_config,
    model_of,
    recipe_of,
    save_train,
    softmax_config,
    step_spec,
)
from diffmix.errors import RequestError
from diffmix.experiments.results import claim_result, command_line, portable_spec, write_result
from diffmix.training.recipe import load_recipe

SCALING_TOKENS = (4_096, 8_192, 16_384, 32_768, 65_536)
ATTENTION_TOKENS = (512, 1_024, 2_048, 4_096, 8_192)
SOFTMAX_TOKENS = 16_384  # beyond this a step of the quadratic side takes minutes on a few cores


def run_benchmark(
    name: str,
    options: Options,
    output: Path | None = None,
    *,
    force: bool = False,
    notice: Notice = print,
    workers: Workers = run_workers,
) -> tuple[Path, dict[str, Any]]:
    """Measure `name`, one of BENCHMARKS, and write its result.

    Args:
        name: of the benchmark.
        options: see `Options`.
        output: the result file; None: results/bench-NAME.json, with the recipe's name where it is not the default one.
        force: replace a result that is there.
        notice: told each measurement.
        workers: what measures specs; each in a process of its own.

    Raises:
        RequestError: an unknown name, an option that does not fit, a result that exists.
        RunError: a measurement failed.
    """
    if name not in BENCHMARKS:
        raise RequestError(f"benchmark {name!r} is unknown: give one of {', '.join(BENCHMARKS)}")
    for option in ("batch", "tokens", "steps", "repetitions", "limit"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise RequestError(f"{option} is {value}: give 1 or more")
    unused = ["recipe"] * (DEFAULT_RECIPE[name] is None) + ["limit", "data"] * (name != "obvious")
    for option in unused:
        if getattr(options, option) is not None:
            what = "measures no recipe's model" if option == "recipe" else "reads no data"
            raise RequestError(f"{option} is {getattr(options, option)!r}, but benchmark {name} {what}: leave it out")
    if output is None:
        stem = f"bench-{name}" + (
            f"-{_slug(options.recipe)}" if options.recipe not in (None, DEFAULT_RECIPE[name]) else ""
        )
        output = Path("results") / f"{stem}.json"
    claim_result(output, force=force)

    from diffmix.training.hardware import environment, resolve_device, resolve_dtype

    device = resolve_device(options.device)
    given = dataclasses.replace(options, recipe=options.recipe or DEFAULT_RECIPE[name], device=device)
    if name != "operators":
        given = dataclasses.replace(given, dtype=resolve_dtype(options.dtype, device))
    started = time.perf_counter()
    measured = BENCHMARKS[name](given, notice, workers)
    defaults = {field.name: field.default for field in dataclasses.fields(Options)} | {"data": options.data}
    recipe = None if given.recipe is None else portable_spec(given.recipe)
    asked = {**dataclasses.asdict(options), "recipe": options.recipe and recipe}
    result = {
        "benchmark": name,
        "command": command_line("bench", name, options=asked, defaults=defaults),
        "recipe": recipe,
        "dtype": given.dtype,
        "repetitions": given.repetitions,
        "environment": environment(device),
        "seconds": time.perf_counter() - started,
        **measured,
    }
    write_result(output, result, data=options.data)
    return output, result


def distilbert(options: Options, notice: Notice, workers: Any) -> dict[str, Any]:
    """A training step of a recipe's own model, and of the paper's, against DistilBERT's shape: 32 x 512 tokens, same AdamW.

    DistilBERT is measured as its configuration has it, and once more without dropout on attention weights: on CPUs the fused
    attention has no dropout, so that the default materialises N×N weights, which is not the architecture's fault.
    """
    shape = {"batch": options.batch or 32, "tokens": options.tokens or 512}
    published = distilbert_config(shape["tokens"])
    sides = {
        "ours": step_spec(options, model_of(recipe_of(options), shape["tokens"]), **shape),
        "paper": step_spec(options, model_of(load_recipe("ag_news_paper"), shape["tokens"]), **shape),
        "distilbert": step_spec(options, {"type": "distilbert", "config": published}, **shape),
        "distilbert_fused": step_spec(
            options, {"type": "distilbert", "config": {**published, "attention_dropout": 0.0}}, **shape
        ),
    }
    runs = alternate(sides, options.repetitions, notice=notice, workers=workers)
    return {
        "settings": {**shape, "models": {name: side["model"] for name, side in sides.items()}},
        "sides": medians(runs),
        "ratios": {
            name: {
                "less_memory": ratio(runs["distilbert"], runs[name], "peak_memory_bytes"),
                "more_tokens_per_second": ratio(runs[name], runs["distilbert"], "tokens_per_second"),
                "less_memory_fused": ratio(runs["distilbert_fused"], runs[name], "peak_memory_bytes"),
                "more_tokens_per_second_fused": ratio(runs[name], runs["distilbert_fused"], "tokens_per_second"),
            }
            for name in ("ours", "paper")
        },
    }


def obvious(options: Options, notice: Notice, workers: Any) -> dict[str, Any]:
    """The recipe's step against its obvious implementation: equal unpadded batches, and an epoch of the recipe's data.

    Our side has the settings of `diffmix train`: `diffmix.training.hardware.tune_cpu`.
    """
    from diffmix.benchmarks.obvious import largest_difference
    from diffmix.models import DiffmixConfig

    recipe = recipe_of(options)
    shape = {"batch": options.batch or 32, "tokens": options.tokens or 512}
    model = model_of(recipe, shape["tokens"])
    difference = largest_difference(DiffmixConfig(**model["config"]))
    if difference > 1e-4:
        raise RequestError(
            f"both sides must compute the same, but their logits differ by {difference:.2g}: give another recipe"
        )
    theirs = {**model, "type": "obvious"}
    steps = alternate(
        {
            "ours": {**step_spec(options, model, **shape), "tuned": True},
            "obvious": step_spec(options, theirs, **shape),
        },
        options.repetitions,
        notice=notice,
        workers=workers,
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npz"
        facts, vocabulary = save_train(recipe, options, shape["tokens"], rows, notice)
        model, theirs = (
            {**side, "config": {**side["config"], "vocab_size": vocabulary, "num_labels": facts["labels"]}}
            for side in (model, theirs)
        )
        common = {
            "kind": "epoch",
            "rows": str(rows),
            "batch": recipe.batch_size,
            "dtype": options.dtype,
            "device": options.device,
        }
        epochs = alternate(
            {
                "ours": {**common, "model": model, "pad_to": None, "tuned": True},
                "obvious": {**common, "model": theirs, "pad_to": shape["tokens"]},
            },
            options.repetitions,
            notice=notice,
            workers=workers,
        )
    return {
        "settings": {
            **shape,
            "model": model,
            "epoch": {**facts, "batch": recipe.batch_size, "max_length": shape["tokens"]},
        },
        "largest_logit_difference": difference,
        "equal_batches": {
            "sides": medians(steps),
            "ratios": {
                "more_tokens_per_second": ratio(steps["ours"], steps["obvious"], "tokens_per_second"),
                "less_memory": ratio(steps["obvious"], steps["ours"], "peak_memory_bytes"),
            },
        },
        "epoch": {
            "sides": medians(epochs),
            "ratios": {
                "more_real_tokens_per_second": ratio(epochs["ours"], epochs["obvious"], "real_tokens_per_second"),
                "less_memory": ratio(epochs["obvious"], epochs["ours"], "peak_memory_bytes"),
            },
        },
    }


def scaling(options: Options, notice: Notice, workers: Any) -> dict[str, Any]:
    """Time and memory of a training step by length, one row, ours and softmax attention of the same width."""
    recipe = recipe_of(options)
    lengths = [n for n in SCALING_TOKENS if n <= (options.tokens or SCALING_TOKENS[-1])]
    if not lengths:
        raise RequestError(f"tokens is {options.tokens}: give {SCALING_TOKENS[0]} or more, the longest row to measure")
    sides = {}
    for length in lengths:
        sides[f"ours/{length}"] = step_spec(options, model_of(recipe, length), batch=options.batch or 1, tokens=length)
    for length in lengths:
        if length <= SOFTMAX_TOKENS:
            softmax = {**model_of(recipe, length)}
            softmax["config"] = softmax_config(softmax["config"])
            sides[f"softmax/{length}"] = step_spec(options, softmax, batch=options.batch or 1, tokens=length)
    runs = alternate(sides, options.repetitions, notice=notice, workers=workers)
    ratios = {}
    long, short = f"ours/{SCALING_TOKENS[-1]}", f"ours/{SCALING_TOKENS[-1] // 4}"
    if long in runs:
        ratios = {
            "time": ratio(runs[long], runs[short], "seconds_per_step"),
            "memory": ratio(runs[long], runs[short], "peak_memory_bytes"),
        }
    return {
        "settings": {"batch": options.batch or 1, "tokens": lengths, "model": model_of(recipe, lengths[-1])},
        "sides": medians(runs),
        "ratios": ratios,
    }


def operators(options: Options, notice: Notice, workers: Any) -> dict[str, Any]:
    """Candidates for the fast path of neighbour diffusion, three adjacent offsets, forward and backward."""
    from diffmix.benchmarks.operators import CANDIDATES, DTYPES

    shape = {"batch": options.batch or 32, "tokens": options.tokens or 512, "widths": [128, 256]}
    dtypes = list(DTYPES) if options.dtype == "auto" else [options.dtype]
    if not set(dtypes) <= set(DTYPES):
        raise RequestError(f"dtype is {options.dtype}: operators are measured in {', '.join(DTYPES)}")
    common = {"kind": "operators", **shape, "dtypes": dtypes, "device": options.device, "steps": options.steps}
    sides = {name: {**common, "candidate": name} for name in CANDIDATES}
    runs = alternate(sides, options.repetitions, notice=notice, workers=workers)
    keys = [key for key in runs["library"][0] if "/" in key]
    return {
        "settings": {**shape, "dtypes": dtypes, "offsets": [-1, 0, 1]},
        "sides": medians(runs),
        "ratios": {
            name: {key: ratio(runs["rolled_linears"], measured, key) for key in keys}
            for name, measured in runs.items()
            if name != "rolled_linears"
        },
    }


def parts(options: Options, notice: Notice, workers: Any) -> dict[str, Any]:
    """The parts of a step beside its products, as one writes them at first and as the library has them."""
    from diffmix.benchmarks.operators import DTYPES
    from diffmix.benchmarks.parts import SIDES

    if options.dtype not in DTYPES:
        raise RequestError(f"dtype is {options.dtype}: parts are measured in {', '.join(DTYPES)}")
    shape = {"batch": options.batch or 32, "tokens": options.tokens or 512, "width": 128}
    common = {"kind": "parts", **shape, "dtypes": [options.dtype], "device": options.device, "steps": options.steps}
    runs = alternate(
        {side: {**common, "side": side} for side in SIDES}, options.repetitions, notice=notice, workers=workers
    )
    keys = [key for key in runs["ours"][0] if "/" in key]
    return {
        "settings": shape,
        "sides": medians(runs),
        "ratios": {key: ratio(runs["plain"], runs["ours"], key) for key in keys},
    }


def heat_kernel(options: Options, notice: Notice, workers: Any) -> dict[str, Any]:
    """Heat-kernel attention, forward with backward, against torch's fused attention and its own materialised definition.

    All sides have the settings of `diffmix train`: the small weights of sharp attention are no normal numbers.
    """
    from diffmix.benchmarks.attention import FORMS

    lengths = [n for n in ATTENTION_TOKENS if n <= (options.tokens or ATTENTION_TOKENS[-1])]
    if not lengths:
        raise RequestError(
            f"tokens is {options.tokens}: give {ATTENTION_TOKENS[0]} or more, the longest row to measure"
        )
    shape = {"heads": 4, "channels": 64, "tokens": lengths}
    fixed = {"dtype": options.dtype, "device": options.device, "steps": options.steps, "tuned": True}
    common = {"kind": "attention", **shape, **fixed}
    runs = alternate(
        {side: {**common, "side": side} for side in ("sdpa", *FORMS)},
        options.repetitions,
        notice=notice,
        workers=workers,
        together=True,
    )
    # For its memory alone, which needs no quiet.
    longest = f"memory/{lengths[-1]}"
    materialised = {"materialised": {**common, "side": "materialised", "tokens": lengths[-1:], "steps": 1}}
    runs |= alternate(materialised, options.repetitions, notice=notice, workers=workers)
    return {
        "settings": shape,
        "sides": medians(runs),
        "ratios": {
            **{form: {f"time/{n}": ratio(runs[form], runs["sdpa"], f"both/{n}") for n in lengths} for form in FORMS},
            "materialised": {form: ratio(runs["materialised"], runs[form], longest) for form in FORMS},
        },
    }


def paper_memory(options: Options, notice: Notice, workers: Any) -> dict[str, Any]:
    """Peak memory of the paper's model at 16 rows of 4,096 tokens: training, with checkpointing, inference."""
    shape = {"batch": options.batch or 16, "tokens": options.tokens or 4096}
    model = model_of(recipe_of(options), shape["tokens"])
    narrow = "bf16" if options.device == "cpu" else "fp16"
    sides = {}
    for dtype in ("fp32", narrow):
        base = {**step_spec(options, model, **shape), "dtype": dtype}
        sides[f"training/{dtype}"] = base
        sides[f"training with checkpointing/{dtype}"] = {**base, "checkpointing": True}
        sides[f"inference/{dtype}"] = {**base, "training": False}
    runs = alternate(sides, options.repetitions, notice=notice, workers=workers)
    return {"settings": {**shape, "model": model}, "sides": medians(runs)}


BENCHMARKS: dict[str, Callable[[Options, Notice, Any], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        distilbert,
        obvious,
        scaling,
        operators,
        parts,
        heat_kernel,
        diffusion,
        kernels,
        long_range,
        generation,
        paper_memory,
    )
}
DEFAULT_RECIPE = {
    "distilbert": "ag_news",
    "obvious": "imdb",
    "scaling": "ag_news",
    "operators": None,
    "parts": None,
    "heat_kernel": None,
    "diffusion": None,
    "kernels": None,
    "long_range": None,
    "generation": None,
    "paper_memory": "imdb_paper",
}


def _slug(spec: str | None) -> str:
    name, _, overrides = portable_spec(spec or "").partition(":")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(name).stem}-{overrides}").strip("-")
