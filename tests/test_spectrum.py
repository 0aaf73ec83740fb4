"""Eigenvalues, random regular graphs, reach and diffused spectra against what is known in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy import sparse

from diffmix import spectrum
from diffmix.ops.attention_diffusion import attention_diffusion
from diffmix.ops.coefficients import heat, personalized_pagerank
from diffmix.patterns import SparsePattern


def ring(n):
    rows = np.repeat(np.arange(n), 3)
    return sparse.csr_array((np.ones(3 * n), (rows, (rows + np.tile([-1, 0, 1], n)) % n)), shape=(n, n))


def test_a_graph_is_its_pattern():
    pattern = SparsePattern(3, 2, 2)
    assert np.array_equal(spectrum.graph(pattern, 40).toarray(), pattern.dense(40).double().numpy())


def test_eigenvalues_of_the_complete_graph():
    complete = spectrum.graph(SparsePattern(50), 20)
    np.testing.assert_allclose(spectrum.laplacian_eigenvalues(complete), [0] + 19 * [1], atol=1e-12)
    assert spectrum.gap_and_largest(complete) == pytest.approx((1, 1))
    assert spectrum.pairs_reached(complete) == [1.0]


@pytest.mark.parametrize("n", [30, 1500])  # all eigenvalues; two of them, by Lanczos
def test_eigenvalues_of_a_ring(n):
    """A circulant matrix: μ_k = (1 + 2cos(2πk/n)) / 3."""
    expected = np.sort(1 - (1 + 2 * np.cos(2 * np.pi * np.arange(n) / n)) / 3)
    if n < 100:
        np.testing.assert_allclose(spectrum.laplacian_eigenvalues(ring(n)), expected, atol=1e-12)
    assert spectrum.gap_and_largest(ring(n)) == pytest.approx((expected[1], expected[-1]), rel=1e-5)


@pytest.mark.parametrize("pattern", [SparsePattern(4, 2, 3), SparsePattern(4, 1), SparsePattern(1, 0, 4)])
def test_lanczos_finds_what_the_full_decomposition_finds(pattern, monkeypatch):
    matrix = spectrum.graph(pattern, 400)
    exact = spectrum.laplacian_eigenvalues(matrix)
    monkeypatch.setattr(spectrum, "DENSE", 2)
    assert spectrum.gap_and_largest(matrix) == pytest.approx((exact[1], exact[-1]), abs=1e-7)


@pytest.mark.parametrize("n", [300, 1100])
def test_a_graph_in_parts_has_no_gap(n):
    halves = sparse.block_diag([ring(n // 2), ring(n - n // 2)], format="csr")
    gap, largest = spectrum.gap_and_largest(sparse.csr_array(halves))
    assert gap == 0
    assert largest == pytest.approx(4 / 3, abs=1e-3)
    reached = spectrum.pairs_reached(sparse.csr_array(halves))
    assert reached[-1] == pytest.approx(0.5)


def test_a_causal_pattern_has_the_eigenvalues_of_its_degrees():
    pattern = SparsePattern(3, 2, 1, causal=True)
    degree = pattern.degree(50).double().numpy()
    matrix = spectrum.graph(pattern, 50)
    np.testing.assert_allclose(spectrum.laplacian_eigenvalues(matrix), np.sort(1 - 1 / degree))
    eigenvalues = np.linalg.eigvals(np.eye(50) - matrix.toarray() / degree[:, None])
    np.testing.assert_allclose(np.sort(eigenvalues.real), np.sort(1 - 1 / degree), atol=1e-8)
    assert spectrum.gap_and_largest(matrix) == pytest.approx((0.5, 1 - 1 / degree.max()))


@pytest.mark.parametrize(
    ("n", "degree"), [(10, 1), (10, 2), (10, 4), (11, 11), (12, 9), (40, 21), (200, 150), (301, 61)]
)
def test_every_token_of_a_regular_graph_hears_as_many(n, degree):
    matrix = spectrum.random_regular_graph(n, degree, seed=1)
    assert set(np.unique(matrix.toarray())) <= {0, 1}
    assert (matrix.toarray() == matrix.toarray().T).all()
    assert (matrix.diagonal() == 1).all()
    assert (matrix.sum(axis=1) == degree).all()


def test_regular_graphs_are_random_and_good_expanders():
    first, second = (spectrum.random_regular_graph(500, 9, seed) for seed in (0, 1))
    assert abs(first - second).nnz > 0
    assert abs(first - spectrum.random_regular_graph(500, 9, 0)).nnz == 0
    # Alon and Boppana's bound, Friedman's theorem: μ_2 = (1 + 2√7) / 9 + o(1) of 8 neighbours and the token itself.
    assert spectrum.gap_and_largest(first)[0] == pytest.approx(1 - (1 + 2 * math.sqrt(7)) / 9, abs=0.03)


def test_pairs_of_a_regular_graph_are_about_equally_likely():
    total = sum(spectrum.random_regular_graph(8, 4, seed).toarray() for seed in range(400))
    apart = ~np.eye(8, dtype=bool)
    assert np.abs(total[apart] / 400 - 3 / 7).max() < 0.12  # 400 draws: five standard deviations


def test_reach_on_a_path_grows_by_a_step_a_hop():
    n = 10
    reached = spectrum.pairs_reached(spectrum.graph(SparsePattern(1), n))
    joined = [sum(abs(i - j) <= k for i in range(n) for j in range(n)) / n**2 for k in range(1, n)]
    assert reached == pytest.approx(joined)
    past = spectrum.pairs_reached(spectrum.graph(SparsePattern(1, causal=True), n), causal=True)
    pairs = n * (n + 1) / 2
    assert past == pytest.approx([sum(j >= i - k for i in range(n) for j in range(i + 1)) / pairs for k in range(1, n)])


def test_one_global_token_joins_all_in_two_hops():
    assert spectrum.pairs_reached(spectrum.graph(SparsePattern(0, [70]), 130)) == [pytest.approx(388 / 130**2), 1.0]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heard", [None, [0, 3, 64, 99]])
def test_reach_is_that_of_powers_of_the_graph(causal, heard):
    matrix = spectrum.graph(SparsePattern(2, 0, 1, causal=causal), 100)
    columns = list(range(100)) if heard is None else heard
    power, expected = np.eye(100), []
    pairs = sum(1 for i in range(100) for j in columns if j <= i or not causal)
    while not expected or expected[-1] < 1:
        power = ((power @ matrix.toarray()) > 0).astype(float)
        expected.append(power[:, columns].sum() / pairs)
    told = []
    reached = spectrum.pairs_reached(matrix, causal=causal, heard=heard, on_hop=lambda: told.append(1))
    assert reached == pytest.approx(expected)
    assert len(told) == len(reached)


def test_a_token_that_hears_only_itself_reaches_nothing():
    assert spectrum.pairs_reached(spectrum.graph(SparsePattern(0), 5)) == []


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("hops", [0, 1, 5, 30])
def test_the_published_formula_is_the_sum_of_the_coefficients(alpha, hops):
    mu = np.linspace(-1, 1, 41)
    expected = spectrum.diffused_eigenvalue(mu, personalized_pagerank(alpha, hops))
    np.testing.assert_allclose(spectrum.pagerank_eigenvalue(mu, alpha, hops), expected, atol=1e-12)


def test_many_hops_come_to_the_limit_and_the_heat_kernel_to_its_exponential():
    eigenvalue = np.linspace(0, 2, 21)
    many = 1 - spectrum.pagerank_eigenvalue(1 - eigenvalue, 0.1, 400)
    np.testing.assert_allclose(many, spectrum.pagerank_limit(eigenvalue, 0.1), atol=1e-12)
    assert abs((1 - spectrum.pagerank_eigenvalue(0.9, 0.1, 5)) - spectrum.pagerank_limit(0.1, 0.1)) > 0.05
    warm = spectrum.diffused_eigenvalue(1 - eigenvalue, heat(3.0, 40))
    np.testing.assert_allclose(warm, np.exp(-3 * eigenvalue), atol=1e-12)


@pytest.mark.parametrize("theta", [personalized_pagerank(0.1, 5), heat(2.0, 7), (0.2, -0.5, 1.3)])
def test_the_operator_keeps_eigenvectors_and_maps_eigenvalues(theta):
    pattern, n = SparsePattern(5, 2, 2), 90
    matrix = spectrum.graph(pattern, n).toarray()
    root = np.sqrt(matrix.sum(axis=1))
    mu, vectors = np.linalg.eigh(matrix / np.outer(root, root))
    vectors = vectors / root[:, None]  # right eigenvectors of D⁻¹M, one a channel
    same = torch.zeros(1, 1, n, 4, dtype=torch.float64)
    diffused = attention_diffusion(same, same, torch.from_numpy(vectors)[None, None], pattern, coefficients=theta)[0, 0]
    np.testing.assert_allclose(diffused.numpy(), vectors * spectrum.diffused_eigenvalue(mu, theta), atol=1e-10)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="degree is 12 for 10 tokens"):
        spectrum.random_regular_graph(10, 12)
    with pytest.raises(ValueError, match="degree is 4 for 11 tokens"):
        spectrum.random_regular_graph(11, 4)
    with pytest.raises(ValueError, match="1 token; a gap needs 2"):
        spectrum.gap_and_largest(spectrum.graph(SparsePattern(1), 1))
    with pytest.raises(ValueError, match="neither undirected nor causal"):
        spectrum.laplacian_eigenvalues(sparse.csr_array(np.array([[1.0, 1.0], [0.0, 1.0]])))
    with pytest.raises(ValueError, match="alpha is 0"):
        spectrum.pagerank_limit(np.array([0.1]), 0)
    with pytest.raises(ValueError, match="sums to 2"):
        spectrum.diffused_eigenvalue(np.array([0.1]), (1.0, 1.0))


@pytest.mark.parametrize(("n", "degree", "seed"), [(5, 3, 30), (5, 3, 41), (6, 6, 0), (40, 39, 0)])
def test_a_regular_graph_is_found_where_few_exchanges_are_left(n, degree, seed):
    graph = spectrum.random_regular_graph(n, degree, seed=seed).toarray()
    assert (graph == graph.T).all()
    assert ((graph > 0).sum(axis=1) == degree).all()
