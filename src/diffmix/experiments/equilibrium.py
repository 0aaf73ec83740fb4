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
    output: Path = Path("results/equilibrium.json"),
    force: bool = False,
    notice: Callable[[str], None] = print,
) -> dict[str, Any]:
    """How far drift-diffusion over the keys is, over its time, from softmax(q·k / √d) and from the heat kernel softmax(q·k / 2t).

    Queries and keys are standard normal. For each query a walker starts at a key drawn evenly and moves from key i to key j at
    the rate exp((s_j - s_i) / 2) / n, with s = q·k / √d: it drifts towards the similar and diffuses otherwise. Distances are
    total variation, ½ Σ_j |p_j - w_j|.

    Args:
        output: the result file.
        force: replace it.
        notice: told what is written.

    Raises:
        RequestError: the file exists.
    """
    from diffmix.training.hardware import environment

    claim_result(output, force=force)
    random = np.random.default_rng(0)
    similarity = random.normal(size=(QUERIES, CHANNELS)) @ random.normal(size=(KEYS, CHANNELS)).T  # [Q, n]
    softmax = gibbs(similarity / CHANNELS**0.5)
    heat = gibbs(similarity / (2 * DIFFUSION_TIME))
    path = drift_diffusion(similarity / CHANNELS**0.5, TIMES)
    to_softmax, to_heat = distance(path, softmax), distance(path, heat)  # [times, Q]
    nearest = to_heat.min(axis=0)
    result = {
        "equilibrium": "drift-diffusion over the keys of a query",
        "command": "diffmix bench equilibrium",
        "environment": environment("cpu"),
        "queries": QUERIES,
        "keys": KEYS,
        "channels": CHANNELS,
        "diffusion_time": DIFFUSION_TIME,
        "to_softmax": {
            "start": float(np.median(to_softmax[0])),
            "end": float(to_softmax[-1].max()),
        },
        "heat_to_softmax": float(np.median(distance(heat, softmax))),
        "heat_to_nearest": {
            "median": float(np.median(nearest)),
            "low": float(np.quantile(nearest, 0.05)),
            "high": float(np.quantile(nearest, 0.95)),
        },
        "entropy": {
            "start": float(entropy(path[0]).mean()),
            "lowest_on_the_way": float(entropy(path).min(axis=0).mean()),
            "softmax": float(entropy(softmax).mean()),
            "heat": float(entropy(heat).mean()),
        },
    }
    write_result(output, result)
    notice(f"Wrote {output}")
    return result


def gibbs(scores: Floats) -> Floats:
    """softmax over the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def drift_diffusion(scores: Floats, times: Floats) -> Floats:
    """Where a walker is that moves from i to j at the rate exp((s_j - s_i) / 2) / n, started evenly: [times, Q, n].

    With r = exp(s / 2) the generator is similar, by diag(r), to a symmetric matrix: 1/n off the diagonal, which makes its
    eigenvectors exact ones.
    """
    root = np.exp((scores - scores.max(axis=-1, keepdims=True)) / 2)  # [Q, n]
    keys = scores.shape[-1]
    symmetric = np.full((*scores.shape, keys), 1 / keys)
    diagonal = np.arange(keys)
    symmetric[:, diagonal, diagonal] = 1 / keys - root.sum(axis=-1, keepdims=True) / root / keys
    rates, modes = np.linalg.eigh(symmetric)
    start = np.einsum("qi,qim->qm", 1 / (root * keys), modes)
    decayed = np.exp(rates * times[:, None, None]) * start  # [times, Q, modes]
    return np.einsum("tqm,qjm->tqj", decayed, modes, optimize=True) * root


def distance(one: Floats, other: Floats) -> Floats:
    """Total variation over the last axis."""
    return np.abs(one - other).sum(axis=-1) / 2


def entropy(chances: Floats) -> Floats:
    """-Σ p ln p over the last axis, in nats."""
    positive = np.clip(chances, np.finfo(float).tiny, None)
    return -(positive * np.log(positive)).sum(axis=-1)
