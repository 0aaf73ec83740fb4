import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from test_trainer import reproducible

from diffmix.errors import RequestError
from diffmix.training import trainer
from diffmix.training.recipe import load_recipe
from small_runs import SMALL

WORDS = {0: ["awful", "dull", "bad"], 1: ["great", "fine", "good"]}
TEACHER = ["self_training.epochs=1", "self_training.label_confidence=0.6", "self_training.tfidf_teacher=true"]


def text(label, number):
    return f"{WORDS[label][number % 3]} film number {number}, {WORDS[label][number // 3 % 3]}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """60 labelled rows, and 90 without labels, of which 30 say nothing."""
    folder = tmp_path_factory.mktemp("films")
    rows = [(text(number % 2, number), number % 2) for number in range(80)]
    for split, part in (("train", rows[:60]), ("test", rows[60:])):
        columns = {"text": [row[0] for row in part], "label": [row[1] for row in part]}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    unlabelled = [text(number % 2, 100 + number) for number in range(60)] + [f"film {n}" for n in range(30)]
    pq.write_table(pa.table({"text": unlabelled}), folder / "unsupervised.parquet")
    return folder


def train(data, output, *overrides, seeds=None):
    recipe = load_recipe("text_file", [*SMALL, "batch_size=8", *TEACHER, *overrides])
    if seeds is not None:
        return trainer.train_seeds(recipe, seeds, data=data, output=output, notice=lambda _: None)
    return trainer.train(recipe, data=data, output=output, notice=lambda _: None)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train(data, folder)


def test_the_texts_that_the_teacher_is_sure_of_join_train(run):
    folder, metrics = run
    teacher = json.loads((folder / "teacher" / "teacher.json").read_text())
    taught = load_file(folder / "teacher" / "taught.safetensors")
    assert teacher["texts"] == 90
    assert 0 < teacher["labelled"] == len(taught["rows"]) <= 90
    own = json.loads((folder / "teacher" / "metrics.json").read_text())["train/examples"]
    assert metrics["train/examples"] == own + teacher["labelled"]
    assert f"{teacher['labelled']:,} unlabelled texts" in metrics["data/self_training"]
    right = [label == row % 2 for row, label in zip(taught["rows"], taught["labels"], strict=True) if row < 60]
    assert sum(right) / len(right) > 0.8


def test_the_teacher_never_reads_test(run):
    folder, metrics = run
    assert "test/accuracy" in metrics
    for teacher in (folder / "teacher", folder / "teacher" / "tfidf"):
        assert not [key for key in json.loads((teacher / "metrics.json").read_text()) if key.startswith("test/")]


def test_seeds_share_one_teacher_and_a_resumed_run_keeps_it(data, run, tmp_path):
    summary = train(data, tmp_path / "seeds", seeds=2)
    first = json.loads((tmp_path / "seeds" / "seed-0" / "metrics.json").read_text())
    assert reproducible(first) == reproducible(run[1])
    assert summary["seeds"] == 2
    assert not (tmp_path / "seeds" / "seed-0" / "teacher").exists()
    (tmp_path / "seeds" / "metrics.json").unlink()
    (tmp_path / "seeds" / "seed-1" / "metrics.json").unlink()
    before = (tmp_path / "seeds" / "teacher" / "taught.safetensors").stat().st_mtime_ns
    recipe = load_recipe("text_file", [*SMALL, "batch_size=8", *TEACHER])
    again = trainer.train_seeds(recipe, 2, data=data, output=tmp_path / "seeds", resume=True, notice=lambda _: None)
    assert (tmp_path / "seeds" / "teacher" / "taught.safetensors").stat().st_mtime_ns == before
    for key, value in summary.items():
        if key.startswith(("test/", "validation/")) and "seconds" not in key:
            assert again[key] == value, key


def test_texts_without_labels_are_needed(data, tmp_path):
    (tmp_path / "few").mkdir()
    for split in ("train", "test"):
        (tmp_path / "few" / f"{split}.parquet").write_bytes((data / f"{split}.parquet").read_bytes())
    with pytest.raises(RequestError, match="self_training=null"):
        train(tmp_path / "few", tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()


def test_wrong_keys_of_the_teacher_are_refused_at_once():
    with pytest.raises(RequestError, match="epoch"):
        load_recipe("text_file", ["self_training.epoch=1"])
