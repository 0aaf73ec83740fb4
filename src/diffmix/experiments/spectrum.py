"""`diffmix spectrum`: how well patterns connect their tokens, measured over lengths, windows, global tokens and links.

n tokens, λ an eigenvalue of the Laplacian I - A of `diffmix.spectrum`, μ = 1 - λ, K hops, θ their weights.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from diffmix.errors import RequestError
from diffmix.experiments.results import claim_result, write_result
from diffmix.patterns import SparsePattern

FULL = 1024  # tokens up to which all eigenvalues are drawn
CHECKED = 512  # tokens on which the operator is looked at eigenvector by eigenvector
REACH = 4096  # tokens up to which every pair is looked for; beyond, SAMPLE of the tokens that are heard
SAMPLE = 512
EDGES = 2**25  # of a graph: some GB of work
BINS = np.linspace(0.0, 2.0, 101)
POINTS = 24  # of the figure of the map


@dataclasses.dataclass(frozen=True)
class Grid:
    """The patterns, all combinations of the first four, and the coefficients that are looked at."""

    length: tuple[int, ...] = (256, 1024, 4096)
    window: tuple[int, ...] = (64,)
    global_tokens: tuple[int, ...] = (16,)
    random_links: tuple[int, ...] = (8,)
    alpha: tuple[float, ...] = (0.1,)
    hops: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 200)
    time: tuple[float, ...] = (1.0, 3.0)
    causal: bool = False
    seed: int = 0

    def patterns(self) -> list[SparsePattern]:
        """Every combination. Raises RequestError for a number that no pattern takes."""
        chosen = itertools.product(self.window, self.global_tokens, self.random_links)
        try:
            return [SparsePattern(*each, causal=self.causal, seed=self.seed) for each in chosen]
        except ValueError as error:
            raise RequestError(str(error)) from None


def measure_spectrum(
    grid: Grid = Grid(),
    *,
    output: Path | None = None,
    figures: Path | None = None,
    command: str = "diffmix spectrum",
    force: bool = False,
    notice: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Gaps, spectra, reach and the map of the spectrum by diffusion.

    `graphs`: of each pattern and length the degree, λ_2 and λ_n, the share of pairs reached by hops, and the same of a random
    regular graph of that degree. (The complete graph has λ_2 = … = λ_n = 1 and reaches all in a hop.) `spectra`: histograms of
    all λ at up to FULL tokens. `maps`: what `diffmix.ops.attention_diffusion` with equal scores makes of every eigenvalue of the
    first and of the last pattern on up to CHECKED tokens, against the formulas.

    Args:
        grid: see `Grid`.
        output: a result file; None: none.
        figures: a folder for four figures as PNG and SVG; None: none.
        command: what repeats it, for the record.
        force: replace what is there.
        notice: told what is written.

    Raises:
        RequestError: a grid that makes no sense or too large a graph, a file that exists.
    """
    patterns = _checked(grid)
    if output is not None:
        claim_result(output, force=force)
    from diffmix.report.spectrum_figures import claim_figures, spectrum_figures, write_figures

    if figures is not None:
        claim_figures(figures, ("gap", "density", "map", "reach"), force=force)
    from tqdm import tqdm

    from diffmix.training.hardware import environment

    every = list(itertools.product(patterns, grid.length))
    ends = list(dict.fromkeys([patterns[0], patterns[-1]]))
    with tqdm(total=len(every) + len(patterns) + len(ends), unit="graph", disable=None) as bar:
        graphs = []
        for pattern, n in every:
            graphs.append(_measure_graph(pattern, n))
            bar.update()
        spectra = []
        for pattern in patterns:
            spectra.append(_spectrum(pattern, min(max(grid.length), FULL)))
            bar.update()
        maps = []
        for pattern in ends:
            maps.append(measure_map(pattern, min(max(grid.length), CHECKED), grid))
            bar.update()
    result = {
        "spectrum": "patterns",
        "command": command,
        "environment": environment("cpu"),
        "settings": dataclasses.asdict(grid),
        "graphs": graphs,
        "spectra": spectra,
        "maps": maps,
    }
    if output is not None:
        write_result(output, result)
        notice(f"Wrote {output}")
    if figures is not None:
        write_figures(figures, spectrum_figures(result))
        notice(f"Wrote four figures as PNG and SVG to {figures}")
    return result


def measure_map(pattern: SparsePattern, n: int, grid: Grid) -> dict[str, Any]:
    """What the operator makes of the eigenvalues of the uniform attention A of a pattern, against the formulas.

    With equal scores for all edges the operator's attention is A, and of the identity it makes G = Σ_k θ_k A^k. In the
    eigenvectors of A, G is a diagonal matrix: `formula_error` is the largest difference of any of its entries from diag(μ̃) (of
    a causal pattern, of G's diagonal, which holds its eigenvalues). `limit_error`: the largest |λ̃ - limit|. `distance`:
    max_i Σ_j |G - G_∞|_ij, which is how much an output can change with ‖V‖∞ = 1; `bound` is 2(1-α)^K.
    """
    import torch

    from diffmix import spectrum
    from diffmix.ops.attention_diffusion import attention_diffusion
    from diffmix.ops.coefficients import heat, personalized_pagerank

    matrix = spectrum.graph(pattern, n).toarray()
    degree = matrix.sum(axis=1)
    attention = matrix / degree[:, None]
    if pattern.causal:
        mu, vectors = 1.0 / degree, None
    else:
        mu, vectors = np.linalg.eigh(matrix / np.sqrt(degree[:, None] * degree))
    order = np.argsort(-mu)
    zeros, identity = torch.zeros(1, 1, n, 1, dtype=torch.float64), torch.eye(n, dtype=torch.float64)[None, None]

    def operate(theta: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        """G, and G in the eigenvectors of A."""
        result = attention_diffusion(zeros, zeros, identity, pattern, coefficients=theta)[0, 0].numpy()
        if vectors is None:
            return result, np.diag(np.diag(result))
        return result, vectors.T @ (np.sqrt(degree)[:, None] * result / np.sqrt(degree)) @ vectors

    # The eigenvalues nearest to equally spaced ones, for most of them crowd around 0.
    wanted = np.linspace(mu.min(), mu.max(), POINTS)
    drawn = np.unique(np.abs(mu - wanted[:, None]).argmin(axis=1))
    rows: list[dict[str, Any]] = []

    def add(expected: np.ndarray, found: np.ndarray, limit: np.ndarray | None, **facts: Any) -> None:
        rows.append(
            {
                **facts,
                "gap": float(1.0 - expected[order[1]]),
                "formula_error": float(np.abs(found - np.diag(expected)).max()),
                "limit_error": None if limit is None else float(np.abs(expected - (1.0 - limit)).max()),
                "points": [float(value) for value in np.diag(found)[drawn]],
            }
        )

    for alpha in grid.alpha:
        final = alpha * np.linalg.inv(np.eye(n) - (1.0 - alpha) * attention) if alpha > 0 else None
        limit = spectrum.pagerank_limit(1.0 - mu, alpha) if alpha > 0 else None
        for hops in grid.hops:
            result, found = operate(personalized_pagerank(alpha, hops))
            apart = None if final is None else float(np.abs(result - final).sum(axis=1).max())
            facts = {"coefficients": "ppr", "alpha": alpha, "hops": hops, "distance": apart}
            expected = spectrum.pagerank_eigenvalue(mu, alpha, hops)
            add(expected, found, limit, **facts, bound=2.0 * (1.0 - alpha) ** hops)
    for time in grid.time:
        theta = heat(time, _enough(time))
        expected = spectrum.diffused_eigenvalue(mu, theta)
        facts = {"coefficients": "heat", "time": time, "hops": len(theta) - 1}
        add(expected, operate(theta)[1], 1.0 - np.exp(-time * (1.0 - mu)), **facts)
    named = pattern.to_dict()
    return {"pattern": named, "n": n, "gap": float(1.0 - mu[order[1]]), "mu": mu[drawn].tolist(), "rows": rows}


def _enough(time: float) -> int:
    """Hops beyond which the heat kernel has less than 1e-9 left."""
    return int(time + 8 * np.sqrt(time) + 12)


def _checked(grid: Grid) -> list[SparsePattern]:
    patterns = grid.patterns()
    if min(grid.length) < 2:
        raise RequestError(f"length is {min(grid.length)}; give 2 tokens or more")
    for alpha in grid.alpha:
        if not 0 <= alpha <= 1:
            raise RequestError(f"alpha is {alpha:g}; give a number from 0 to 1")
    for time in grid.time:
        if not 0 <= time <= 1000:
            raise RequestError(f"time is {time:g}; give a number from 0 to 1000")
    if min(grid.hops) < 0:
        raise RequestError(f"hops is {min(grid.hops)}; give a whole number, 0 or more")
    for pattern, n in itertools.product(patterns, grid.length):
        edges = pattern.statistics(n)["edges"]
        if edges > EDGES:
            raise RequestError(
                f"length {n} with window {pattern.window}, {pattern.global_tokens} global tokens and {pattern.random_links} "
                f"random links has {edges:,.0f} edges; give fewer than {EDGES:,}"
            )
    return patterns


def _measure_graph(pattern: SparsePattern, n: int) -> dict[str, Any]:
    from diffmix import spectrum

    matrix = spectrum.graph(pattern, n)
    facts = pattern.statistics(n)
    named = {name: value for name, value in pattern.to_dict().items() if name not in ("causal", "seed")}
    measured = {**named, "n": n, "mean_degree": facts["mean_degree"], "density": facts["density"]}
    measured |= _gap_and_reach(matrix, n, causal=pattern.causal)
    if not pattern.causal:
        degree = _regular_degree(facts["mean_degree"], n)
        regular = spectrum.random_regular_graph(n, degree, pattern.seed)
        measured["regular"] = {"degree": degree, **_gap_and_reach(regular, n)}
    return measured


def _gap_and_reach(matrix: sparse.csr_array, n: int, *, causal: bool = False) -> dict[str, Any]:
    from diffmix import spectrum

    gap, largest = spectrum.gap_and_largest(matrix)
    heard = None if n <= REACH else np.linspace(0, n - 1, SAMPLE).round().astype(int)
    reached = spectrum.pairs_reached(matrix, causal=causal, heard=heard)
    return {
        "gap": gap,
        "largest": largest,
        "hops": len(reached) if reached and reached[-1] == 1.0 else None,
        "heard": n if heard is None else len(heard),
        "reached": reached,
    }


def _spectrum(pattern: SparsePattern, n: int) -> dict[str, Any]:
    from diffmix import spectrum

    named = {name: value for name, value in pattern.to_dict().items() if name not in ("causal", "seed")}
    counted = {**named, "n": n, "counts": _histogram(spectrum.laplacian_eigenvalues(spectrum.graph(pattern, n)))}
    if not pattern.causal:
        degree = _regular_degree(pattern.statistics(n)["mean_degree"], n)
        regular = spectrum.random_regular_graph(n, degree, pattern.seed)
        counted |= {"regular_degree": degree, "regular_counts": _histogram(spectrum.laplacian_eigenvalues(regular))}
    return counted


def _histogram(eigenvalues: np.ndarray) -> list[int]:
    return np.histogram(np.clip(eigenvalues, BINS[0], BINS[-1]), BINS)[0].tolist()  # rounding may leave -1e-16


def _regular_degree(mean_degree: float, n: int) -> int:
    """The nearest degree of which there is a regular graph."""
    candidates: Iterator[int] = (d for d in range(1, n + 1) if n * (d - 1) % 2 == 0)
    return min(candidates, key=lambda degree: abs(degree - mean_degree))
