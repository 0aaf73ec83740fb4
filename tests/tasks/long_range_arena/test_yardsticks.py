"""Yardsticks: each knows more than the one before, and their mathematics is right where it can be counted."""

from itertools import product

import numpy as np
import pytest

from diffmix.tasks.long_range_arena.expressions import MAX, MED, MIN, SM, apply, evaluate, parse_bytes
from diffmix.tasks.long_range_arena.listops import Expressions, generate, select
from diffmix.tasks.long_range_arena.yardsticks import YARDSTICKS, _results, yardsticks


@pytest.mark.parametrize("operator", [MIN, MAX, MED, SM])
@pytest.mark.parametrize("arguments", [1, 2, 3, 4])
def test_distributions_of_results_are_those_of_all_cases(operator, arguments):
    rng = np.random.default_rng(arguments)
    chances = rng.dirichlet(np.ones(10), arguments)
    chances[0] = np.eye(10)[3]  # a digit
    expected = np.zeros(10)
    cases = np.array(list(product(range(10), repeat=arguments)), dtype=np.uint8)
    values = apply(np.full(len(cases), operator), np.full(len(cases), arguments), cases.reshape(-1))
    np.add.at(expected, values, np.prod(chances[np.arange(arguments), cases], axis=1))
    # Behind another operator, so that places count.
    found = _results(
        np.array([SM, operator]), np.array([2, arguments]), np.concatenate([chances[:1], chances[:1], chances])
    )
    assert found[1] == pytest.approx(expected, abs=1e-12)


def test_they_come_near_what_is_known_of_short_expressions():
    drawn = generate(4500, 0, 32, 128)
    found = yardsticks(select(drawn, slice(0, 3000)), select(drawn, slice(3000, 4500)))
    assert tuple(found) == YARDSTICKS
    assert found["root_operator"] == pytest.approx(0.335, abs=0.04)
    assert found["child_operators"] == pytest.approx(0.61, abs=0.04)
    assert found["two_levels"] == pytest.approx(0.81, abs=0.04)
    assert sorted(found.values()) == list(found.values())


def test_expressions_without_deeper_levels_are_known_exactly():
    sources = [b"[MIN 3 4 ]", b"[MAX 3 4 ]", b"[SM 3 4 ]", b"[MED 3 5 9 ]", b"8"] * 3
    ids, offsets = parse_bytes(sources, "here")
    expressions = Expressions(ids, offsets, evaluate(ids))
    found = yardsticks(expressions, expressions)
    assert found["majority"] < 1
    assert all(value == 1 for name, value in found.items() if name != "majority")
