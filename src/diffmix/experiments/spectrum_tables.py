"""The tables of `diffmix spectrum`, for the terminal and for docs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffmix.experiments.markdown import caption, markdown
from diffmix.report.patterns import by_pattern, pattern_name


def gap_table(result: Mapping[str, Any]) -> str:
    """λ_2 of each pattern by length, and at the greatest length against a random regular graph of the same degree."""
    lengths = result["settings"]["length"]
    rows = []
    for name, graphs in by_pattern(result["graphs"]).items():
        last = graphs[max(lengths)]
        cells = [f"{last['mean_degree']:.1f}", *(f"{graphs[n]['gap']:.3g}" for n in lengths)]
        regular = last.get("regular")
        share = "–" if regular is None or not regular["gap"] else f"{last['gap'] / regular['gap']:.2g}"
        cells += ["–" if regular is None else f"{regular['gap']:.3g}", share]
        rows.append([name, *cells])
    headings = ["pattern", "mean degree", *(f"gap, n = {n:,}" for n in lengths), "random regular", "share of it"]
    kind = (
        "The patterns are causal: their eigenvalues are 1 - 1/d of each token and measure no connection."
        if result["settings"]["causal"]
        else "The complete graph has gap 1 at every length."
    )
    about = f"Degree, random regular graph (of that degree) and the share at n = {max(lengths):,}. {kind}"
    return f"{markdown(headings, rows)}\n\n{about} {caption(result)}"


def reach_table(result: Mapping[str, Any]) -> str:
    """Hops that reach every pair, by length, and the share of pairs that few hops reach at the greatest length."""
    lengths = result["settings"]["length"]
    shown = (1, 2, 3, 5)
    rows, sampled = [], 0
    for name, graphs in by_pattern(result["graphs"]).items():
        last = graphs[max(lengths)]
        sampled = max(sampled, last["heard"] if last["heard"] < last["n"] else 0)
        cells = ["never" if graphs[n]["hops"] is None else str(graphs[n]["hops"]) for n in lengths]
        cells += [_share(last["reached"], hops) for hops in shown]
        cells.append(str(last["regular"]["hops"]) if "regular" in last else "–")
        rows.append([name, *cells])
    headings = [
        "pattern",
        *(f"hops, n = {n:,}" for n in lengths),
        *(f"after {hops}" for hops in shown),
        "random regular",
    ]
    pairs = "every token and every earlier one" if result["settings"]["causal"] else "every two tokens"
    about = f"Hops until {pairs} are joined; the share of pairs joined and the random regular graph at n = {max(lengths):,}."
    if sampled:
        about += f" Beyond 4,096 tokens {sampled} of the heard tokens are followed, the first and the last among them."
    return f"{markdown(headings, rows)}\n\n{about} {caption(result)}"


def map_table(result: Mapping[str, Any]) -> str:
    """What diffusion makes of the spectrum: formula, operator and limit."""
    return "\n\n".join([*(_one_map(mapped) for mapped in result["maps"]), caption(result)])


def _one_map(mapped: Mapping[str, Any]) -> str:
    rows = []
    for row in mapped["rows"]:
        name = (
            f"α = {row['alpha']:g}, K = {row['hops']}"
            if row["coefficients"] == "ppr"
            else f"heat, t = {row['time']:g}, K = {row['hops']}"
        )
        cells = [f"{row['gap']:.4f}", f"{row['formula_error']:.1e}"]
        cells += [
            _number(row.get(key), form) for key, form in (("limit_error", ".1e"), ("distance", ".3g"), ("bound", ".3g"))
        ]
        rows.append([name, *cells])
    headings = ["coefficients", "gap after", "formula against operator", "from the limit", "‖A_K - A_∞‖", "2(1-α)^K"]
    about = (
        f"{pattern_name(mapped['pattern'])}, n = {mapped['n']:,}, whose own gap is {mapped['gap']:.4f}; fp64. Formula against "
        "operator: the largest difference over all eigenvectors; from the limit: of an eigenvalue from that of endless hops; "
        "‖·‖: the largest absolute row sum."
    )
    return f"{markdown(headings, rows)}\n\n{about}"


def distance_table(result: Mapping[str, Any]) -> str:
    """Distance to full attention of each variant, by layer."""
    layers = range(result["model"]["layers"])
    rows = []
    for name, measured in result["variants"].items():
        variation, relative = (np.array(measured[key]).mean(axis=1) for key in ("total_variation", "frobenius"))
        title = {"sparse": "sparse (K=1, alpha=0)", "uniform": "uniform over all", "itself": "itself only"}.get(
            name, name
        )
        rows.append([title, *(f"{value:.3f}" for value in variation), *(f"{value:.3f}" for value in relative)])
    headings = ["attention"]
    headings += [f"{what}, layer {layer + 1}" for what in ("variation", "Frobenius") for layer in layers]
    outside = ", ".join(f"{np.mean(heads):.3f}" for heads in result["outside"])
    tokens = result["tokens"]
    about = (
        f"`{result['model']['name']}` (mixer {result['model']['mixer']}, {result['model']['heads']} heads) on {result['rows']} "
        f"validation rows of {result['task']}, {min(tokens)} to {max(tokens)} tokens; {pattern_name(result['pattern'])}, "
        f"density {result['density']:.1%}. Mean total variation of a row, and Frobenius norm relative to that of full attention, "
        f"each the mean over heads and rows. Full attention outside of the pattern, by layer: {outside}."
    )
    return f"{markdown(headings, rows)}\n\n{about} {caption(result)}"


PATTERN_TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "spectrum": gap_table,
    "spectrum_reach": reach_table,
    "spectrum_map": map_table,
}


def _share(reached: Sequence[float], hops: int) -> str:
    if not reached:
        return "–"
    share = reached[min(hops, len(reached)) - 1]
    return "all" if share == 1.0 else f"{min(100 * share, 99.99):.3g} %"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
