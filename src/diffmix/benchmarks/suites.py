"""The named benchmarks of `diffmix bench`."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffmix.benchmarks.harness import Notice, alternate, medians, ratio, run_worker
from diffmix.errors import RequestError
from diffmix.experiments.results import claim_result, command_line, portable_spec, write_result
from diffmix.training.recipe import Recipe, load_recipe

LABELS = 4  # classes of a model that is only timed
SCALING_TOKENS = (4_096, 8_192, 16_384, 32_768, 65_536)
SOFTMAX_TOKENS = 16_384  # beyond this a step of the quadratic side takes minutes on a few cores


@dataclasses.dataclass(frozen=True)
class Options:
    """What a benchmark may be told. None: the benchmark's own default."""

    recipe: str | None = None  # whose model is measured; key=value overrides after a colon, as in `diffmix compare`
    dtype: str = "auto"  # bf16 where the hardware multiplies it, else fp32
    device: str = "auto"
    batch: int | None = None  # rows
    tokens: int | None = None  # of a row
    steps: int = 5  # measured in each process
    repetitions: int = 3  # processes of each side
    limit: int | None = None  # train rows, where data are read
    data: str | None = None  # a folder of data sets


def run_benchmark(
    name: str,
    options: Options,
    output: Path | None = None,
    *,
    force: bool = False,
    notice: Notice = print,
    worker: Callable[[Mapping[str, Any]], dict[str, Any]] = run_worker,
) -> tuple[Path, dict[str, Any]]:
    """Measure `name`, one of BENCHMARKS, and write its result.

    Args:
        name: of the benchmark.
        options: see `Options`.
        output: the result file; None: results/bench-NAME.json, with the recipe's name where it is not the default one.
        force: replace a result that is there.
        notice: told each measurement.
        worker: what measures a spec; a process of its own.

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
    measured = BENCHMARKS[name](given, notice, worker)
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


def distilbert(options: Options, notice: Notice, worker: Any) -> dict[str, Any]:
    """A training step of a recipe's own model, and of the paper's, against DistilBERT's shape: 32 x 512 tokens, same AdamW.

    DistilBERT is measured as its configuration has it, and once more without dropout on attention weights: on CPUs the fused
    attention has no dropout, so that the default materialises N×N weights, which is not the architecture's fault.
    """
    shape = {"batch": options.batch or 32, "tokens": options.tokens or 512}
    published = _distilbert_config(shape["tokens"])
    sides = {
        "ours": _step(options, model_of(_recipe(options), shape["tokens"]), **shape),
        "paper": _step(options, model_of(load_recipe("ag_news_paper"), shape["tokens"]), **shape),
        "distilbert": _step(options, {"type": "distilbert", "config": published}, **shape),
        "distilbert_fused": _step(
            options, {"type": "distilbert", "config": {**published, "attention_dropout": 0.0}}, **shape
        ),
    }
    runs = alternate(sides, options.repetitions, notice=notice, worker=worker)
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


def obvious(options: Options, notice: Notice, worker: Any) -> dict[str, Any]:
    """The recipe's step against its obvious implementation: equal unpadded batches, and an epoch of the recipe's data."""
    from diffmix.benchmarks.obvious import largest_difference
    from diffmix.models import DiffmixConfig

    recipe = _recipe(options)
    shape = {"batch": options.batch or 32, "tokens": options.tokens or 512}
    model = model_of(recipe, shape["tokens"])
    difference = largest_difference(DiffmixConfig(**model["config"]))
    if difference > 1e-4:
        raise RequestError(
            f"both sides must compute the same, but their logits differ by {difference:.2g}: give another recipe"
        )
    theirs = {**model, "type": "obvious"}
    steps = alternate(
        {"ours": _step(options, model, **shape), "obvious": _step(options, theirs, **shape)},
        options.repetitions,
        notice=notice,
        worker=worker,
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npz"
        facts, vocabulary = _encode_train(recipe, options, shape["tokens"], rows, notice)
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
                "ours": {**common, "model": model, "pad_to": None},
                "obvious": {**common, "model": theirs, "pad_to": shape["tokens"]},
            },
            options.repetitions,
            notice=notice,
            worker=worker,
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


def scaling(options: Options, notice: Notice, worker: Any) -> dict[str, Any]:
    """Time and memory of a training step by length, one row, ours and softmax attention of the same width."""
    recipe = _recipe(options)
    lengths = [n for n in SCALING_TOKENS if n <= (options.tokens or SCALING_TOKENS[-1])]
    if not lengths:
        raise RequestError(f"tokens is {options.tokens}: give {SCALING_TOKENS[0]} or more, the longest row to measure")
    sides = {}
    for length in lengths:
        sides[f"ours/{length}"] = _step(options, model_of(recipe, length), batch=options.batch or 1, tokens=length)
    for length in lengths:
        if length <= SOFTMAX_TOKENS:
            softmax = {**model_of(recipe, length)}
            softmax["config"] = softmax_config(softmax["config"])
            sides[f"softmax/{length}"] = _step(options, softmax, batch=options.batch or 1, tokens=length)
    runs = alternate(sides, options.repetitions, notice=notice, worker=worker)
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


def operators(options: Options, notice: Notice, worker: Any) -> dict[str, Any]:
    """Candidates for the fast path of neighbour diffusion, three adjacent offsets, forward and backward."""
    from diffmix.benchmarks.operators import CANDIDATES, DTYPES

    shape = {"batch": options.batch or 32, "tokens": options.tokens or 512, "widths": [128, 256]}
    dtypes = list(DTYPES) if options.dtype == "auto" else [options.dtype]
    if not set(dtypes) <= set(DTYPES):
        raise RequestError(f"dtype is {options.dtype}: operators are measured in {', '.join(DTYPES)}")
    common = {"kind": "operators", **shape, "dtypes": dtypes, "device": options.device, "steps": options.steps}
    sides = {name: {**common, "candidate": name} for name in CANDIDATES}
    runs = alternate(sides, options.repetitions, notice=notice, worker=worker)
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


def parts(options: Options, notice: Notice, worker: Any) -> dict[str, Any]:
    """The parts of a step beside its products, as one writes them at first and as the library has them."""
    from diffmix.benchmarks.operators import DTYPES
    from diffmix.benchmarks.parts import SIDES

    if options.dtype not in DTYPES:
        raise RequestError(f"dtype is {options.dtype}: parts are measured in {', '.join(DTYPES)}")
    shape = {"batch": options.batch or 32, "tokens": options.tokens or 512, "width": 128}
    common = {"kind": "parts", **shape, "dtypes": [options.dtype], "device": options.device, "steps": options.steps}
    runs = alternate(
        {side: {**common, "side": side} for side in SIDES}, options.repetitions, notice=notice, worker=worker
    )
    keys = [key for key in runs["ours"][0] if "/" in key]
    return {
        "settings": shape,
        "sides": medians(runs),
        "ratios": {key: ratio(runs["plain"], runs["ours"], key) for key in keys},
    }


def paper_memory(options: Options, notice: Notice, worker: Any) -> dict[str, Any]:
    """Peak memory of the paper's model at 16 rows of 4,096 tokens: training, with checkpointing, inference."""
    shape = {"batch": options.batch or 16, "tokens": options.tokens or 4096}
    model = model_of(_recipe(options), shape["tokens"])
    narrow = "bf16" if options.device == "cpu" else "fp16"
    sides = {}
    for dtype in ("fp32", narrow):
        base = {**_step(options, model, **shape), "dtype": dtype}
        sides[f"training/{dtype}"] = base
        sides[f"training with checkpointing/{dtype}"] = {**base, "checkpointing": True}
        sides[f"inference/{dtype}"] = {**base, "training": False}
    runs = alternate(sides, options.repetitions, notice=notice, worker=worker)
    return {"settings": {**shape, "model": model}, "sides": medians(runs)}


BENCHMARKS: dict[str, Callable[[Options, Notice, Any], dict[str, Any]]] = {
    function.__name__: function for function in (distilbert, obvious, scaling, operators, parts, paper_memory)
}
DEFAULT_RECIPE = {
    "distilbert": "ag_news",
    "obvious": "imdb",
    "scaling": "ag_news",
    "operators": None,
    "parts": None,
    "paper_memory": "imdb_paper",
}


def model_of(recipe: Recipe, tokens: int) -> dict[str, Any]:
    """The recipe's own diffmix model for rows of `tokens`, as the worker builds it. Raises RequestError for others."""
    if recipe.model != "diffmix":
        raise RequestError(f"recipe {recipe.name} has model={recipe.model}: give a recipe with model=diffmix")
    config = {
        **recipe.config,
        "vocab_size": vocabulary_size(recipe.tokenizer),
        "pad_token_id": 0,
        "num_labels": LABELS,
        "max_position_embeddings": max(tokens, recipe.max_length),
    }
    return {"type": "diffmix", "config": config}


def softmax_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a softmax transformer with the width, depth and dropout of a neighbour model."""
    dropped = ("norm_placement", "position_embedding", "norm")
    kept = {key: value for key, value in config.items() if not key.startswith("neighbor_") and key not in dropped}
    return {**kept, "mixer": "softmax"}


def vocabulary_size(tokenizer: str) -> int:
    """How many tokens a recipe's tokenizer has; of one that is yet to be trained, as many as it may have."""
    trained = re.fullmatch(r"(?:wordpiece|bpe)-(\d+)", tokenizer)
    if trained:
        return int(trained[1])
    from diffmix.tasks.tokenizers import build_tokenizer

    return len(build_tokenizer(tokenizer, [], max_length=512))


def _recipe(options: Options) -> Recipe:
    from diffmix.experiments.compare import split_spec

    assert options.recipe is not None
    name, overrides = split_spec(options.recipe)
    return load_recipe(name, overrides)


def _step(options: Options, model: dict[str, Any], **shape: int) -> dict[str, Any]:
    return {
        "kind": "step",
        "model": model,
        **shape,
        "dtype": options.dtype,
        "device": options.device,
        "steps": options.steps,
    }


def _distilbert_config(tokens: int) -> dict[str, Any]:
    """DistilBERT's published shape, which its configuration class has as defaults (66 M parameters)."""
    from transformers import DistilBertConfig

    config = DistilBertConfig()
    return {
        "vocab_size": config.vocab_size,
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "hidden_dim": config.hidden_dim,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "max_position_embeddings": max(tokens, config.max_position_embeddings),
        "num_labels": LABELS,
    }


def _encode_train(
    recipe: Recipe, options: Options, max_length: int, path: Path, notice: Notice
) -> tuple[dict[str, Any], int]:
    """Encode the recipe's train rows for the workers: what they are, and the vocabulary's size."""
    from diffmix.benchmarks.steps import save_rows
    from diffmix.tasks import Examples, load_task
    from diffmix.tasks.encoding import encode
    from diffmix.tasks.tokenizers import build_tokenizer

    task = load_task(
        recipe.task,
        data=options.data,
        validation_fraction=recipe.validation_fraction,
        text_column=recipe.text_column,
        label_column=recipe.label_column,
        extra_train=recipe.extra_train,
        limit=options.limit or recipe.limit,
        on_notice=notice,
    )
    if not isinstance(task.train, Examples) or task.train.texts is None or task.train.pairs is not None:
        raise RequestError(
            f"task {recipe.task} has no single texts in memory: give a recipe of a text classification task"
        )
    notice(f"encoding {len(task.train):,} rows of {task.name}")
    tokenizer = build_tokenizer(recipe.tokenizer, task.train.tokenizer_texts(), max_length=max_length)
    dataset = encode(task.train, tokenizer, max_length)
    save_rows(dataset, path)
    facts = {
        "task": task.name,
        "rows": len(dataset),
        "real_tokens": int(dataset.lengths.sum()),
        "labels": len(task.label_names),
    }
    return facts, len(tokenizer)


def _slug(spec: str | None) -> str:
    name, _, overrides = portable_spec(spec or "").partition(":")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(name).stem}-{overrides}").strip("-")
