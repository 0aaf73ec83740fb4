"""Splits: columns that share memory, and cuts that are stratified, fixed and free of leaks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmix.tasks.examples import Examples, StreamedExamples, TextColumn, cut


def column(texts):
    return TextColumn(pa.array(texts, type=pa.large_string()))


@given(texts=st.lists(st.text(max_size=5), min_size=1), data=st.data())
def test_text_column_is_a_list_of_strings(texts, data):
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1)))
    start, stop, step = data.draw(st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from([None, 1, 2, -1])))
    for found, expected in [
        (column(texts), texts),
        (column(texts).take(np.array(rows, dtype=np.int64)), [texts[row] for row in rows]),
        (column(texts).take(np.arange(len(texts))[::-1]).take(np.arange(1)), texts[-1:]),
    ]:
        assert len(found) == len(expected)
        assert list(found) == expected
        assert found[start:stop:step] == expected[start:stop:step]
        assert [found[-1 - i] for i in range(len(found))] == expected[::-1]
        assert found.to_arrow().to_pylist() == expected
    with pytest.raises(IndexError):
        column(texts)[len(texts)]


def test_text_columns_concatenate():
    both = TextColumn.concatenate([column(["a", "b"]).take(np.array([1])), column(["c"])])
    assert list(both) == ["b", "c"]


def test_examples_check_their_columns():
    labels = np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="exactly one of texts and input_ids"):
        Examples(labels)
    with pytest.raises(ValueError, match="texts has 1 rows but labels has 2"):
        Examples(labels, texts=["a"])


def test_take_keeps_rows_together():
    examples = Examples(np.array([0, 1, 2]), texts=["a", "b", "c"], pairs=column(["A", "B", "C"])).take(
        np.array([2, 0])
    )
    assert examples.labels.tolist() == [2, 0]
    assert list(examples.texts or ()) == ["c", "a"]
    assert list(examples.pairs or ()) == ["C", "A"]
    assert sorted(examples.tokenizer_texts()) == ["A", "C", "a", "c"]
    assert examples.label_counts(4).tolist() == [1, 0, 1, 0]
    pixels = Examples(np.array([0, 1]), input_ids=np.array([[1, 2], [3, 4]])).take(np.array([1]))
    assert pixels.input_ids is not None
    assert pixels.input_ids.tolist() == [[3, 4]]


def test_streamed_examples_count_their_rows():
    streamed = StreamedExamples(3, np.array([1, 2]), lambda: iter(()), ["a"])
    assert len(streamed) == 3
    assert streamed.label_counts(3).tolist() == [1, 2, 0]
    assert list(streamed.tokenizer_texts()) == ["a"]


@given(
    labels=st.lists(st.integers(0, 3), min_size=2),
    fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_cut_parts_rows_by_class_and_group(labels, fraction, seed, data):
    labels = np.array(labels)
    groups = np.array(data.draw(st.lists(st.integers(0, len(labels)), min_size=len(labels), max_size=len(labels))))
    first_labels = [labels[np.flatnonzero(groups == group)[0]] for group in np.unique(groups)]
    if max(np.bincount(first_labels)) < 2:
        with pytest.raises(ValueError, match="every class has one row only"):
            cut(labels, fraction, seed, groups)
        return
    kept, held = cut(labels, fraction, seed, groups)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert len(kept) > 0
    assert len(held) > 0
    assert not set(groups[kept]) & set(groups[held])
    again = cut(labels, fraction, seed, groups)
    assert np.array_equal(again[0], kept)


def test_cut_is_stratified_and_depends_on_the_seed():
    labels = np.array([0] * 900 + [1] * 100)
    kept, held = cut(labels, 0.1, 0)
    assert np.bincount(labels[held]).tolist() == [90, 10]
    assert len(kept) == 900
    assert not np.array_equal(held, cut(labels, 0.1, 1)[1])


def test_cut_refuses_other_fractions():
    with pytest.raises(ValueError, match="fraction: got 1"):
        cut(np.array([0, 0]), 1.0, 0)
