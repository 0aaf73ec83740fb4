"""Tables larger than memory: the splits part the file, and equal texts share one."""

from __future__ import annotations

from toy_tables import refusal, write

from diffmix.tasks import StreamedExamples, load_task, streamed_text_file


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
    monkeypatch.setattr(streamed_text_file, "TOKENIZER_ROWS", 100)
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
