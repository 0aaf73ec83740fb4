"""Tables of one's own: how splits are cut, which columns are read, and what is refused."""

from __future__ import annotations

import pytest
from toy_tables import refusal, write

from diffmix.tasks import Examples, StreamedExamples, load_task, text_file


@pytest.fixture
def reviews(tmp_path):
    return write(tmp_path / "reviews.csv", [(f"text {i}", "good" if i % 3 else "bad") for i in range(300)])


def test_text_file_cuts_what_it_lacks(reviews):
    task = load_task("text_file", data=reviews)
    assert task.label_names == ("bad", "good")
    test = task.load_test()
    assert test is not None
    splits = [set(part.texts or ()) for part in (task.train, task.validation, test) if isinstance(part, Examples)]
    assert [len(split) for split in splits] == [243, 27, 30]
    assert len(set.union(*splits)) == 300
    assert test.label_counts(2).tolist() == [10, 20]
    assert task.facts["source"] == "file reviews.csv"
    again = load_task("text_file", data=reviews, seed=1).load_test()
    assert again is not None
    assert set(again.texts or ()) != splits[2]


def test_equal_pairs_stay_on_one_side_of_a_cut(tmp_path):
    rows = [(f"one {i % 30}", f"other {i % 30}", "same" if i % 2 else "different") for i in range(600)]
    file = write(tmp_path / "pairs.csv", rows, header=("text", "other", "label"))
    task = load_task("text_file", data=file, pair_column="other")
    parts = [part for part in (task.train, task.validation, task.load_test()) if isinstance(part, Examples)]
    pairs = [set(zip(part.texts or (), part.pairs or (), strict=True)) for part in parts]
    assert all(pairs)
    assert sum(map(len, pairs)) == len(set.union(*pairs)) == 30


def test_text_file_takes_a_folder_and_checks_test_labels(tmp_path):
    write(tmp_path / "train.csv", [("a", 2), ("b", 10), ("c", 2), ("d", 10)])
    write(tmp_path / "valid.csv", [("v", 10)])
    write(tmp_path / "test.csv", [("t", 2)])
    task = load_task("text_file", data=tmp_path)
    assert task.label_names == ("2", "10")
    assert len(task.train) == 4
    assert task.validation.labels.tolist() == [1]
    test = task.load_test()
    assert test is not None
    assert test.labels.tolist() == [0]
    write(tmp_path / "test.csv", [("t", 2), ("u", 7)])
    for stream in (False, True):  # before any training
        assert "test.csv, row 2: unknown label '7'; the labels of train are '2', '10'" in refusal(
            "text_file", data=tmp_path, stream=stream
        )
    (tmp_path / "train.csv").unlink()
    assert "the folder holds no train file" in refusal("text_file", data=tmp_path)


def test_text_file_columns_can_be_named(tmp_path):
    rows = [(f"a {i}", f"b {i}", i % 2) for i in range(40)]
    path = write(tmp_path / "pairs.csv", rows, header=("premise", "hypothesis", "relation"))
    task = load_task("text_file", data=path, text_column="premise", pair_column="hypothesis", label_column="relation")
    assert isinstance(task.train, Examples)
    first, second = task.train.texts, task.train.pairs
    assert first is not None
    assert second is not None
    assert all(a[2:] == b[2:] for a, b in zip(first, second, strict=True))


def test_text_file_refusals(tmp_path):
    assert "name a CSV, TSV, JSONL or Parquet file" in refusal("text_file")
    assert "no such file" in refusal("text_file", data=tmp_path / "none.csv")
    same = write(tmp_path / "same.csv", [("a", "x"), ("b", "x")])
    assert "every row has the label 'x'" in refusal("text_file", data=same)
    numbers = write(tmp_path / "numbers.csv", [("a", "1"), ("b", "2"), ("c", "3")])
    assert "no label occurs twice" in refusal("text_file", data=numbers)
    few = write(tmp_path / "few.csv", [("a", "1"), ("b", "2"), ("c", "2")])
    assert "rows are too few to cut a split from" in refusal("text_file", data=few)


def test_empty_texts_are_counted_aloud(tmp_path):
    path = write(tmp_path / "data.csv", [(f"text {i}" if i else " ", i % 2) for i in range(40)])
    notices = []
    load_task("text_file", data=path, on_notice=notices.append)
    assert notices == [f"{path}: 1 of 40 rows have an empty text"]


def test_streaming_is_chosen_by_size(reviews, monkeypatch):
    assert isinstance(load_task("text_file", data=reviews).train, Examples)
    monkeypatch.setattr(text_file, "_HELD_AT_MOST", 1000)
    assert isinstance(load_task("text_file", data=reviews).train, StreamedExamples)
