"""ListOps expressions: values by hand and on the original test set, and what is no expression."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmix.errors import RequestError
from diffmix.tasks.long_range_arena.expressions import (
    SYMBOLS,
    evaluate,
    evaluate_expression,
    parse,
    parse_bytes,
    to_text,
)

ORIGINAL = Path(os.environ.get("DIFFMIX_TEST_DATA", "absent")) / "listops_nangia2018/test_d20s.parquet"
BY_HAND = {
    "7": 7,
    "[MIN 4 2 9 ]": 2,
    "[MAX 4 2 9 ]": 9,
    "[MED 9 1 5 ]": 5,
    "[MED 1 4 ]": 2,  # 2.5, cut
    "[MED 1 9 4 6 ]": 5,
    "[MED 3 3 8 9 ]": 5,  # 5.5, cut
    "[SM 9 8 7 ]": 4,
    "[SM 5 5 ]": 0,
    "[MAX 2 9 [MIN 4 7 ] 0 ]": 9,
    "[MIN [MAX 1 [SM 8 3 ] ] [MED 7 7 0 ] 5 ]": 1,
    "( ( ( [SM 6 ) 5 ) ] )": 1,
    "( ( ( ( [MED ( ( ( [MAX 2 ) 3 ) ] ) ) 9 ) 0 ) ] )": 3,
}
NO_EXPRESSIONS = {
    "": "is empty",
    "( )": "is empty",
    "[MIN 1 2": "leaves 1 operators open",
    "[MIN 1 [MAX 2 3 ]": "leaves 1 operators open",
    "[MIN 1 2 ] ]": "closes more operators than it opens",
    "]": "closes more operators than it opens",
    "] [MAX": "closes more operators than it opens",
    "] 1 [MAX": "closes more operators than it opens",
    "] ] [MAX [MIN": "closes more operators than it opens",
    "1 ] [MAX": "closes more operators than it opens",
    "[MIN 1 2 ] 3": "goes on behind its end with '3'",
    "1 2": "goes on behind its end with '2'",
    "[MIN ]": "holds an operator without arguments",
    "[MIN 1 [SM ] ]": "holds an operator without arguments",
    "[FIRST 1 2 ]": "'[FIRST' is no symbol",
    "[MIN 12 ]": "'12' is no symbol",
    "[MIN 1 2]": "'2]' is no symbol",
    "3[MIN 1 2 ]": "'3[MIN' is no symbol",
    "[min 1 2 ]": "'[min' is no symbol",
    "[MIN 1 a ]": "'a' is no symbol",
}
trees = st.recursive(
    st.integers(0, 9),
    lambda node: st.tuples(st.sampled_from(["MIN", "MAX", "MED", "SM"]), st.lists(node, min_size=1, max_size=6)),
    max_leaves=40,
)


def text_of(tree):
    return str(tree) if isinstance(tree, int) else f"[{tree[0]} {' '.join(map(text_of, tree[1]))} ]"


def value_of(tree):
    if isinstance(tree, int):
        return tree
    arguments = [value_of(argument) for argument in tree[1]]
    functions = {"MIN": min, "MAX": max, "SM": lambda values: sum(values) % 10, "MED": lambda v: int(np.median(v))}
    return functions[tree[0]](arguments)


@pytest.mark.parametrize(("expression", "value"), BY_HAND.items())
def test_values_by_hand(expression, value):
    assert evaluate_expression(expression) == value
    flat, offsets = parse_bytes([expression.encode()] * 2, "file")
    assert evaluate(flat).tolist() == [value] * 2
    assert np.array_equal(flat[: offsets[1]], parse(expression))


@given(st.lists(trees, min_size=1, max_size=5))
def test_many_trees_at_once_have_the_values_of_plain_recursion(some):
    texts = [text_of(tree) for tree in some]
    flat, offsets = parse_bytes([text.encode() for text in texts], "file")
    assert evaluate(flat).tolist() == [value_of(tree) for tree in some]
    assert [to_text(flat[a:b]) for a, b in pairwise(offsets)] == texts


@pytest.mark.parametrize(("expression", "problem"), NO_EXPRESSIONS.items())
def test_what_is_no_expression_is_refused_on_one_line(expression, problem):
    with pytest.raises(RequestError) as caught:
        parse(expression)
    assert problem in str(caught.value)
    with pytest.raises(RequestError) as of_file:
        parse_bytes([b"[MIN 1 2 ]", expression.encode(), b"3"], "file", first_line=2)
    assert problem in str(of_file.value)
    assert "file, line 3" in str(of_file.value)
    assert "\n" not in str(caught.value) + str(of_file.value)


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from([*SYMBOLS, "(", ")"]), max_size=12).map(" ".join)))
def test_any_text_is_evaluated_or_refused_alike_by_both_parsers(text):
    try:
        value = evaluate_expression(text)
    except RequestError as error:
        value, problem = None, str(error)
    if value is not None:
        assert 0 <= value <= 9
        return
    assert "\n" not in problem
    if "\n" not in text:
        with pytest.raises(RequestError):
            parse_bytes([text.encode("utf-8", "surrogatepass")], "file")


@pytest.mark.skipif(not ORIGINAL.is_file(), reason="the original ListOps test set is not here")
def test_all_of_the_original_test_set_agrees():
    import pyarrow.parquet as pq

    table = pq.read_table(ORIGINAL)
    flat, offsets = parse_bytes([source.encode() for source in table["Source"].to_pylist()], "original")
    assert len(offsets) == 10_001
    assert np.array_equal(evaluate(flat), table["Target"].to_numpy())
