"""The tables of what `diffmix bench` measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffmix.experiments.markdown import caption, markdown, times
from diffmix.report.text import short_count, short_size

_DISTILBERT_RATIOS = ("less_memory", "less_memory_fused", "more_tokens_per_second", "more_tokens_per_second_fused")


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
        cells = [times(against[key]) for key in _DISTILBERT_RATIOS] if against else [""] * len(_DISTILBERT_RATIOS)
        memory, speed = short_size(side["peak_memory_bytes"]), short_count(side["tokens_per_second"])
        rows.append([title, short_count(side["parameters"]), memory, *cells[:2], speed, *cells[2:]])
    settings = result["settings"]
    about = (
        f"Training, {settings['batch']} rows of {settings['tokens']} tokens, {result['dtype']}, AdamW, no checkpointing. "
        "Without dropout on its attention weights DistilBERT can use fused attention on a CPU too."
    )
    headings = ["model", "parameters", "peak memory", "less than DistilBERT", "less than without attention dropout"]
    headings += ["tokens/s", "more than DistilBERT", "more than without attention dropout"]
    return f"{markdown(headings, rows)}\n\n{about} {caption(result)}"


def obvious_table(result: Mapping[str, Any]) -> str:
    """Our step beside the obvious implementation of the same."""
    equal, epoch = result["equal_batches"], result["epoch"]
    settings = result["settings"]
    facts = settings["epoch"]
    rows = [
        [
            f"equal batches, {settings['batch']} x {settings['tokens']} tokens: tokens/s",
            *(short_count(equal["sides"][side]["tokens_per_second"]) for side in ("ours", "obvious")),
            times(equal["ratios"]["more_tokens_per_second"]),
        ],
        [
            f"an epoch of {facts['task']}, {facts['rows']:,} rows at max_length {facts['max_length']}: real tokens/s",
            *(short_count(epoch["sides"][side]["real_tokens_per_second"]) for side in ("ours", "obvious")),
            times(epoch["ratios"]["more_real_tokens_per_second"]),
        ],
        [
            "the same epoch: peak memory",
            *(short_size(epoch["sides"][side]["peak_memory_bytes"]) for side in ("ours", "obvious")),
            f"{times(epoch['ratios']['less_memory'])} less",
        ],
    ]
    same = f"With equal weights the logits of both differ by at most {result['largest_logit_difference']:.1g} (fp32)."
    return f"{markdown(['', 'ours', 'obvious', 'ratio'], rows)}\n\n{same} {result['dtype']}. {caption(result)}"


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
        f"Four times the tokens, 65,536 against 16,384: {times(ratios['time'])} the time, {times(ratios['memory'])} the "
        "memory. "
        if ratios
        else ""
    )
    return f"{table}\n\n{growth}One training step, batch {result['settings']['batch']}, {result['dtype']}. {caption(result)}"


def long_range_table(result: Mapping[str, Any]) -> str:
    """Time and memory of a training step of each mixer by length, and against softmax."""
    settings, sides, ratios = result["settings"], result["sides"], result["ratios"]
    once = result["repetitions"] == 1
    rows = []
    for name in settings["mixers"]:
        for what, key, form in (
            ("time", "seconds_per_step", lambda seconds: f"{seconds:.3g} s"),
            ("memory", "peak_memory_bytes", short_size),
        ):
            cells = []
            for length in settings["tokens"]:
                parts = [form(sides[f"{name}/{length}"][key])]
                if f"{name}/{length}" in ratios:
                    better = ratios[f"{name}/{length}"]["faster" if what == "time" else "less_memory"]
                    parts.append(f"{better['median']:.3g}x" if once else times(better))
                cells.append(", ".join(parts))
            rows.append([f"`{name}`, {what}", *cells])
    headings = ["", *(f"{length:,} tokens" for length in settings["tokens"])]
    about = (
        f"One training step of {settings['num_hidden_layers']} layers of width {settings['hidden_size']}, batch "
        f"{settings['batch']}, {result['dtype']}; beside it how many times faster, or smaller, than `softmax`"
    )
    about += ". Measured once, so that nothing tells how far ratios vary." if once else ", with the range over pairs."
    return f"{markdown(headings, rows)}\n\n{about} {caption(result)}"


def generation_table(result: Mapping[str, Any]) -> str:
    """How long the generated sets take, and what their rows are like."""
    rows = []
    for name, side in result["sides"].items():
        told = {"length_median": "median length {:.0f}", "majority_share": "most frequent class {:.1%}"}
        told["connected_share"] = "connected {:.1%}"
        facts = ", ".join(form.format(side[key]) for key, form in told.items() if key in side)
        rows.append([f"`{name}`", f"{side['rows']:,}", f"{side['seconds']:.0f} s", facts])
    about = f"Drawn, checked and written, on {result['settings']['processors']} processors."
    return f"{markdown(['set', 'rows', 'time', 'over all rows'], rows)}\n\n{about} {caption(result)}"


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
    return f"{markdown(headings, rows)}\n\n{about} {caption(result)}"


def parts_table(result: Mapping[str, Any]) -> str:
    """The parts of a step beside its products, both ways."""
    plain, ours = result["sides"]["plain"], result["sides"]["ours"]
    rows = [
        [key.split("/")[0], f"{1e3 * plain[key]:.3g} ms", f"{1e3 * ours[key]:.3g} ms", times(ratio)]
        for key, ratio in result["ratios"].items()
    ]
    settings = result["settings"]
    about = (
        f"Forward and backward, {settings['batch']} x {settings['tokens']} tokens, D {settings['width']}, {result['dtype']}, "
        "unless a row says otherwise."
    )
    return f"{markdown(['part', 'as written at first', 'here', 'faster'], rows)}\n\n{about} {caption(result)}"


def paper_memory_table(result: Mapping[str, Any]) -> str:
    """Peak memory of the paper's model, by what is done and in which dtype."""
    rows = []
    for name, side in result["sides"].items():
        what, dtype = name.split("/")
        rows.append([what, dtype, short_size(side["peak_memory_bytes"]), f"{side['seconds_per_step']:.3g} s"])
    settings = result["settings"]
    about = f"`{result['recipe']}`, {settings['batch']} rows of {settings['tokens']:,} tokens."
    return f"{markdown(['', 'dtype', 'peak memory', 'time of a step'], rows)}\n\n{about} {caption(result)}"


def diffusion_table(result: Mapping[str, Any]) -> str:
    """Attention diffusion beside its peers: what each takes, and the ratios."""
    sides = []
    for name, side in result["sides"].items():
        what, tokens = name.split("/")
        cells = (f"{int(tokens):,}", f"{side['seconds']:.3g} s", short_size(side["peak_memory_bytes"]))
        sides.append([what.replace("_", " "), *cells])
    ratios = [[name, times(ratio)] for name, ratio in result["ratios"].items()]
    settings = result["settings"]
    pattern = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings["pattern"].items())
    about = (
        f"Forward and backward, one row, {settings['heads']} heads of {settings['channels']}, {pattern}, {settings['hops']} "
        f"hops, {result['dtype']}. Times are the fastest step of several; ratios of time are of "
        + result.get("note", "steps made in turn.")
    )
    tables = f"{markdown(['', 'tokens', 'time', 'memory'], sides)}\n\n{markdown(['', 'ratio'], ratios)}"
    return f"{tables}\n\n{about} {caption(result)}"


def heat_kernel_table(result: Mapping[str, Any]) -> str:
    """The time of each form at each length, as a ratio to torch's fused attention, and its memory against the definition's."""
    settings, ratios = result["settings"], result["ratios"]
    materialised = ratios["materialised"]
    rows = [
        [form, *(times(ratios[form][f"time/{n}"]) for n in settings["tokens"]), times(less)]
        for form, less in materialised.items()
    ]
    lengths = [f"{n:,} tokens" for n in settings["tokens"]]
    table = markdown(["form", *lengths, f"less memory than materialised, {lengths[-1]}"], rows)
    about = (
        f"Time of forward and backward as a ratio to `scaled_dot_product_attention`, {settings['heads']} heads of "
        f"{settings['channels']} channels, {result['dtype']}, rows that make {settings['tokens'][-1]:,} tokens, "
        "the smallest numbers counted as 0 on every side; median of pairs, and their range."
    )
    return f"{table}\n\n{about} {caption(result)}"


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
    return f"{markdown(headings, rows)}\n\n{about} {caption(result)}"


BENCHMARK_TABLES: dict[str, Callable[..., str]] = {
    "distilbert": distilbert_table,
    "obvious": obvious_table,
    "scaling": scaling_table,
    "operators": operators_table,
    "parts": parts_table,
    "heat_kernel": heat_kernel_table,
    "diffusion": diffusion_table,
    "kernels": diffusion_table,
    "long_range": long_range_table,
    "generation": generation_table,
    "paper_memory": paper_memory_table,
}
