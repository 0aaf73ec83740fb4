"""How well a pattern connects its tokens, and what diffusion makes of that: Laplacian eigenvalues, and hops to reach all.

n tokens; M [n, n] the pattern as zeros and ones, row i hears column j, itself included; d_i the sum of row i; A = D⁻¹M the
uniform attention over the edges; θ_0 … θ_K the weights of K hops.

The Laplacian here is that of the random walk, L = I - A, whose eigenvalues are λ, those of A μ = 1 - λ. Where the graph is
undirected it has those of the symmetric normalised one, I - D^-½ M D^-½: real, from 0 to below 2. Where it is causal, A is
triangular and its eigenvalues are 1/d_i, which say how many tokens each hears and not how well they are connected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from diffmix.ops.coefficients import check_coefficients
from diffmix.patterns import SparsePattern

DENSE = 1024  # tokens up to which all eigenvalues are computed to find two; beyond it Lanczos's method finds them


def graph(pattern: SparsePattern, n: int) -> sparse.csr_array:
    """M of a pattern on n tokens: fp64 [n, n], sparse. Raises ValueError for n < 1."""
    edges = pattern.edges(n).numpy()
    return sparse.csr_array((np.ones(edges.shape[1]), (edges[0], edges[1])), shape=(n, n))


def random_regular_graph(n: int, degree: int, seed: int = 0) -> sparse.csr_array:
    """A random undirected graph on n tokens in which each hears `degree` tokens, itself included: M, fp64 [n, n], sparse.

    The stubs of all tokens are paired at random; a pair that joins a token with itself or repeats another changes partners
    with a random pair until none is left. Where a token hears more than half of the others, those it does not hear are drawn.

    Raises:
        ValueError: a degree outside of 1 … n, or n·(degree - 1) odd, for which there is no such graph.

    Source: McKay & Wormald (1990), without their correction for exact uniformity.
    """
    others = degree - 1
    if not 1 <= degree <= n or n * others % 2:
        raise ValueError(f"degree is {degree} for {n} tokens; give one from 1 to n with n·(degree - 1) even")
    sparser = min(others, n - 1 - others)
    first, second = _random_pairs(n, sparser, np.random.default_rng(seed))
    ones = np.ones(2 * len(first))
    chosen = sparse.csr_array((ones, (np.r_[first, second], np.r_[second, first])), shape=(n, n))
    if sparser == others:
        return sparse.csr_array(chosen + sparse.eye_array(n))
    return sparse.csr_array(1.0 - chosen.toarray())  # at least half of all pairs: no place for a sparse form


def laplacian_eigenvalues(matrix: sparse.csr_array) -> np.ndarray:
    """All λ of I - D⁻¹M in rising order: fp64 [n]; takes O(n³) time. 0 comes as often as the graph has parts.

    Args:
        matrix: M, undirected (symmetric) or causal (lower triangular), as `graph` gives it.

    Raises:
        ValueError: M is neither.

    Source: Chung (1997), Spectral Graph Theory, chapter 1.
    """
    if _symmetric(matrix):
        normal, _ = _normalised(matrix)
        return 1.0 - np.linalg.eigvalsh(normal.toarray())[::-1]
    return np.sort(1.0 - 1.0 / _causal_degrees(matrix))


def gap_and_largest(matrix: sparse.csr_array) -> tuple[float, float]:
    """λ_2, the spectral gap, and λ_n of I - D⁻¹M, without the other eigenvalues where there are many.

    The gap is 0 exactly where the graph falls apart, 1 where everyone hears everyone: what a walk's distribution keeps of its
    start shrinks like (1 - λ_2)^k in k hops where λ_n < 2 - λ_2. Of a causal pattern both are 1 - 1/d_i of some i.

    Raises:
        ValueError: fewer than 2 tokens, or a graph that is neither undirected nor causal.

    Source: Hoory, Linial & Wigderson (2006), Expander graphs and their applications.
    """
    tokens = len(matrix.indptr) - 1
    if tokens < 2:
        raise ValueError(f"the graph has {tokens} token; a gap needs 2 or more")
    if not _symmetric(matrix):
        lowest = np.sort(1.0 - 1.0 / _causal_degrees(matrix))
        return float(lowest[1]), float(lowest[-1])
    whole = csgraph.connected_components(matrix, directed=False, return_labels=False) == 1
    if tokens <= DENSE:
        eigenvalues = laplacian_eigenvalues(matrix)
        return float(eigenvalues[1]) if whole else 0.0, float(eigenvalues[-1])
    from scipy.sparse.linalg import LinearOperator, eigsh

    normal, root = _normalised(matrix)
    options = {
        "k": 1,
        "tol": 1e-7,
        "ncv": 64,
        "v0": np.random.default_rng(0).standard_normal(tokens),
        "return_eigenvectors": False,
    }
    largest = 1.0 - float(eigsh(normal, which="SA", **options)[0])
    if not whole:
        return 0.0, largest
    # Without its own eigenvector the eigenvalue 1 becomes 0. No other falls below that unseen: the sum of all is Σ 1/d_i ≥ 1.
    operator: Any = LinearOperator  # whose signature the type checker does not know
    rest = operator(normal.shape, matvec=lambda x: normal @ x - root * (root @ x), dtype=np.float64)
    return 1.0 - max(float(eigsh(rest, which="LA", **options)[0]), 0.0), largest


def pairs_reached(
    matrix: sparse.csr_array,
    *,
    causal: bool = False,
    heard: Sequence[int] | np.ndarray | None = None,
    on_hop: Callable[[], object] = lambda: None,
) -> list[float]:
    """The share of the pairs (i, j) of which i hears j over at most k hops, for k = 1, 2, … to the last hop that adds any.

    A breadth-first search from all tokens at once, 64 to a word. The pairs are all n², causal: those with j ≤ i. So the number
    of hops that reaches every pair is the length of the list where its last share is 1; else some pair is never reached.

    Args:
        matrix: M.
        causal: whether tokens hear their past only.
        heard: the columns j that are looked at; None: all. Memory is n·len(heard)/8 bytes, twice.
        on_hop: told after each hop.
    """
    tokens = len(matrix.indptr) - 1
    columns = np.arange(tokens) if heard is None else np.unique(np.asarray(heard))
    bit = np.arange(len(columns))
    reach = np.zeros((tokens, -(-len(columns) // 64)), dtype=np.uint64)
    reach[columns, bit // 64] = np.left_shift(np.uint64(1), (bit % 64).astype(np.uint64))
    target = np.searchsorted(columns, np.arange(tokens), side="right") if causal else np.full(tokens, len(columns))
    count = np.bitwise_count(reach).sum(axis=1, dtype=np.int64)
    shares: list[float] = []
    while (count < target).any():
        rows = np.flatnonzero(count < target)
        reach[rows] = _heard_by_neighbours(matrix[rows], reach)
        before, count = count.sum(), np.bitwise_count(reach).sum(axis=1, dtype=np.int64)
        if count.sum() == before:
            break
        shares.append(float(count.sum() / target.sum()))
        on_hop()
    return shares


def pagerank_eigenvalue(mu: np.ndarray, alpha: float, hops: int) -> np.ndarray:
    """μ̃ = α(1-((1-α)μ)^K) / (1-(1-α)μ) + ((1-α)μ)^K: what K hops of personalised PageRank make of an eigenvalue μ of A.

    The eigenvectors stay. It is `diffused_eigenvalue` of `personalized_pagerank(alpha, hops)`, summed up.
    """
    kept = (1.0 - alpha) * np.asarray(mu, dtype=np.float64)
    rest = 1.0 - kept
    powers = kept**hops
    return np.where(rest == 0.0, 1.0, alpha * (1.0 - powers) / np.where(rest == 0.0, 1.0, rest) + powers)


def pagerank_limit(eigenvalue: np.ndarray, alpha: float) -> np.ndarray:
    """λ̃ = (1-α)λ / (α + (1-α)λ): what personalised PageRank makes of a Laplacian eigenvalue λ as K grows, 0 < α ≤ 1."""
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is {alpha!r}; the limit needs a number above 0, up to 1")
    moved = (1.0 - alpha) * np.asarray(eigenvalue, dtype=np.float64)
    return moved / (alpha + moved)


def diffused_eigenvalue(mu: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    """μ̃ = Σ_k θ_k μ^k: what attention diffusion makes of an eigenvalue μ of A, whatever its coefficients."""
    check_coefficients(coefficients)
    return np.polynomial.polynomial.polyval(np.asarray(mu, dtype=np.float64), np.asarray(coefficients))


def _random_pairs(n: int, degree: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The n·degree/2 different pairs of a graph in which each of n tokens is in `degree` pairs."""
    if degree > 0.9 * (n - 1):  # all pairs but those of a sparse graph: a nearly full one leaves no exchange
        left_out = np.zeros((n, n), dtype=bool)
        if degree < n - 1:
            left_out[_random_pairs(n, n - 1 - degree, random)] = True
        first, second = np.nonzero(np.triu(~left_out, 1))
        return first, second
    while (drawn := _drawn_pairs(n, degree, random)) is None:
        pass  # a few tokens can be paired so that no exchange mends it
    return drawn


def _drawn_pairs(n: int, degree: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """The same, or None where a draw could not be mended."""
    stubs = random.permutation(np.repeat(np.arange(n), degree)).reshape(-1, 2)
    pairs = np.sort(stubs, axis=1)
    codes = pairs[:, 0] * n + pairs[:, 1]
    at_first = np.zeros(len(codes), dtype=bool)
    at_first[np.unique(codes, return_index=True)[1]] = True
    wrong = list(np.flatnonzero(~at_first | (pairs[:, 0] == pairs[:, 1])))
    held = set(codes.tolist()) if wrong else set()
    spoiled = set(wrong)
    tries = 100 * len(pairs)
    while wrong:
        if not (tries := tries - 1):
            return None
        one, other = wrong[-1], int(random.integers(len(pairs)))
        if other in spoiled:
            continue
        (a, b), (c, d) = pairs[one], pairs[other] if random.integers(2) else pairs[other][::-1]
        new = [int(min(x, y) * n + max(x, y)) for x, y in ((a, d), (c, b))]
        if a == d or c == b or new[0] == new[1] or not held.isdisjoint(new):
            continue
        held.discard(int(codes[other]))
        held.update(new)
        pairs[one], pairs[other] = (a, d), (c, b)
        codes[one], codes[other] = new
        spoiled.discard(wrong.pop())
    return pairs[:, 0], pairs[:, 1]


def _normalised(matrix: sparse.csr_array) -> tuple[sparse.csr_array, np.ndarray]:
    """D^-½ M D^-½, and its eigenvector of eigenvalue 1."""
    degree = matrix.sum(axis=1)
    scale = sparse.diags_array(degree**-0.5)
    return sparse.csr_array(scale @ matrix @ scale), np.sqrt(degree / degree.sum())


def _symmetric(matrix: sparse.csr_array) -> bool:
    return abs(matrix - matrix.T).nnz == 0


def _causal_degrees(matrix: sparse.csr_array) -> np.ndarray:
    if sparse.triu(matrix, 1).nnz:
        raise ValueError("the graph is neither undirected nor causal; give that of a SparsePattern")
    return matrix.sum(axis=1)


def _heard_by_neighbours(matrix: sparse.csr_array, reach: np.ndarray) -> np.ndarray:
    """The union of the rows of `reach` over the neighbours of each row of `matrix`."""
    degree = np.diff(matrix.indptr)
    order = np.argsort(-degree, kind="stable")  # the first m rows are those that have a further neighbour
    first = matrix.indptr[:-1][order]
    union = np.zeros((len(degree), reach.shape[1]), dtype=np.uint64)
    more = np.searchsorted(-degree[order], -np.arange(degree.max()), side="left")
    for neighbour, m in enumerate(more):
        union[:m] |= reach[matrix.indices[first[:m] + neighbour]]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return union[back]
