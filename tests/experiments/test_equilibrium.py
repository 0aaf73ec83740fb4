import json

import numpy as np
import pytest
from scipy.linalg import expm

from diffmix.errors import RequestError
from diffmix.experiments.equilibrium import distance, drift_diffusion, entropy, gibbs, measure_equilibrium


def test_the_process_is_that_of_its_generator():
    scores = np.random.default_rng(1).normal(size=(3, 5))
    times = np.array([0.0, 0.3, 2.0])
    start = np.array([[0.2] * 5, [1.0, 0, 0, 0, 0], [0, 0.5, 0, 0.5, 0]])
    path = drift_diffusion(scores, times, start)
    for query, own in enumerate(scores):
        rates = np.exp((own[None, :] - own[:, None]) / 2) / 5  # from row to column
        np.fill_diagonal(rates, 0.0)
        np.fill_diagonal(rates, -rates.sum(axis=1))
        for index, time in enumerate(times):
            np.testing.assert_allclose(path[index, query], start[query] @ expm(rates * time), atol=1e-12)


def test_it_ends_at_softmax_and_keeps_its_mass():
    scores = np.random.default_rng(2).normal(size=(4, 9))
    path = drift_diffusion(scores, np.array([0.01, 1.0, 1000.0]), np.full((4, 9), 1 / 9))
    np.testing.assert_allclose(path.sum(axis=-1), 1.0)
    assert distance(path[-1], gibbs(scores)).max() < 1e-10
    assert (np.diff(entropy(path), axis=0) < 0).all()


def test_the_result_is_written_once(tmp_path):
    output = tmp_path / "equilibrium.json"
    result = measure_equilibrium(output=output, notice=lambda _: None)
    assert json.loads(output.read_text()) == result
    assert all(ends["end"] < 1e-6 < ends["start"] for ends in result["to_softmax"].values())
    entropies = result["entropy"]
    assert entropies["start, nearest"] < entropies["dot"] < entropies["softmax"] < entropies["start, even"]
    with pytest.raises(RequestError, match="exists"):
        measure_equilibrium(output=output)
