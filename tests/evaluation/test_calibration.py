import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmix.evaluation import expected_calibration_error, noise_floor, reliability

confidences = st.lists(st.floats(0.5, 1.0), min_size=1, max_size=80)


def binary(confidence, correct):
    """Two-class predictions of class 1 with these confidences, right where `correct`."""
    c = np.asarray(confidence, np.float64)
    return np.column_stack([1 - c, c]), np.asarray(correct, np.int64)


@given(confidences, st.integers(1, 20), st.randoms())
def test_ece_equals_the_naive_definition(confidence, bins, random):
    correct = [random.random() < 0.7 for _ in confidence]
    p, y = binary(confidence, correct)
    # At exactly 0.5 the first of equals, class 0, is predicted.
    right = np.where(p[:, 1] > 0.5, y == 1, y == 0)
    expected = 0.0
    for b in range(bins):
        edges = np.linspace(0, 1, bins + 1)
        inside = [i for i, c in enumerate(confidence) if edges[b] < c <= edges[b + 1]]
        if inside:
            expected += len(inside) / len(confidence) * abs(right[inside].mean() - p.max(axis=1)[inside].mean())
    assert expected_calibration_error(p, y, bins) == pytest.approx(expected, abs=1e-12)


def test_equal_mass_bins_of_distinct_confidences_split_the_sorted_sample_evenly():
    random = np.random.default_rng(0)
    confidence = np.sort(random.uniform(0.51, 0.99, 90))
    p, y = binary(confidence, random.random(90) < confidence)
    expected = sum(
        len(c) * abs(y[i].mean() - c.mean()) / 90
        for i, c in ((part, confidence[part]) for part in np.array_split(np.arange(90), 15))
    )
    assert expected_calibration_error(p, y, equal_mass=True) == pytest.approx(expected)
    assert [row["count"] for row in reliability(p, y, equal_mass=True)] == [6] * 15


@given(confidences, st.integers(0, 2**32 - 1), st.booleans())
def test_equal_confidences_share_a_bin_so_that_order_never_matters(confidence, seed, equal_mass):
    random = np.random.default_rng(seed)
    p, y = binary(np.round(confidence, 1), random.random(len(confidence)) < 0.5)
    order = random.permutation(len(y))
    assert expected_calibration_error(p[order], y[order], equal_mass=equal_mass) == pytest.approx(
        expected_calibration_error(p, y, equal_mass=equal_mass), abs=1e-12
    )


def test_reliability_bins_hold_every_example_once_and_empty_ones_say_so():
    p, y = binary([0.55, 0.95, 0.96, 1.0], [1, 1, 0, 1])
    rows = reliability(p, y, bins=10)
    assert [row["count"] for row in rows] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert rows[0] == {"low": 0.0, "high": 0.1, "confidence": None, "accuracy": None, "count": 0}
    assert rows[9]["confidence"] == pytest.approx(2.91 / 3)
    assert rows[9]["accuracy"] == pytest.approx(2 / 3)
    assert rows[9]["high"] == 1.0


def test_a_softmax_that_rounds_above_one_stays_in_the_last_bin():
    p = np.array([[0, np.nextafter(np.float32(1), np.float32(2))]], np.float32)
    assert reliability(p, [1])[14]["count"] == 1


@pytest.mark.parametrize(("n", "floor"), [(5_000, 0.017), (50_000, 0.0055), (250_000, 0.0024)])
def test_noise_floor_of_evenly_spread_confidences(n, floor):
    assert noise_floor((np.arange(n) + 0.5) / n) == pytest.approx(floor, rel=0.03)


@pytest.mark.parametrize("n", [1, 40, 1000])
@pytest.mark.parametrize("sureness", [2.0, 20.0])
def test_noise_floor_is_the_simulated_expectation(n, sureness):
    random = np.random.default_rng(n)
    confidence = 0.5 + 0.5 * random.beta(sureness, 1.0, n)
    simulated = []
    for _ in range(1500):
        p, y = binary(confidence, random.random(n) < confidence)
        simulated.append(expected_calibration_error(p, y))
    error = np.std(simulated) / np.sqrt(len(simulated))
    assert noise_floor(confidence) == pytest.approx(np.mean(simulated), rel=0.03, abs=4 * error)


@given(confidences)
def test_noise_floor_lies_in_the_range_of_an_ece(confidence):
    floor = noise_floor(confidence)
    assert 0 <= floor <= 0.5
    if len(confidence) == 1:
        assert floor == pytest.approx(2 * confidence[0] * (1 - confidence[0]))  # E|Bernoulli(c) - c|


def test_a_certain_model_has_no_floor():
    assert noise_floor([1.0, 1.0, 1.0]) == 0


@pytest.mark.parametrize("value", [[], [[0.5]], [1.2], [np.nan]])
def test_noise_floor_refuses_what_is_no_confidence(value):
    with pytest.raises(ValueError, match=r"^confidence has .*probabilities\.max\(axis=1\)"):
        noise_floor(value)


def test_bins_below_one_are_refused():
    with pytest.raises(ValueError, match="bins is 0; it must be at least 1"):
        reliability([[0.5, 0.5]], [0], bins=0)
