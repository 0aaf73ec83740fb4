"""Tokenizers: trained the same in every run, saved as tokenizer.json, and found by name or folder."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from diffmix.errors import RequestError
from diffmix.tasks.tokenizers import build_tokenizer

TEXTS = [
    f"The {a} sat on the {b}.<br />Naïve Ünïcode {a}{b} says: don't!"
    for a in ("cat", "dog", "owl")
    for b in ("mat", "hat", "tree")
] * 5
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.mark.parametrize("spec", ["wordpiece-400", "bpe-400", "bytes"])
def test_saved_tokenizers_load_and_agree(tmp_path, spec):
    tokenizer = build_tokenizer(spec, TEXTS, max_length=16)
    assert tokenizer.pad_token_id == 0
    assert tokenizer.model_max_length == 16
    assert len(tokenizer) <= 400
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    assert len(loaded) == len(tokenizer)
    for text in [*TEXTS[:3], "", "☃ unseen"]:
        assert dict(loaded(text)) == dict(tokenizer(text))
        assert set(loaded(text)) == {"input_ids", "attention_mask"}  # no token types: our models take none
    assert len(loaded(TEXTS[0], truncation=True)["input_ids"]) <= 16


@pytest.mark.parametrize("spec", ["wordpiece-400", "bpe-400"])
def test_training_is_reproducible(spec):
    first, second = (build_tokenizer(spec, iter(TEXTS), max_length=16).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_wordpiece_ignores_case_accents_and_html_line_ends():
    tokenizer = build_tokenizer("wordpiece-400", TEXTS, max_length=16)
    assert tokenizer.tokenize("NAÏVE cat.<br />the") == ["naive", "cat", ".", "the"]
    assert tokenizer.tokenize("catmat") == tokenizer.tokenize("CATMAT")
    assert tokenizer("☃")["input_ids"] == [tokenizer.unk_token_id]
    assert tokenizer.tokenize("##a")[:2] == ["[UNK]", "[UNK]"]  # the pieces have no special status


def test_wordpiece_of_no_text_still_is_a_tokenizer():
    tokenizer = build_tokenizer("wordpiece-400", [], max_length=8)
    assert len(tokenizer) == 5


@given(ANY_TEXT)
def test_bytes_are_bytes(text):
    tokenizer = BYTES
    ids = tokenizer(text)["input_ids"]
    assert ids == [byte + 4 for byte in text.encode()]
    assert tokenizer.decode(ids) == text


BYTES = build_tokenizer("bytes", [], max_length=1_000_000)
BPE = build_tokenizer("bpe-400", TEXTS, max_length=1_000_000)


@given(ANY_TEXT)
def test_bpe_knows_every_text(text):
    ids = BPE(text)["input_ids"]
    assert all(0 <= token < len(BPE) for token in ids)
    assert BPE.unk_token is None


def test_folder_with_vocab_txt_is_bert(tmp_path):
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "wor", "##ld"])
    )
    tokenizer = build_tokenizer(str(tmp_path), [], max_length=8)
    assert tokenizer("Hello wórld ?")["input_ids"] == [2, 5, 6, 7, 1, 3]
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 4)
    with (tmp_path / "vocab.txt").open("a") as file:
        file.write("\nParis")
    assert build_tokenizer(str(tmp_path), [], max_length=8).tokenize("Paris hello") == ["Paris", "hello"]  # cased


@pytest.mark.parametrize(
    ("special", "ids", "pad"),
    [(["<|endoftext|>"], [1, 4], 0), (["<s>", "<pad>", "</s>", "<unk>", "<mask>"], [0, 5, 8, 2], 1)],
)
def test_folder_with_vocab_json_and_merges_is_gpt2_or_roberta(tmp_path, special, ids, pad):
    vocabulary = [*special, "a", "b", "Ġ", "Ġa"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ a\n")
    tokenizer = build_tokenizer(str(tmp_path), [], max_length=8)
    assert tokenizer("a a")["input_ids"] == ids
    assert tokenizer.pad_token_id == pad


def test_folder_with_tokenizer_json_alone(tmp_path):
    build_tokenizer("bytes", [], max_length=8).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = build_tokenizer(str(tmp_path), [], max_length=8)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer("a")["input_ids"] == [ord("a") + 4]
    assert tokenizer.pad_token_id == 0


def test_saved_folder_takes_the_new_length(tmp_path):
    build_tokenizer("bytes", [], max_length=8).save_pretrained(tmp_path)
    assert build_tokenizer(str(tmp_path), [], max_length=99).model_max_length == 99


def refusal(spec):
    with pytest.raises(RequestError) as caught:
        build_tokenizer(str(spec), [], max_length=8)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals(tmp_path):
    assert "too small; give wordpiece-300 or more" in refusal("wordpiece-20")
    assert "too large; give bpe-1000000 tokens at most" in refusal("bpe-1000001")
    assert "too large; give bpe-1000000 tokens at most" in refusal("bpe-99999999999999")
    assert "needs a size, for example 'wordpiece-16000'" in refusal("wordpiece")
    assert "needs a size" in refusal("bpe-big")
    assert "is no folder" in refusal(tmp_path / "none")
    assert "is no folder" in refusal("./none")
    assert "holds no tokenizer" in refusal(tmp_path)
    assert "could not be loaded" in refusal("no-such-organisation/no-such-tokenizer")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot be read" in refusal(tmp_path)
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    assert "has no padding token" in refusal(tmp_path)


@pytest.mark.parametrize("spec", ["wordpiece-400", "bpe-400", "bytes"])
def test_a_class_token_stands_before_each_text_and_counts_as_one(tmp_path, spec):
    from diffmix.tasks.encoding import Encoder

    plain = build_tokenizer(spec, TEXTS, max_length=16)
    build_tokenizer(spec, TEXTS, max_length=16, class_token=True).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXTS[0], "", "cat"):
        assert tokenizer(text)["input_ids"] == [tokenizer.cls_token_id, *plain(text)["input_ids"]]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == plain(text)["input_ids"]
    (ids,) = Encoder(tokenizer, 5)([TEXTS[0]])
    assert ids == [tokenizer.cls_token_id, *plain(TEXTS[0])["input_ids"][:4]]
