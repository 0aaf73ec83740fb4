"""The tables of README and docs, generated from `results/`: `python -m diffmix.experiments.tables [--check]`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. NAME is one of `TABLES`, or the stem of a comparison's or a
study's file (`compare-NAME`, `study-NAME`). Nothing between the marks is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmix.errors import RequestError
from diffmix.experiments import claims_diffuser, claims_heat_kernel, claims_neighbor
from diffmix.experiments.claims import claims_table
from diffmix.experiments.results import describe_environment, read_result
from diffmix.report.text import short_count, short_size

_DISTILBERT_RATIOS = ("less_memory", "less_memory_fused", "more_tokens_per_second", "more_tokens_per_second_fused")
_CLAIMS = {
    "claims-neighbor": claims_neighbor.CLAIMS,
    "claims-heat_kernel": claims_heat_kernel.CLAIMS,
    "claims-diffuser": claims_diffuser.CLAIMS,
}
_BLOCK = re.compile(r"<!-- table: (?P<name>[^>]*?) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)


def regenerate(root: Path, *, check: bool = False) -> list[Path]:
    """Rewrite the tables in README.md and docs/*.md under `root`: the files whose text changed, or would with `check`.

    Raises RequestError, with every file left as it was, for an unknown table, a missing result, or an unclosed block.
    """
    texts = {}
    for path in [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]:
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        if text.count("<!-- table:") != len(_BLOCK.findall(text)):
            raise RequestError(f"{path} has a table without an end: write <!-- end --> on a line after it")
        texts[path] = (text, _BLOCK.sub(lambda block, place=path: _filled(block, root, place), text))
    changed = [path for path, (before, after) in texts.items() if before != after]
    if not check:
        for path in changed:
            path.write_text(texts[path][1], encoding="utf-8")
    return changed


def _filled(block: re.Match[str], root: Path, place: Path) -> str:
    name = block["name"].strip()
    try:
        table = make_table(name, root / "results")
    except RequestError as error:
        raise RequestError(f"{place.name}, table {name}: {error}") from None
    return f"<!-- table: {name} -->\n{table.strip()}\n<!-- end -->"


def make_table(name: str, results: Path) -> str:
    """The Markdown of the table `name`. Raises RequestError where it is unknown or its result is missing."""
    if name in _CLAIMS:
        return claims_table(_CLAIMS[name], results)
    if name in TABLES:
        files, make = TABLES[name]
    elif name.startswith("compare-"):
        files, make = (name,), comparison_table
    elif name.startswith("bench-distilbert-"):
        files, make = (name,), distilbert_table
    elif name.startswith("bench-obvious-"):
        files, make = (name,), obvious_table
    elif name.startswith("convergence-"):
        files, make = (name,), convergence_table
    elif name.startswith("study-"):
        from diffmix.experiments.study_summary import study_table  # which lays its tables out with `markdown`

        files, make = (name,), study_table
    elif name.startswith("spectrum"):
        from diffmix.experiments import spectrum_tables  # which lays its tables out with `markdown`

        of_patterns = spectrum_tables.TABLES.get(name)
        files, make = ((name,), spectrum_tables.distance_table) if of_patterns is None else (("spectrum",), of_patterns)
    elif name.startswith("swap-"):
        from diffmix.experiments.swap import swap_table

        files, make = (name,), swap_table
    else:
        known = ", ".join([*TABLES, *_CLAIMS])
        raise RequestError(
            f"there is no such table: give one of {known}, or compare-NAME or study-NAME for that file of results/"
        )
    return make(*(read_result(results / f"{file}.json") for file in files))


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text too; the first is text, the others are numbers."""
    table = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [headings, *rows]]
    widths = [max(3, *(len(row[column]) for row in table)) for column in range(len(headings))]
    rule = [f"{'-' * (width - 1)}:" if column else "-" * width for column, width in enumerate(widths)]
    lines = []
    for row in [table[0], rule, *table[1:]]:
        cells = [
            cell.rjust(w) if column else cell.ljust(w) for column, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison_table(*comparisons: Mapping[str, Any]) -> str:
    """Accuracy, calibration and cost of each recipe of one or several comparisons."""
    return "\n\n".join(_one_comparison(comparison) for comparison in comparisons)


def _one_comparison(comparison: Mapping[str, Any]) -> str:
    body, examples = [], set()
    for row in comparison["rows"]:
        metrics = row["metrics"]
        split = "test" if "test/accuracy" in metrics else "validation"
        examples.add(f"{metrics.get(f'{split}/n', 0):,.0f} {split} rows")
        epoch = metrics.get("train/seconds_per_epoch")
        body.append(
            [
                f"`{row['recipe']}`",
                _with_interval(metrics, f"{split}/accuracy", lambda x: f"{100 * x:.2f}"),
                _with_interval(metrics, f"{split}/nll", lambda x: f"{x:.4f}"),
                _with_interval(metrics, f"{split}/ece", lambda x: f"{x:.4f}"),
                _shown(metrics.get("train/peak_memory_bytes"), short_size),
                _shown(epoch, lambda x: f"{x:.3g}"),
                _shown(metrics.get("train/seconds"), lambda x: f"{x:.0f}"),
                _shown(metrics.get("train/tokens_per_second"), short_count),
                _shown(metrics.get("parameters"), short_count),
                _shown(metrics.get("train/examples"), lambda x: f"{x:,.0f}"),
            ]
        )
    headings = [
        "recipe",
        "accuracy, %",
        "NLL",
        "ECE",
        "peak memory",
        "s/epoch",
        "training, s",
        "tokens/s",
        "parameters",
        "train rows",
    ]
    seeds = comparison["seeds"]
    interval = (
        f"mean of {seeds} seeds with its 95 % t-interval"
        if seeds > 1
        else "one seed, 95 % bootstrap interval over the rows"
    )
    environments = [row.get("environment", {}) for row in comparison["rows"]]
    revisions = sorted({str(made["revision"])[:8] for made in environments if made.get("revision")})
    trained = f" Rows were trained at revisions {', '.join(revisions)}." if len(revisions) > 1 else ""
    return f"{markdown(headings, body)}\n\n{', '.join(sorted(examples))}; {interval}. {_caption(comparison)}{trained}"


def distilbert_table(result: Mapping[str, Any]) -> str:
    """Training steps of our models beside DistilBERT's shape."""
    sides, ratios = result["sides"], result["ratios"]
    rows = []
    for name, title in (
        ("ours", f"`{result['recipe']}`"),
        ("paper", "`ag_news_paper`"),
        ("distilbert", "DistilBERT"),
        ("distilbert_fused", "DistilBERT without attention dropout"),
    ):
        side, against = sides[name], ratios.get(name)
        cells = [_times(against[key]) for key in _DISTILBERT_RATIOS] if against else [""] * len(_DISTILBERT_RATIOS)
        memory, speed = short_size(side["peak_memory_bytes"]), short_count(side["tokens_per_second"])
        rows.append([title, short_count(side["parameters"]), memory, *cells[:2], speed, *cells[2:]])
    settings = result["settings"]
    about = (
        f"Training, {settings['batch']} rows of {settings['tokens']} tokens, {result['dtype']}, AdamW, no checkpointing. "
        "Without dropout on its attention weights DistilBERT can use fused attention on a CPU too."
    )
    headings = ["model", "parameters", "peak memory", "less than DistilBERT", "less than without attention dropout"]
    headings += ["tokens/s", "more than DistilBERT", "more than without attention dropout"]
    return f"{markdown(headings, rows)}\n\n{about} {_caption(result)}"


def obvious_table(result: Mapping[str, Any]) -> str:
    """Our step beside the obvious implementation of the same."""
    equal, epoch = result["equal_batches"], result["epoch"]
    settings = result["settings"]
    facts = settings["epoch"]
    rows = [
        [
            f"equal batches, {settings['batch']} x {settings['tokens']} tokens: tokens/s",
            *(short_count(equal["sides"][side]["tokens_per_second"]) for side in ("ours", "obvious")),
            _times(equal["ratios"]["more_tokens_per_second"]),
        ],
        [
            f"an epoch of {facts['task']}, {facts['rows']:,} rows at max_length {facts['max_length']}: real tokens/s",
            *(short_count(epoch["sides"][side]["real_tokens_per_second"]) for side in ("ours", "obvious")),
            _times(epoch["ratios"]["more_real_tokens_per_second"]),
        ],
        [
            "the same epoch: peak memory",
            *(short_size(epoch["sides"][side]["peak_memory_bytes"]) for side in ("ours", "obvious")),
            f"{_times(epoch['ratios']['less_memory'])} less",
        ],
    ]
    same = f"With equal weights the logits of both differ by at most {result['largest_logit_difference']:.1g} (fp32)."
    return f"{markdown(['', 'ours', 'obvious', 'ratio'], rows)}\n\n{same} {result['dtype']}. {_caption(result)}"


def scaling_table(result: Mapping[str, Any]) -> str:
    """Time and memory of a training step by length."""
    sides = result["sides"]
    rows = []
    for length in result["settings"]["tokens"]:
        ours, softmax = sides[f"ours/{length}"], sides.get(f"softmax/{length}")
        cells = [f"{ours['seconds_per_step']:.3g} s", short_size(ours["peak_memory_bytes"])]
        cells += (
            ["not run"] * 2
            if softmax is None
            else [f"{softmax['seconds_per_step']:.3g} s", short_size(softmax["peak_memory_bytes"])]
        )
        rows.append([f"{length:,}", *cells])
    table = markdown(["tokens", "ours, time", "ours, memory", "softmax, time", "softmax, memory"], rows)
    ratios = result["ratios"]
    growth = (
        f"Four times the tokens, 65,536 against 16,384: {_times(ratios['time'])} the time, {_times(ratios['memory'])} the "
        "memory. "
        if ratios
        else ""
    )
    return f"{table}\n\n{growth}One training step, batch {result['settings']['batch']}, {result['dtype']}. {_caption(result)}"


def long_range_table(result: Mapping[str, Any]) -> str:
    """Time and memory of a training step of each mixer by length, and against softmax."""
    settings, sides, ratios = result["settings"], result["sides"], result["ratios"]
    rows = []
    for name in settings["mixers"]:
        for what, key, form in (
            ("time", "seconds_per_step", lambda seconds: f"{seconds:.3g} s"),
            ("memory", "peak_memory_bytes", short_size),
        ):
            cells = []
            for length in settings["tokens"]:
                against = ratios.get(f"{name}/{length}")
                better = against and against["faster" if what == "time" else "less_memory"]["median"]
                cells.append(form(sides[f"{name}/{length}"][key]) + (f" ({better:.3g}x)" if better else ""))
            rows.append([f"`{name}`, {what}", *cells])
    headings = ["", *(f"{length:,} tokens" for length in settings["tokens"])]
    about = (
        f"One training step of {settings['num_hidden_layers']} layers of width {settings['hidden_size']}, batch "
        f"{settings['batch']}, {result['dtype']}; in brackets how many times faster, or smaller, than `softmax`."
    )
    return f"{markdown(headings, rows)}\n\n{about} {_caption(result)}"


def operators_table(result: Mapping[str, Any]) -> str:
    """The candidates for the fast path, in milliseconds and against the rolled linears."""
    sides, ratios = result["sides"], result["ratios"]
    keys = [key for key in sides["library"] if "/" in key]
    names = {"forward": "forward", "both": "forward + backward"}
    headings = ["candidate"]
    for key in keys:
        what, dtype, width = key.split("/")
        headings.append(f"{names[what]}, {dtype}, D {width}")
    rows = []
    for name, side in sides.items():
        cells = []
        for key in keys:
            faster = f" ({ratios[name][key]['median']:.2f}x)" if name in ratios else ""
            cells.append(f"{1e3 * side[key]:.3g} ms{faster}")
        rows.append([f"`{name}`", *cells])
    settings = result["settings"]
    about = f"{settings['batch']} x {settings['tokens']} tokens, offsets -1, 0, 1; in brackets the speed against rolled_linears."
    return f"{markdown(headings, rows)}\n\n{about} {_caption(result)}"


def parts_table(result: Mapping[str, Any]) -> str:
    """The parts of a step beside its products, both ways."""
    plain, ours = result["sides"]["plain"], result["sides"]["ours"]
    rows = [
        [key.split("/")[0], f"{1e3 * plain[key]:.3g} ms", f"{1e3 * ours[key]:.3g} ms", _times(ratio)]
        for key, ratio in result["ratios"].items()
    ]
    settings = result["settings"]
    about = f"Forward and backward, {settings['batch']} x {settings['tokens']} tokens, D {settings['width']}, {result['dtype']}."
    return f"{markdown(['part', 'as written at first', 'here', 'faster'], rows)}\n\n{about} {_caption(result)}"


def paper_memory_table(result: Mapping[str, Any]) -> str:
    """Peak memory of the paper's model, by what is done and in which dtype."""
    rows = []
    for name, side in result["sides"].items():
        what, dtype = name.split("/")
        rows.append([what, dtype, short_size(side["peak_memory_bytes"]), f"{side['seconds_per_step']:.3g} s"])
    settings = result["settings"]
    about = f"`{result['recipe']}`, {settings['batch']} rows of {settings['tokens']:,} tokens."
    return f"{markdown(['', 'dtype', 'peak memory', 'time of a step'], rows)}\n\n{about} {_caption(result)}"


def diffusion_table(result: Mapping[str, Any]) -> str:
    """Attention diffusion beside its peers: what each takes, and the ratios."""
    sides = []
    for name, side in result["sides"].items():
        what, tokens = name.split("/")
        cells = (f"{int(tokens):,}", f"{side['seconds']:.3g} s", short_size(side["peak_memory_bytes"]))
        sides.append([what.replace("_", " "), *cells])
    ratios = [[name, _times(ratio)] for name, ratio in result["ratios"].items()]
    settings = result["settings"]
    pattern = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings["pattern"].items())
    about = (
        f"Forward and backward, one row, {settings['heads']} heads of {settings['channels']}, {pattern}, {settings['hops']} "
        f"hops, {result['dtype']}."
    )
    tables = f"{markdown(['', 'tokens', 'time', 'memory'], sides)}\n\n{markdown(['', 'ratio'], ratios)}"
    return f"{tables}\n\n{about} {_caption(result)}"


def heat_kernel_table(result: Mapping[str, Any]) -> str:
    """The time of each form at each length, as a ratio to torch's fused attention, and its memory against the definition's."""
    settings, ratios = result["settings"], result["ratios"]
    materialised = ratios["materialised"]
    rows = [
        [form, *(_times(ratios[form][f"time/{n}"]) for n in settings["tokens"]), _times(less)]
        for form, less in materialised.items()
    ]
    lengths = [f"{n:,} tokens" for n in settings["tokens"]]
    table = markdown(["form", *lengths, f"less memory than materialised, {lengths[-1]}"], rows)
    about = (
        f"Time of forward and backward as a ratio to `scaled_dot_product_attention`, {settings['heads']} heads of "
        f"{settings['channels']} channels, {result['dtype']}, rows that make {settings['tokens'][-1]:,} tokens, "
        "the smallest numbers counted as 0 on every side; median of pairs, and their range."
    )
    return f"{table}\n\n{about} {_caption(result)}"


def convergence_table(result: Mapping[str, Any]) -> str:
    """The change per step and the accuracy, at a few steps."""
    steps = result["steps"]
    shown = sorted(
        {1, 2, result["trained_steps"], *(2**k for k in range(2, 12)), len(steps)} & set(range(1, len(steps) + 1))
    )
    rows = []
    for number in shown:
        step = steps[number - 1]
        mark = " (as trained)" if number == result["trained_steps"] else ""
        rows.append(
            [
                f"{number}{mark}",
                f"{step['median']:.3g}",
                f"{step['low']:.3g} to {step['high']:.3g}",
                f"{100 * step['accuracy']:.2f} %",
            ]
        )
    headings = ["step", "median of the relative change", "5 % to 95 % of sequences", "accuracy after it"]
    about = f"{result['sequences']:,} validation rows of {result['task']}, model `{result['recipe']}`."
    return f"{markdown(headings, rows)}\n\n{about} {_caption(result)}"


TABLES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "classifiers": (("compare-ag_news", "compare-imdb"), comparison_table),
    "demo": (("compare-language_id",), comparison_table),
    "distilbert": (("bench-distilbert",), distilbert_table),
    "obvious": (("bench-obvious",), obvious_table),
    "scaling": (("bench-scaling",), scaling_table),
    "operators": (("bench-operators",), operators_table),
    "parts": (("bench-parts",), parts_table),
    "heat_kernel": (("bench-heat_kernel",), heat_kernel_table),
    "diffusion": (("bench-diffusion",), diffusion_table),
    "long_range": (("bench-long_range",), long_range_table),
    "paper_memory": (("bench-paper_memory",), paper_memory_table),
    "convergence": (("convergence",), convergence_table),
}


def _caption(result: Mapping[str, Any]) -> str:
    return f"`{result['command']}` on {describe_environment(result['environment'])}."


def _with_interval(metrics: Mapping[str, Any], key: str, form: Callable[[float], str]) -> str:
    value, low, high = metrics.get(key), metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    if value is None:
        return "–"
    return form(value) if low is None or high is None else f"{form(value)} ({form(low)} to {form(high)})"


def _shown(value: float | None, form: Callable[[float], str]) -> str:
    return "–" if value is None else form(value)


def _times(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['median']:.3g}x ({ratio['low']:.3g} to {ratio['high']:.3g})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the tables under the current folder; with --check only say which files would change (exit code 1)."""
    parser = argparse.ArgumentParser(description="Rewrite the tables of README.md and docs/*.md from results/*.json.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a table is out of date")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository's folder")
    asked = parser.parse_args(arguments)
    try:
        changed = regenerate(asked.root, check=asked.check)
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in changed:
        print(f"{path} {'is out of date: run make results' if asked.check else 'rewritten'}")
    return int(asked.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
