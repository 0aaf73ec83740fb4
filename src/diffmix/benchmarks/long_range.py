"""`diffmix bench long_range`: what each mixer costs as sequences grow, as the Long Range Arena's table of efficiency has it."""

from __future__ import annotations

from typing import Any

from diffmix.benchmarks.harness import Notice, alternate, medians, ratio
from diffmix.benchmarks.specs import LABELS, Options, step_spec
from diffmix.errors import RequestError

TOKENS = (1_024, 2_048, 4_096, 16_384, 65_536)
QUADRATIC = ("softmax", "heat_kernel")
LONG = 16_384  # beyond this one step of a quadratic mixer is measured, after one more
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
}
MIXERS: dict[str, dict[str, Any]] = {
    "neighbor": {
        "mixer": "neighbor",
        "neighbor_offsets": [[-1, 0, 1], [-2, 0, 2]],
        "norm_placement": "pre",
        "neighbor_alpha_mode": "residual",
    },
    "softmax": {"mixer": "softmax"},
    "heat_kernel": {"mixer": "heat_kernel"},
    "diffusion": {"mixer": "attention_diffusion", "diffusion_hops": 5},
    "sparse": {"mixer": "attention_diffusion", "diffusion_hops": 1, "diffusion_alpha": 0.0},
}


def long_range(options: Options, notice: Notice, workers: Any) -> dict[str, Any]:
    """A training step of each mixer by length (up to 65,536 tokens, or `tokens`), one row, equal width and depth."""
    lengths = [length for length in TOKENS if length <= (options.tokens or TOKENS[-1])]
    if not lengths:
        raise RequestError(f"tokens is {options.tokens}: give {TOKENS[0]} or more, the longest row to measure")
    batch = options.batch or 1
    sides = {}
    for length in lengths:
        for name, own in MIXERS.items():
            config = {**SHAPE, **own, "num_labels": LABELS, "max_position_embeddings": length}
            side = step_spec(options, {"type": "diffmix", "config": config}, batch=batch, tokens=length)
            once = {"steps": 1, "warmup": 1} if name in QUADRATIC and length > LONG else {}
            sides[f"{name}/{length}"] = {**side, "tuned": True, **once}
    runs = alternate(sides, options.repetitions, notice=notice, workers=workers)
    against = {"faster": "seconds_per_step", "less_memory": "peak_memory_bytes"}
    ratios = {
        f"{name}/{length}": {
            told: ratio(runs[f"softmax/{length}"], runs[f"{name}/{length}"], key) for told, key in against.items()
        }
        for name in MIXERS
        for length in lengths
        if name != "softmax"
    }
    return {
        "settings": {"batch": batch, "tokens": lengths, **SHAPE, "mixers": MIXERS},
        "sides": medians(runs),
        "ratios": ratios,
    }
