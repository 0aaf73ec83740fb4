"""Coefficients: their formulas, their sum, what truncation leaves at the last hop."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmix.ops.coefficients import check_coefficients, heat, personalized_pagerank, truncation_error


@given(st.floats(0, 1), st.integers(0, 40))
def test_personalized_pagerank_is_its_power_iteration(alpha, hops):
    """Z_0 = V, Z_{k+1} = (1-α) A Z_k + α V, as a polynomial in A: a list of coefficients, shifted by a product with A."""
    state = [1.0]
    for _ in range(hops):
        state = [alpha] + [(1 - alpha) * weight for weight in state]
    made = personalized_pagerank(alpha, hops)
    assert made == pytest.approx(state, abs=1e-12)
    assert math.fsum(made) == pytest.approx(1, abs=1e-12)
    assert all(isinstance(weight, float) for weight in made)


@given(st.floats(0, 30), st.integers(0, 40))
def test_heat_is_the_exponential_series(time, hops):
    made = heat(time, hops)
    assert len(made) == hops + 1
    assert made[:-1] == pytest.approx([math.exp(-time) * time**k / math.factorial(k) for k in range(hops)], abs=1e-12)
    assert math.fsum(made) == pytest.approx(1, abs=1e-12)


def test_heat_with_many_hops_is_the_matrix_exponential():
    matrix = torch.rand(7, 7, dtype=torch.float64)
    matrix /= matrix.sum(dim=1, keepdim=True)
    power, total = torch.eye(7, dtype=torch.float64), torch.zeros(7, 7, dtype=torch.float64)
    for weight in heat(2.5, 40):
        total += weight * power
        power = power @ matrix
    torch.testing.assert_close(total, torch.linalg.matrix_exp(-2.5 * (torch.eye(7, dtype=torch.float64) - matrix)))


def test_long_times_do_not_overflow():
    assert heat(700.0, 3)[-1] == pytest.approx(1)


@given(st.floats(0.01, 1), st.integers(0, 20))
def test_truncation_error_of_personalized_pagerank(alpha, hops):
    error = truncation_error(personalized_pagerank(alpha, hops), alpha=alpha)
    assert error == pytest.approx((1 - alpha) ** (hops + 1), abs=1e-9)


@given(st.floats(0, 20), st.integers(0, 20))
def test_truncation_error_of_heat(time, hops):
    tail = sum(math.exp(-time) * time**k / math.factorial(k) for k in range(hops + 1, 120))
    assert truncation_error(heat(time, hops), time=time) == pytest.approx(tail, abs=1e-9)


def test_truncation_error_bounds_what_more_hops_change():
    matrix = torch.rand(30, 30, dtype=torch.float64) ** 8
    matrix /= matrix.sum(dim=1, keepdim=True)
    value = torch.rand(30, dtype=torch.float64) * 2 - 1

    def mixed(theta):
        total = torch.zeros(30, dtype=torch.float64)
        state = value
        for weight in theta:
            total, state = total + weight * state, matrix @ state
        return total

    full = mixed(personalized_pagerank(0.2, 200))
    for hops in (1, 3, 8):
        theta = personalized_pagerank(0.2, hops)
        assert (mixed(theta) - full).abs().max() <= 2 * truncation_error(theta, alpha=0.2) * value.abs().max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: personalized_pagerank(-0.1, 5), "alpha is -0.1; give a number from 0 to 1"),
        (lambda: personalized_pagerank(math.nan, 5), "alpha is nan"),
        (lambda: personalized_pagerank(0.1, -1), "hops is -1; give a whole number, 0 or more"),
        (lambda: personalized_pagerank(0.1, 2.5), "hops is 2.5"),
        (lambda: heat(-1.0, 5), "time is -1.0"),
        (lambda: heat(math.inf, 5), "time is inf"),
        (lambda: personalized_pagerank("0.1", 5), "alpha is '0.1'; give a number"),
        (lambda: personalized_pagerank(None, 5), "alpha is None"),
        (lambda: heat("1", 2), "time is '1'"),
        (lambda: heat(1.0, True), "hops is True"),
        (lambda: check_coefficients(()), r"coefficients is \(\); give K\+1 finite numbers"),
        (lambda: check_coefficients((0.5, math.nan)), "give K.1 finite numbers"),
        (lambda: check_coefficients((0.5, 0.4)), "sums to 0.9; divide them by their sum"),
        (lambda: truncation_error((1.0,)), "give the one that the coefficients were made of"),
        (lambda: truncation_error((1.0,), alpha=0.1, time=1.0), "alpha is 0.1 and time is 1.0"),
        (lambda: truncation_error((0.5, 0.5), alpha=0.1), "not those of alpha=0.1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
