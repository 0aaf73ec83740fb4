import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmix.errors import RequestError
from diffmix.tasks.language import (
    Documents,
    TokenWindows,
    articles,
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
