"""Text tasks: where data come from, how splits are cut, and one-line refusals of what cannot be trained on."""

from __future__ import annotations

import csv
import sys
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffmix.errors import RequestError
from diffmix.tasks import TASKS, Examples, StreamedExamples, load_task, text_classification


def write(path, rows, header=("text", "label")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def parquet(path, texts, labels, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts, "label": pa.array(labels, pa.int64())}), path)
    return path


def refusal(name, **arguments):
    with pytest.raises(RequestError) as caught:
        load_task(name, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def toy_ag_news(tmp_path):
    """A folder of data-set folders with 80 train and 8 test rows of ag_news."""
    folder = tmp_path / "sets" / "ag_news"
    parquet(folder / "train.parquet", [f"train {i}" for i in range(80)], [i % 4 for i in range(80)])
    parquet(folder / "test.parquet", [f"test {i}" for i in range(8)], [i % 4 for i in range(8)])
    parquet(folder / "descriptions.parquet", [f"more {i}" for i in range(20)], [i % 4 for i in range(20)])
    return tmp_path / "sets"


# Published data sets


def test_data_may_be_the_folder_of_data_sets_or_the_data_sets_own(toy_ag_news, monkeypatch):
    monkeypatch.setenv("DIFFMIX_DATA", str(toy_ag_news))
    found = [
        load_task("ag_news"),
        load_task("ag_news", data=toy_ag_news),
        load_task("ag_news", data=str(toy_ag_news / "ag_news")),
    ]
    for task in found:
        assert task.label_names == ("World", "Sports", "Business", "Sci/Tech")
        assert len(task.train) == 72
        assert task.validation.label_counts(4).tolist() == [2, 2, 2, 2]
        assert set(task.validation.texts or ()) == set(found[0].validation.texts or ())  # the same cut
        assert not set(task.train.tokenizer_texts()) & set(task.validation.texts or ())
        assert task.facts["train_rows"] == 80
        assert task.facts["note"] == "80-row subset of the official 120,000"
        test = task.load_test()
        assert test is not None
        assert list(test.texts or ()) == [f"test {i}" for i in range(8)]


def test_the_official_number_of_rows_needs_no_note(toy_ag_news, monkeypatch):
    small = dict(text_classification.DATA_SETS)
    small["ag_news"] = text_classification.DataSet("hub/name", small["ag_news"].labels, 80)
    monkeypatch.setattr(text_classification, "DATA_SETS", small)
    assert "note" not in load_task("ag_news", data=toy_ag_news).facts


def test_test_is_read_only_when_asked_for(toy_ag_news):
    (toy_ag_news / "ag_news" / "test.parquet").write_bytes(b"damaged")
    task = load_task("ag_news", data=toy_ag_news)
    with pytest.raises(RequestError, match="not a readable Parquet file"):
        task.load_test()
    (toy_ag_news / "ag_news" / "test.parquet").unlink()
    assert load_task("ag_news", data=toy_ag_news).load_test() is None


def test_withheld_test_labels_are_no_test(toy_ag_news):
    parquet(toy_ag_news / "ag_news" / "test.parquet", ["a", "b"], [-1, -1])
    assert load_task("ag_news", data=toy_ag_news).load_test() is None


def test_extra_train_rows_join_train_only(toy_ag_news):
    plain = load_task("ag_news", data=toy_ag_news)
    task = load_task("ag_news", data=toy_ag_news, extra_train=["descriptions"])
    assert len(task.train) == len(plain.train) + 20
    assert list(task.validation.texts or ()) == list(plain.validation.texts or ())
    assert task.facts["train_rows"] == 100
    assert task.facts["extra_train"] == "descriptions"
    assert "no further train file 'more'" in refusal("ag_news", data=toy_ag_news, extra_train=["more"])
    assert "no further train file 'test'" in refusal("ag_news", data=toy_ag_news, extra_train=["test"])


def test_own_validation_is_taken(toy_ag_news):
    parquet(toy_ag_news / "ag_news" / "validation.parquet", ["v"], [3])
    task = load_task("ag_news", data=toy_ag_news)
    assert len(task.train) == 80
    assert list(task.validation.texts or ()) == ["v"]
    assert task.facts["validation"] == "the source's own"


def test_unlabelled_text_is_train_and_unsupervised_never_test(toy_ag_news):
    folder = toy_ag_news / "ag_news"
    task = load_task("ag_news", data=toy_ag_news)
    assert task.load_unlabelled is not None
    assert set(task.load_unlabelled()) == set(task.train.tokenizer_texts())
    parquet(folder / "unsupervised.parquet", ["u"], [-1])
    assert set(task.load_unlabelled()) == {*task.train.tokenizer_texts(), "u"}


def test_equal_texts_stay_on_one_side_of_the_cut(toy_ag_news):
    parquet(
        toy_ag_news / "ag_news" / "train.parquet", [f"text {i % 20}" for i in range(200)], [i % 4 for i in range(200)]
    )
    task = load_task("ag_news", data=toy_ag_news)
    assert not set(task.train.tokenizer_texts()) & set(task.validation.texts or ())


def test_limit_takes_so_many_rows_of_each_split(toy_ag_news):
    task = load_task("ag_news", data=toy_ag_news, limit=5)
    test = task.load_test()
    assert test is not None
    assert (len(task.train), len(task.validation), len(test)) == (5, 5, 5)


def test_labels_beyond_the_task_are_refused(toy_ag_news):
    parquet(toy_ag_news / "ag_news" / "train.parquet", ["a", "b"], [0, 4])
    assert "train.parquet, row 2: unknown label '4'; the labels of train are '0', '1', '2', '3'" in refusal(
        "ag_news", data=toy_ag_news
    )


def test_labels_may_be_names(toy_ag_news):
    path = toy_ag_news / "ag_news" / "train.parquet"
    path.unlink()
    write(path.with_suffix(".csv"), [(f"row {i}", ["World", "Sports"][i % 2]) for i in range(40)])
    task = load_task("ag_news", data=toy_ag_news)
    assert task.train.label_counts(4).tolist() == [18, 18, 0, 0]


def test_missing_data_names_the_mend(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "does not exist; task 'imdb' takes a folder" in refusal("imdb", data=tmp_path / "none")
    assert "holds no imdb/train.parquet" in refusal("imdb", data=tmp_path)
    assert "is a file; task 'imdb' takes a folder" in refusal("imdb", data=write(tmp_path / "a.csv", []))
    assert "pip install 'diffmix[hub]'" in refusal("imdb")
    monkeypatch.setenv("DIFFMIX_DATA", str(tmp_path))
    notices = []
    assert "pip install 'diffmix[hub]'" in refusal("imdb", on_notice=notices.append)
    assert notices == [f"imdb is not in $DIFFMIX_DATA ({tmp_path}); trying the Hugging Face hub"]


class FakeHub(ModuleType):
    """Stands in for `datasets`: the same three calls, on tables in memory."""

    def __init__(self, tables):
        super().__init__("datasets")
        self.tables = tables
        self.asked = []

    def load_dataset(self, name, split):
        self.asked.append((name, split))
        if (name, split) not in self.tables:
            raise ConnectionError("no\nnetwork")
        return Formatted(self.tables[name, split])


class Formatted:
    def __init__(self, table):
        self.table = table

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def __getitem__(self, rows):
        assert rows == slice(None)
        return self.table


def test_the_hub_is_the_last_source(monkeypatch):
    table = pa.table({"sentence": [f"s {i}" for i in range(40)], "label": [i % 2 for i in range(40)]})
    hub = FakeHub({("stanfordnlp/sst2", "train"): table, ("stanfordnlp/sst2", "validation"): table.slice(0, 6)})
    monkeypatch.setitem(sys.modules, "datasets", hub)
    task = load_task("sst2")
    assert hub.asked == [("stanfordnlp/sst2", "train")]  # test is not read
    assert (len(task.train), len(task.validation)) == (36, 4)
    test = task.load_test()
    assert test is not None
    assert len(test) == 6
    assert "official validation split" in str(task.facts["test"])
    assert task.facts["source"] == "hub stanfordnlp/sst2"
    assert "could not be had from the Hugging Face hub: ConnectionError: no network" in refusal("ag_news")
    assert "no further train file" in refusal("sst2", extra_train=["descriptions"])


# Files of one's own


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


# Streaming


def rows_of(streamed):
    return [
        (text, int(label)) for texts, _, labels in streamed.read() for text, label in zip(texts, labels, strict=True)
    ]


def test_streamed_splits_part_the_file(tmp_path):
    rows = [(f"text {i}", "abc"[i % 3]) for i in range(6000)]
    path = write(tmp_path / "data.csv", rows)
    task = load_task("text_file", data=path, stream=True)
    assert isinstance(task.train, StreamedExamples)
    test = task.load_test()
    assert test is not None
    train = rows_of(task.train)
    assert train == rows_of(task.train)  # every reading gives the same rows
    held = [
        *zip(task.validation.texts or (), task.validation.labels, strict=True),
        *zip(test.texts or (), test.labels, strict=True),
    ]
    assert sorted(train + held) == sorted((text, "abc".index(label)) for text, label in rows)
    assert len(train) == len(task.train) == sum(task.train.label_counts(3))
    assert abs(len(test) - 600) < 100
    assert set(task.train.tokenizer_texts()) == {text for text, _ in train}  # few rows: all are sampled
    assert task.facts["train_rows"] == len(train) + len(task.validation)


def test_streaming_keeps_equal_texts_in_one_split(tmp_path):
    path = write(tmp_path / "data.csv", [(f"text {i % 300}", i % 2) for i in range(3000)])
    task = load_task("text_file", data=path, stream=True)
    assert isinstance(task.train, StreamedExamples)
    test = task.load_test()
    assert test is not None
    splits = [{text for text, _ in rows_of(task.train)}, set(task.validation.texts or ()), set(test.texts or ())]
    assert sum(len(split) for split in splits) == 300


def test_streaming_takes_files_limits_pairs_and_small_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(text_classification, "TOKENIZER_ROWS", 100)
    header = ("text", "other", "label")
    write(tmp_path / "train.csv", [(f"t {i}", f"p {i}", i % 2) for i in range(1000)], header)
    write(tmp_path / "validation.csv", [("v", "w", 1)], header)
    write(tmp_path / "test.csv", [("t", "w", 0)], header)
    task = load_task("text_file", data=tmp_path, pair_column="other", stream=True)
    assert isinstance(task.train, StreamedExamples)
    assert 50 < len(task.train.sample) < 150
    assert len(task.train) == 1000
    assert all(pairs is not None and len(pairs) == len(texts) for texts, pairs, _ in task.train.read())
    test = task.load_test()
    assert test is not None
    assert len(test) == len(task.validation) == 1
    assert len(rows_of(load_task("text_file", data=tmp_path, stream=True, limit=7).train)) == 7


def test_streaming_is_chosen_by_size(reviews, monkeypatch):
    assert isinstance(load_task("text_file", data=reviews).train, Examples)
    monkeypatch.setattr(text_classification, "_memory_available", lambda: 1000)
    assert isinstance(load_task("text_file", data=reviews).train, StreamedExamples)


def test_streaming_says_when_a_file_is_sorted(tmp_path):
    path = write(tmp_path / "data.csv", [(f"text {i}", i // 5000) for i in range(10_000)])
    notices = []
    load_task("text_file", data=path, stream=True, on_notice=notices.append)
    assert "its first rows hold 1 of 2 labels; shuffle the file" in notices[0]


def test_streaming_refuses_as_memory_does(tmp_path):
    same = write(tmp_path / "same.csv", [("a", "x"), ("b", "x")])
    assert "every row has the label 'x'" in refusal("text_file", data=same, stream=True)
    empty = write(tmp_path / "empty.csv", [])
    assert "has no rows" in refusal("text_file", data=empty, stream=True)
    few = write(tmp_path / "few.csv", [("a", "1"), ("b", "2"), ("c", "2")])
    assert "too few rows (3) to cut a validation split" in refusal("text_file", data=few, stream=True)


# All tasks


def test_unknown_task_and_arguments_out_of_place():
    assert "did you mean 'ag_news'" in refusal("agnews")
    assert "validation_fraction: got 0" in refusal("digits", validation_fraction=0)
    assert "limit: got 0" in refusal("digits", limit=0)
    assert "data: task 'digits' takes none" in refusal("digits", data="x")
    assert "text_column: task 'imdb' takes none" in refusal("imdb", text_column="x")
    assert "extra_train: task 'text_file' takes none" in refusal("text_file", extra_train=["x"])


@pytest.mark.parametrize("name", ["digits", "language_id"])
def test_embedded_tasks_have_three_splits_and_repeat(name):
    assert name in TASKS
    task, again = load_task(name), load_task(name)
    test, test_again = task.load_test(), again.load_test()
    assert test is not None
    assert test_again is not None
    classes = len(task.label_names)
    for a, b in [(task.train, again.train), (task.validation, again.validation), (test, test_again)]:
        assert isinstance(a, Examples)
        assert isinstance(b, Examples)
        assert np.array_equal(a.labels, b.labels)
        assert (a.label_counts(classes) > 0).all()
        assert a.texts is None or list(a.texts) == list(b.texts or ())
    assert len(load_task(name, limit=10).train) == 10


def test_digits_are_pixels_above_padding():
    task = load_task("digits")
    assert isinstance(task.train, Examples)
    pixels = task.train.input_ids
    assert pixels is not None
    assert pixels.shape[1] == 64
    assert (pixels.min(), pixels.max()) == (1, 17)
    assert task.vocab_size == 18


def test_language_id_leaks_nothing():
    task = load_task("language_id")
    assert len(task.label_names) >= 30
    test = task.load_test()
    assert test is not None
    assert isinstance(task.train, Examples)
    folded = [{text.casefold() for text in part.texts or ()} for part in (task.train, task.validation, test)]
    assert sum(len(part) for part in folded) == len(set.union(*folded))  # each name once, in one language, in one split
    assert sum(len(part) for part in folded) == len(task.train) + len(task.validation) + len(test)
    # Switzerland's names in French, Italian and Portuguese lie in one split.
    assert sum({"suisse", "svizzera", "suíça"} <= part for part in folded) == 1
    # 日本 and the like are shared by Chinese and Japanese, "Angola" by most.
    assert not any("angola" in part or "日本" in part for part in folded)
