import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmix.errors import RequestError
from diffmix.tasks.language import (
    Documents,
    TokenWindows,
    articles,
    load_language,
    load_python_docs,
    load_tiny_shakespeare,
    load_wikitext,
    read_text,
)
from diffmix.tasks.tokenizers import build_tokenizer

BYTES = build_tokenizer("bytes", [], max_length=10**6)


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=6), st.integers(1, 9))
def test_every_token_is_the_target_of_one_window(texts, length):
    documents = Documents.of(texts)
    if documents.bytes < 1:
        with pytest.raises(RequestError, match="fewer than two tokens"):
            TokenWindows(documents, BYTES, length)
        return
    windows = TokenWindows(documents, BYTES, length)
    rows = [windows[index]["input_ids"] for index in range(len(windows))]
    assert [len(row) for row in rows] == windows.lengths.tolist()
    targets = np.concatenate([row[1:] for row in rows])
    expected = np.concatenate([BYTES(text, add_special_tokens=False)["input_ids"] for text in documents.texts])
    skipped = 0  # the separator stands before the first
    assert targets.tolist() == expected[skipped:].tolist()
    owners = np.concatenate([windows.documents(index) for index in range(len(windows))])
    sizes = [len(BYTES(text, add_special_tokens=False)["input_ids"]) for text in documents.texts]
    assert owners.tolist() == np.repeat(np.arange(len(sizes)), sizes)[skipped:].tolist()
    for before, after in itertools.pairwise(rows):
        assert before[-1] == after[0]


def test_words_are_counted_as_word_level_models_do():
    documents = Documents.of(["a b c\n", "", "\n d <unk> \n"])
    assert documents.words == 5 + 3
    assert len(documents.texts) == 2


def test_articles_begin_at_first_level_headings():
    lines = ["", " = Robert Boulter = \n", "", " Robert is . \n", " = = Career = = \n", " = Second = \n", " text \n"]
    assert articles(lines) == [
        "\n",
        " = Robert Boulter = \n\n Robert is . \n = = Career = = \n",
        " = Second = \n text \n",
    ]


def test_wikitext_is_read_split_by_split(tmp_path):
    folder = tmp_path / "wikitext-2-v1"
    folder.mkdir()
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text('{"text": " = A = \\n"}\n{"text": " b c \\n"}\n')
    data = load_wikitext("wikitext2", tmp_path, lambda _: None)
    assert data.train.texts == [" = A = \n b c \n"]
    assert data.train.words == 7
    with pytest.raises(RequestError, match="has no test split"):
        data.load_test()


def test_raw_wikitext_with_a_test_split_alone_is_completed_from_the_word_level_form(tmp_path):
    word_level, raw = tmp_path / "wikitext-2-v1", tmp_path / "wikitext-2-raw-v1"
    word_level.mkdir()
    raw.mkdir()
    rows = ["", " = A = \n", "", " one @-@ two \n", " rare <unk> \n", " = = B = = \n", " three \n"]
    for split in ("train", "validation", "test"):
        (word_level / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (raw / "test.jsonl").write_text("".join(json.dumps({"text": row.replace("<unk>", "bird")}) + "\n" for row in rows))
    data = load_language("wikitext2_raw", data=tmp_path)
    for part in (data.train, data.validation):
        assert part.texts == [" one @-@ two \n\n three \n\n"]
    test = data.load_test()
    assert test is not None
    assert "".join(test.texts) == "\n = A = \n\n one @-@ two \n rare bird \n = = B = = \n three \n"
    assert "without <unk>" in str(data.facts["validation"])
    # With its own train split the raw form is read like any other.
    for split in ("train", "validation"):
        (raw / f"{split}.jsonl").write_text('{"text": " raw \\n"}\n')
    assert load_language("wikitext2_raw", data=tmp_path).train.texts == [" raw \n"]


@given(st.integers(1, 60))
def test_the_first_lines_are_whole_and_within_the_limit(limit):
    documents = Documents.of(["12345\n1\n", "12\n", "1234567\n12\n"])
    kept = documents.first(limit, BYTES)
    lines = "".join(documents.texts).splitlines(keepends=True)
    sizes = np.cumsum([len(line) for line in lines])
    expected = lines[: max(1, int((sizes <= limit).sum()))]
    assert "".join(kept.texts) == "".join(expected)
    assert all(whole.startswith(text) for text, whole in zip(kept.texts, documents.texts, strict=False))
    assert kept.words == 2 * len(expected)


def test_the_embedded_documents_part_without_overlap():
    data = load_python_docs(0)
    parts = [data.train, data.validation, data.load_test()]
    assert sum(len(part.texts) for part in parts) == data.facts["topics"]
    assert len(parts[0].texts) > 5 * len(parts[1].texts) > 0
    assert data.train.bytes > 300_000
    assert load_python_docs(0).validation.texts == data.validation.texts


def test_tiny_shakespeare_is_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFMIX_DATA", raising=False)
    with pytest.raises(RequestError, match=r"no input\.txt was found"):
        load_tiny_shakespeare(None)
    path = tmp_path / "input.txt"
    path.write_text("First:\nSpeak.\n\nAll:\nSpeak, speak.\n\n" * 20)
    for place in (tmp_path, path):
        data = load_tiny_shakespeare(place)
        whole = [*data.train.texts, *data.validation.texts, *data.load_test().texts]
        assert "".join(whole) == path.read_text()
        assert data.train.texts[0] == "First:\nSpeak.\n\n"


@pytest.mark.parametrize(
    ("content", "message"), [(b" \n", "is empty"), (b"abc\0def", "byte 3 is 0"), (b"abc\xff", "byte 3 is not UTF-8")]
)
def test_what_is_no_text_is_named(tmp_path, content, message):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_text(path)


def test_a_file_of_text_is_cut_in_order(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    data = load_language("plain_text", data=path)
    parts = [data.train, data.validation, data.load_test()]
    assert "".join(text for part in parts for text in part.texts) == path.read_text()
    assert [round(part.bytes / len(path.read_text()), 1) for part in parts] == [0.8, 0.1, 0.1]


def test_a_folder_of_texts_is_cut_by_file(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"file {number}")
    (tmp_path / "picture.png").write_bytes(b"\0")
    data = load_language("plain_text", data=tmp_path)
    parts = [data.train, data.validation, data.load_test()]
    assert [len(part.texts) for part in parts] == [16, 2, 2]
    assert {text for part in parts for text in part.texts} == {f"file {number}" for number in range(20)}


def test_what_runs_write_into_a_folder_of_texts_is_not_read(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"file {number}")
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "recipe.yaml").touch()
    (run / "README.md").write_text("a model")
    data = load_language("plain_text", data=tmp_path)
    assert sum(len(part.texts) for part in (data.train, data.validation, data.load_test())) == 20


def test_a_folder_with_named_splits(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text(split)
    data = load_language("plain_text", data=tmp_path)
    assert (data.train.texts, data.validation.texts, data.load_test()) == (["train"], ["validation"], None)
    (tmp_path / "test.txt").write_text("test")
    assert load_language("plain_text", data=tmp_path).load_test().texts == ["test"]


@pytest.mark.parametrize("name", ["valid.txt", "val.md", "dev.rst", "Validation.txt"])
def test_validation_has_the_names_that_it_has_in_tables(tmp_path, name):
    for file in ("train.txt", name, "test.txt", "notes.md"):
        (tmp_path / file).write_text(file)
    data = load_language("plain_text", data=tmp_path)
    assert (data.train.texts, data.validation.texts) == (["train.txt"], [name])
    assert data.load_test().texts == ["test.txt"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.txt", "dev.txt", "valid.txt"], r"dev\.txt and valid\.txt are both of the validation split; keep one"),
        (["test.md", "test.txt", "train.txt", "val.txt"], r"test\.md and test\.txt are both of the test split"),
        (
            ["a.txt", "test.txt", "train.txt"],
            r"holds train\.txt and test\.txt but no validation\.txt; add what is missing, or rename",
        ),
        (["a.txt", "b.txt", "test.txt"], r"holds test\.txt but no train\.txt and no validation\.txt"),
        (["a.txt", "b.txt", "valid.txt"], r"holds valid\.txt but no train\.txt; add what"),
    ],
)
def test_files_named_after_splits_are_never_drawn(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_text(name)
    with pytest.raises(RequestError, match=message):
        load_language("plain_text", data=tmp_path)


def test_names_of_splits_further_down_are_of_no_account(tmp_path):
    for chapter in range(4):
        (tmp_path / str(chapter)).mkdir()
        (tmp_path / str(chapter) / "test.txt").write_text("text")
    assert load_language("plain_text", data=tmp_path).facts["files"] == 4


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("wikitxt2", {}, "did you mean 'wikitext2'"),
        ("plain_text", {}, "--data"),
        ("python_docs", {"data": "x"}, "takes none"),
    ],
)
def test_wrong_requests_are_named(name, arguments, message):
    with pytest.raises(RequestError, match=message):
        load_language(name, **arguments)


def test_too_few_files_are_named(tmp_path):
    (tmp_path / "one.txt").write_text("one")
    with pytest.raises(RequestError, match="1 text files"):
        load_language("plain_text", data=tmp_path)
