"""`diffmix bench diffusion` and `kernels`: what attention diffusion costs, as an operator and as a layer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from diffmix.benchmarks.harness import Notice, alternate, medians, ratio
from diffmix.benchmarks.specs import Options
from diffmix.errors import RequestError

TOKENS = 16_384
SHAPE = {"heads": 4, "channels": 64}
PATTERN = {"window": 64, "global_tokens": 16, "random_links": 8}
HOPS, ALPHA = 5, 0.1
LAYER_STEPS = 5  # steps of a layer for each step of the rest, which takes longer
WITHOUT_LINKS = {**PATTERN, "random_links": 0}  # what Longformer's layer hears
MEASURED_LAYERS = {
    "layer of 1 hop": (1, 0.0, WITHOUT_LINKS),
    f"layer of {HOPS} hops": (HOPS, ALPHA, WITHOUT_LINKS),
    "layer of 1 hop with links": (1, 0.0, PATTERN),
    f"layer of {HOPS} hops with links": (HOPS, ALPHA, PATTERN),
}
MATERIALISED = 7  # matrices of H·N² values that the definition holds at a time in its backward pass
SHORTEST = 4 * 2 * PATTERN["window"]  # so that a quarter is a multiple of Longformer's window


def diffusion(options: Options, notice: Notice, workers: Any) -> dict[str, Any]:
    """Attention diffusion, forward with backward, with N tokens (16,384, or `tokens`): against torch's fused attention at N,
    against itself at 2N, against an edge list at N/4, against its definition at N or, where memory is short, N/4; and as a layer
    with its projections, of 1 and of 5 hops, against Hugging Face's Longformer attention at N/4: on that one's pattern, which has
    no random links, and with them."""
    from diffmix.training.hardware import free_memory

    tokens = _tokens(options)
    short = tokens // 4
    needed = MATERIALISED * SHAPE["heads"] * tokens**2 * (4 if options.dtype == "fp32" else 2)
    free = free_memory()
    dense = tokens if free is None or needed < free else short

    side = functools.partial(_side, options)
    long = {
        f"ours/{tokens}": side("ours", tokens),
        f"ours/{2 * tokens}": side("ours", 2 * tokens),
        f"recompute/{tokens}": side("recompute", tokens),
        f"sdpa/{tokens}": side("sdpa", tokens),
    }
    layers = {
        f"{name}/{short}": {**side("layer", short, hops, alpha), "pattern": pattern}
        for name, (hops, alpha, pattern) in MEASURED_LAYERS.items()
    }
    layers[f"longformer/{short}"] = side("longformer", short)
    layers = {name: {**spec, "steps": LAYER_STEPS * options.steps} for name, spec in layers.items()}
    rest = {
        f"ours/{short}": side("ours", short),
        f"edge_list/{short}": side("edge_list", short),
        f"materialised/{dense}": {**side("materialised", dense), "steps": 1},
    }
    runs = {}
    for sides, together in ((long, True), (layers, True), (rest, False)):
        runs |= alternate(sides, options.repetitions, notice=notice, workers=workers, together=together)
    ours, sdpa = runs[f"ours/{tokens}"], runs[f"sdpa/{tokens}"]
    again, longformer = runs[f"recompute/{tokens}"], runs[f"longformer/{short}"]
    memory = "peak_memory_bytes"
    ratios = {
        "time of twice the tokens": ratio(runs[f"ours/{2 * tokens}"], ours, "seconds"),
        "faster than fused attention": ratio(sdpa, ours, "seconds"),
        "memory of fused attention": ratio(ours, sdpa, memory),
        "recomputing, faster than fused attention": ratio(sdpa, again, "seconds"),
        "recomputing, memory of fused attention": ratio(again, sdpa, memory),
        "less memory than materialised": ratio(runs[f"materialised/{dense}"], runs[f"ours/{dense}"], memory),
        "faster than an edge list": ratio(runs[f"edge_list/{short}"], runs[f"ours/{short}"], "seconds"),
    }
    for name in MEASURED_LAYERS:
        ratios[f"{name}, faster than Longformer's"] = ratio(longformer, runs[f"{name}/{short}"], "seconds")
        ratios[f"{name}, less memory than Longformer's"] = ratio(longformer, runs[f"{name}/{short}"], memory)
    return _result(tokens, runs, ratios)


def kernels(options: Options, notice: Notice, workers: Any) -> dict[str, Any]:
    """What may compute attention diffusion on CUDA, forward with backward, at N tokens (16,384, or `tokens`) and at 2N: blocks,
    Triton kernels, and torch's `flex_attention` hop by hop; beside torch's fused attention."""
    from diffmix.benchmarks.sparse_attention import CUDA_OPERATORS

    if options.device != "cuda":
        raise RequestError(
            f"device is {options.device}: kernels are measured on cuda; for a CPU there is bench diffusion"
        )
    tokens = _tokens(options)
    sides = {
        f"{name}/{length}": _side(options, name, length) for name in CUDA_OPERATORS for length in (tokens, 2 * tokens)
    }
    sides |= {f"sdpa/{tokens}": _side(options, "sdpa", tokens)}
    runs = alternate(sides, options.repetitions, notice=notice, workers=workers, together=True)
    blocked, ratios = runs[f"blocked/{tokens}"], {}
    for name in CUDA_OPERATORS:
        once, twice = runs[f"{name}/{tokens}"], runs[f"{name}/{2 * tokens}"]
        if name != "blocked":
            ratios[f"{name}, faster than blocks"] = ratio(blocked, once, "seconds")
            ratios[f"{name}, memory of blocks"] = ratio(once, blocked, "peak_memory_bytes")
        ratios[f"{name}, time of twice the tokens"] = ratio(twice, once, "seconds")
    return _result(tokens, runs, ratios)


def _tokens(options: Options) -> int:
    """The tokens of a row. Raises RequestError for what cannot be measured."""
    tokens = options.tokens or TOKENS
    if tokens < SHORTEST or tokens % SHORTEST:
        raise RequestError(f"tokens is {tokens}: give a multiple of {SHORTEST}")
    if options.dtype not in ("fp32", "bf16"):
        raise RequestError(f"dtype is {options.dtype}: diffusion is measured in fp32 and bf16")
    return tokens


def _side(options: Options, name: str, length: int, hops: int = HOPS, alpha: float = ALPHA) -> dict[str, Any]:
    fixed = {"dtype": options.dtype, "device": options.device, "steps": options.steps}
    asked = {"side": name, "tokens": length, "pattern": PATTERN, "hops": hops, "alpha": alpha}
    return {"kind": "sparse_attention", **asked, **SHAPE, **fixed}


def _result(tokens: int, runs: Mapping[str, Any], ratios: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "settings": {"tokens": tokens, **SHAPE, "pattern": PATTERN, "hops": HOPS, "alpha": ALPHA},
        "sides": medians(runs),
        "ratios": dict(ratios),
    }
