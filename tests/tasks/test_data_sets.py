"""Published data sets: where they come from, how splits are cut, and what is refused."""

from __future__ import annotations

import sys
from types import ModuleType

import pyarrow as pa
import pytest
from toy_tables import parquet, refusal, write

from diffmix.errors import RequestError
from diffmix.tasks import data_sets, load_task


@pytest.fixture
def toy_ag_news(tmp_path):
    """A folder of data-set folders with 80 train and 8 test rows of ag_news."""
    folder = tmp_path / "sets" / "ag_news"
    parquet(folder / "train.parquet", [f"train {i}" for i in range(80)], [i % 4 for i in range(80)])
    parquet(folder / "test.parquet", [f"test {i}" for i in range(8)], [i % 4 for i in range(8)])
    parquet(folder / "descriptions.parquet", [f"more {i}" for i in range(20)], [i % 4 for i in range(20)])
    return tmp_path / "sets"


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
    small = dict(data_sets.DATA_SETS)
    small["ag_news"] = data_sets.DataSet("hub/name", small["ag_news"].labels, 80)
    monkeypatch.setattr(data_sets, "DATA_SETS", small)
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
    parquet(toy_ag_news / "ag_news" / "dev.parquet", ["v"], [3])
    for held in ("test", "Test", "dev", "DEV", "validation", "unlabelled"):
        assert f"no further train file '{held}'" in refusal("ag_news", data=toy_ag_news, extra_train=[held])


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
    assert set(task.load_unlabelled()) == set()
    assert set(task.all_texts()) == set(task.train.tokenizer_texts())
    parquet(folder / "unsupervised.parquet", ["u"], [-1])
    assert set(task.load_unlabelled()) == {"u"}
    assert set(task.all_texts()) == {*task.train.tokenizer_texts(), "u"}


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


def test_a_data_set_without_official_test_gets_one_of_its_own(tmp_path):
    texts = [f"article {i % 95}" for i in range(100)]  # five of them twice
    parquet(tmp_path / "hyperpartisan_byarticle/train.parquet", texts, [int(i % 95 % 3 == 0) for i in range(100)])
    task, again = (load_task("hyperpartisan_byarticle", data=tmp_path) for _ in range(2))
    test, test_again = task.load_test(), again.load_test()
    assert test is not None
    assert test_again is not None
    assert list(test.texts or ()) == list(test_again.texts or ())
    parts = [set(split.texts or ()) for split in (task.train, task.validation, test)]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 95
    assert len(task.train) + len(task.validation) + len(test) == 100
    assert test.label_counts(2).tolist() == pytest.approx([13, 7], abs=1)
    assert "cut from train (20%, stratified by label, seed 0): no official test split" in str(task.facts["test"])
    assert task.facts["train_rows"] == 100 - len(test)
    assert len(load_task("hyperpartisan_byarticle", data=tmp_path, limit=3).load_test() or ()) == 3


def test_a_data_set_that_the_hub_cannot_serve_says_where_it_is():
    assert "no local copy was found and the hub's copy" in refusal("hyperpartisan_byarticle")
    assert "zenodo.org" in refusal("hyperpartisan_byarticle")


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
