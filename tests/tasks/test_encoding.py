"""Encoding: the tokenizer's own ids, in flat arrays, padded to each batch's longest row, or streamed in buckets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from diffmix.tasks.encoding import EncodedDataset, Encoder, PaddingCollator, StreamedDataset, encode, encode_texts
from diffmix.tasks.examples import Examples, StreamedExamples
from diffmix.tasks.tokenizers import build_tokenizer

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran", "under", "the", "old", "tree"]
TEXTS = [" ".join(WORDS[: 1 + i % len(WORDS)]) for i in range(40)]
WORDPIECE = build_tokenizer("wordpiece-300", TEXTS, max_length=8)
BYTES = build_tokenizer("bytes", [], max_length=8)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=5), st.integers(1, 20)
)
def test_encoding_is_the_tokenizers_own(texts, max_length):
    data = encode(Examples(np.arange(len(texts)), texts=texts), BYTES, max_length)
    assert len(data) == len(texts)
    for i, text in enumerate(texts):
        item = data[i]
        assert item["input_ids"].tolist() == BYTES(text, truncation=True, max_length=max_length)["input_ids"]
        assert item["labels"] == i
        assert data.lengths[i] == len(item["input_ids"])


def test_encoding_leaves_the_tokenizer_as_it_was():
    before = WORDPIECE.backend_tokenizer.to_str()
    encode_texts(TEXTS, WORDPIECE, 3)
    assert WORDPIECE.backend_tokenizer.to_str() == before


def test_encoding_keeps_a_closing_special_token(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    bert = build_tokenizer(str(tmp_path), [], max_length=4)
    assert encode_texts(["a a a a a a"], bert, 4)[0]["input_ids"].tolist() == [2, 5, 5, 3]


def test_long_texts_are_cut_early_and_alike():
    for long in ["word tree " * 20_000, "x" * 100_000, " " * 100_000 + "the cat"]:
        for tokenizer in (WORDPIECE, BYTES):
            (found,) = Encoder(tokenizer, 16)([long])
            assert found == tokenizer(long, truncation=True, max_length=16)["input_ids"]


def test_flat_arrays():
    data = encode(Examples(np.zeros(3, dtype=np.int64), texts=["abc", "", "de"]), BYTES, 8)
    assert data.tokens.dtype == np.int32
    assert data.offsets.tolist() == [0, 3, 3, 5]
    assert data.lengths.tolist() == [3, 0, 2]
    assert data[-1]["input_ids"].tolist() == [ord("d") + 4, ord("e") + 4]
    with pytest.raises(IndexError):
        data[3]


def test_pixels_need_no_tokenizer():
    pixels = np.arange(1, 13).reshape(2, 6)
    data = encode(Examples(np.array([0, 1]), input_ids=pixels), None, 4)
    assert data[1]["input_ids"].tolist() == [7, 8, 9, 10]
    assert data.lengths.tolist() == [4, 4]
    with pytest.raises(ValueError, match="tokenizer: got None"):
        encode(Examples(np.array([0]), texts=["a"]), None, 4)
    with pytest.raises(ValueError, match="max_length: got 0"):
        Encoder(BYTES, 0)


def test_unlabelled_texts_have_no_labels():
    data = encode_texts(["a", "b"], BYTES, 4)
    assert set(data[0]) == {"input_ids"}
    assert set(PaddingCollator(0)([data[0], data[1]])) == {"input_ids", "attention_mask"}


def test_collator_pads_to_the_longest_row():
    rows = [{"input_ids": np.array([5, 6, 7], dtype=np.int32), "labels": 1}, {"input_ids": np.array([8]), "labels": 0}]
    batch = PaddingCollator(9, longest=3)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_collator_of_empty_texts():
    batch = PaddingCollator(9)([{"input_ids": np.array([], dtype=np.int32)}])
    assert batch["input_ids"].tolist() == [[9] * 8]
    assert batch["attention_mask"].tolist() == [[0] * 8]


@pytest.mark.parametrize(
    ("tokens", "longest", "width"), [(8, None, 8), (9, None, 16), (9, 10, 10), (9, 9, 9), (9, 5, 9)]
)
def test_lengths_are_rounded_up_but_not_beyond_the_longest(tokens, longest, width):
    batch = PaddingCollator(0, longest)([{"input_ids": np.ones(tokens, dtype=np.int32)}])
    assert batch["input_ids"].shape == (1, width)
    assert batch["attention_mask"].sum() == tokens


def test_pairs_are_padded_on_their_own():
    data = encode(Examples(np.array([0, 1]), texts=["a", "b"], pairs=["long one", "c"]), BYTES, 6)
    assert data.lengths.tolist() == [6, 1]
    batch = PaddingCollator(0)([data[0], data[1]])
    assert batch["input_ids"].shape == (2, 8)
    assert batch["input_ids_pair"].shape == batch["attention_mask_pair"].shape == (2, 8)
    assert batch["attention_mask"].sum(1).tolist() == [1, 1]
    assert batch["attention_mask_pair"].sum(1).tolist() == [6, 1]


# Streaming


def streamed(n, *, pairs=False, batch=100):
    """n rows of 1 to 50 bytes, each with its own label."""
    lengths = np.random.default_rng(0).integers(1, 51, n)

    def read():
        for start in range(0, n, batch):
            texts = ["x" * length for length in lengths[start : start + batch]]
            yield texts, texts[::-1] if pairs else None, np.arange(start, start + len(texts))

    return StreamedExamples(n, np.ones(n, dtype=np.int64), read), lengths


def test_stream_gives_every_row_once_in_buckets_of_equal_length():
    examples, lengths = streamed(1050)
    data = StreamedDataset(examples, BYTES, 64, batch_size=8, buffer_rows=403)
    assert len(data) == 1050
    items = list(data)
    assert sorted(item["labels"] for item in items) == list(range(1050))
    assert all(len(item["input_ids"]) == lengths[item["labels"]] for item in items)
    batches = [[len(item["input_ids"]) for item in items[i : i + 8]] for i in range(0, 1050, 8)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)  # a random order pads to 1.8 times
    firsts = [batch[0] for batch in batches[:50]]
    assert firsts != sorted(firsts)


def test_stream_changes_with_the_epoch_and_the_seed_only():
    examples, _ = streamed(300)

    def order(epoch, seed):
        data = StreamedDataset(examples, BYTES, 64, batch_size=4, seed=seed)
        data.set_epoch(epoch)
        return [item["labels"] for item in data]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)


def test_stream_feeds_a_data_loader_with_workers():
    examples, _ = streamed(500, pairs=True)
    data = StreamedDataset(examples, BYTES, 64, batch_size=8)
    loader = DataLoader(
        data, batch_size=8, num_workers=2, collate_fn=PaddingCollator(0), multiprocessing_context="fork"
    )
    labels = [label for batch in loader for label in batch["labels"].tolist()]
    assert sorted(labels) == list(range(500))


def test_stream_carries_pairs():
    examples, _ = streamed(20, pairs=True)
    data = StreamedDataset(examples, BYTES, 8, batch_size=4)
    batch = PaddingCollator(0)(list(data)[:4])
    assert batch["input_ids_pair"].shape[1] <= 8
    with pytest.raises(ValueError, match="batch_size: got 0"):
        StreamedDataset(examples, BYTES, 8, batch_size=0)


def test_encoded_dataset_feeds_a_data_loader():
    data = encode(Examples(np.arange(40), texts=TEXTS), WORDPIECE, 8)
    assert isinstance(data, EncodedDataset)
    loader = DataLoader(data, batch_size=16, collate_fn=PaddingCollator(WORDPIECE.pad_token_id))
    assert [batch["input_ids"].shape[0] for batch in loader] == [16, 16, 8]
