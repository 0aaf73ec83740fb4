"""Is softmax attention where drift-diffusion ends, and a heat kernel where it is stopped? Numerically, query by query.

Q queries, n keys, d channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmix.experiments.results import claim_result, write_result

QUERIES, KEYS, CHANNELS = 256, 64, 64
DIFFUSION_TIME = 0.28  # the paper's, at 4 layers
TIMES = np.logspace(-3, 4, 281)  # of the process, in units of the mean time between two moves at equal scores

Floats = NDArray[np.float64]


def measure_equilibrium(
    *,
    output: Path | None = None,
    force: bool = False,
    notice: Callable[[str], None] = print,
) -> dict[str, Any]:
    """How far drift-diffusion over the keys is, over its time, from softmax(q·k / √d) and from the heat kernel in two forms.

    Queries and keys are standard normal. For each query a walker moves from key i to key j at the rate exp((s_j - s_i) / 2) / n,
    with s = q·k / √d: it drifts towards the similar and diffuses otherwise. It starts at a key drawn evenly, or at the most
    similar one. Heat kernels are softmax(q·k / 2t), `dot`, and softmax(cos(q, k) / 2t), `normalized`, at t = DIFFUSION_TIME.
    Distances are total variation, ½ Σ_j |p_j - w_j|.

    Args:
        output: the result file; None: results/equilibrium.json.
        force: replace it.
        notice: told what is written.

    Raises:
        RequestError: the file exists.
    """
    from diffmix.training.hardware import environment

    output = Path("results/equilibrium.json") if output is None else output
    claim_result(output, force=force)
    random = np.random.default_rng(0)
    query, key = random.normal(size=(QUERIES, CHANNELS)), random.normal(size=(KEYS, CHANNELS))
    similarity = query @ key.T  # [Q, n]
    cosine = similarity / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(key, axis=1)
    scores = similarity / CHANNELS**0.5
    softmax = gibbs(scores)
    heat = {form: gibbs(of / (2 * DIFFUSION_TIME)) for form, of in (("dot", similarity), ("normalized", cosine))}
    starts = {"even": np.full_like(scores, 1 / KEYS), "nearest": np.eye(KEYS)[scores.argmax(axis=1)]}
    paths = {start: drift_diffusion(scores, TIMES, chances) for start, chances in starts.items()}  # [times, Q, n]
    to_softmax = {start: distance(path, softmax) for start, path in paths.items()}
    result = {
        "equilibrium": "drift-diffusion over the keys of a query",
        "command": "diffmix bench equilibrium",
        "environment": environment("cpu"),
        "queries": QUERIES,
        "keys": KEYS,
        "channels": CHANNELS,
        "diffusion_time": DIFFUSION_TIME,
        "to_softmax": {
            start: {"start": float(np.median(over[0])), "end": float(over[-1].max())}
            for start, over in to_softmax.items()
        },
        "heat_to_softmax": {form: float(np.median(distance(kernel, softmax))) for form, kernel in heat.items()},
        "heat_to_nearest": {
            form: {start: _spread(distance(path, kernel).min(axis=0)) for start, path in paths.items()}
            for form, kernel in heat.items()
        },
        "entropy": {
            **{f"start, {start}": float(entropy(path[0]).mean()) for start, path in paths.items()},
            "softmax": float(entropy(softmax).mean()),
            **{form: float(entropy(kernel).mean()) for form, kernel in heat.items()},
        },
    }
    write_result(output, result)
    notice(f"Wrote {output}")
    return result


def _spread(values: Floats) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    return {"low": float(low), "median": float(median), "high": float(high)}


def gibbs(scores: Floats) -> Floats:
    """softmax over the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def drift_diffusion(scores: Floats, times: Floats, start: Floats) -> Floats:
    """Where a walker is that moves from i to j at the rate exp((s_j - s_i) / 2) / n: [Q, n], from `start` [Q, n] → [times, Q, n].

    With r = exp(s / 2) the generator is similar, by diag(r), to a symmetric matrix: 1/n off the diagonal, which makes its
    eigenvectors exact ones.
    """
    root = np.exp((scores - scores.max(axis=-1, keepdims=True)) / 2)  # [Q, n]
    keys = scores.shape[-1]
    symmetric = np.full((*scores.shape, keys), 1 / keys)
    diagonal = np.arange(keys)
    symmetric[:, diagonal, diagonal] = 1 / keys - root.sum(axis=-1, keepdims=True) / root / keys
    rates, modes = np.linalg.eigh(symmetric)
    amplitudes = np.einsum("qi,qim->qm", start / root, modes)
    decayed = np.exp(rates * times[:, None, None]) * amplitudes  # [times, Q, modes]
    return np.einsum("tqm,qjm->tqj", decayed, modes, optimize=True) * root


def distance(one: Floats, other: Floats) -> Floats:
    """Total variation over the last axis."""
    return np.abs(one - other).sum(axis=-1) / 2


def entropy(chances: Floats) -> Floats:
    """-Σ p ln p over the last axis, in nats."""
    positive = np.clip(chances, np.finfo(float).tiny, None)
    return -(positive * np.log(positive)).sum(axis=-1)
