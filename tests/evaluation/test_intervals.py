import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffmix.evaluation import mean_interval, paired_difference, proportion_interval
from diffmix.evaluation.intervals import bootstrap_weights


def test_mean_interval_is_students():
    # t_{2, 0.975} = 4.3027, s = 1, n = 3
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx(
        (2, 2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4
    )


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=10).filter(lambda v: np.std(v) > 1e-3))
def test_mean_interval_agrees_with_scipy(values):
    expected = stats.t.interval(0.9, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values, confidence=0.9)[1:] == pytest.approx(expected)


def test_equal_values_have_no_width_and_one_value_has_no_interval():
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    mean, low, high = mean_interval([0.9])
    assert mean == 0.9
    assert math.isnan(low)
    assert math.isnan(high)


@given(st.integers(1, 500), st.floats(0, 1))
def test_proportion_interval_agrees_with_scipy(trials, share):
    successes = round(share * trials)
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    low, high = proportion_interval(successes, trials)
    assert (float(low), float(high)) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bootstrap_weights_draw_n_examples_each_time_however_they_are_blocked(monkeypatch):
    whole = np.concatenate(list(bootstrap_weights(7, 50, seed=3)))
    assert whole.shape == (50, 7)
    assert (whole.sum(axis=1) == 7).all()
    monkeypatch.setattr("diffmix.evaluation.intervals._DRAWS_PER_BLOCK", 20)
    assert np.array_equal(np.concatenate(list(bootstrap_weights(7, 50, seed=3))), whole)


def test_pairing_sees_a_small_steady_difference_that_separate_intervals_hide():
    random = np.random.default_rng(0)
    shared = 5 * random.normal(size=2000)
    first, second = shared + 0.05 + 0.1 * random.normal(size=2000), shared
    difference, low, high = paired_difference(first, second)
    assert low < difference < high
    assert low > 0.04
    unpaired = mean_interval(first)
    assert unpaired[1] < second.mean()


def test_paired_difference_of_a_model_with_itself_is_nothing():
    assert paired_difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), r"values has shape \[0\]"),
        (lambda: mean_interval([1.0, math.inf]), r"values\[1\] is inf"),
        (lambda: mean_interval([1.0], confidence=95), "confidence is 95; .*0.95"),
        (lambda: proportion_interval(1, 0), "trials is 0.0"),
        (lambda: proportion_interval(3, 2), "successes has a value outside"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "second has 1 values and first has 2"),
        (lambda: paired_difference([1.0], [1.0], resamples=0), "resamples is 0"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
