import numpy as np
import pytest

from diffmix.tasks.encoding import Encoder
from diffmix.tasks.subword_dropout import SubwordDropout
from diffmix.tasks.tokenizers import build_tokenizer

TEXTS = [
    "The national bank raised interest rates again on Tuesday, officials said.",
    "Nationals rally in the ninth inning to win again; the ratings were high.",
    "",
    "Rising interest in the internationals' banking software surprised officials.",
] * 30


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("wordpiece-400", TEXTS, max_length=512)


def rows(encoded):
    return [encoded[row]["input_ids"].tolist() for row in range(len(encoded))]


def test_spells_the_same_words_in_other_ways(tokenizer):
    dropout = SubwordDropout(TEXTS, np.zeros(len(TEXTS), int), tokenizer, max_length=512, probability=0.3, seed=0)
    first, second = rows(dropout.encode_epoch(0)), rows(dropout.encode_epoch(1))
    assert first != second
    for text, ids in zip(TEXTS, first, strict=True):
        assert tokenizer.decode(ids) == tokenizer.decode(tokenizer(text)["input_ids"])


def test_is_the_tokenizers_own_spelling_when_hardly_anything_is_dropped(tokenizer):
    dropout = SubwordDropout(TEXTS, None, tokenizer, max_length=512, probability=1e-12, seed=0)
    assert rows(dropout.encode_epoch(0)) == Encoder(tokenizer, 512)(TEXTS)


def test_is_reproducible_from_the_seed_and_the_epoch(tokenizer):
    def make(seed):
        return SubwordDropout(TEXTS, None, tokenizer, max_length=512, probability=0.3, seed=seed)

    assert rows(make(1).encode_epoch(3)) == rows(make(1).encode_epoch(3))
    assert rows(make(1).encode_epoch(3)) != rows(make(2).encode_epoch(3))


def test_cuts_rows_and_keeps_labels(tokenizer):
    labels = np.arange(len(TEXTS))
    encoded, whole = (
        SubwordDropout(TEXTS, labels, tokenizer, max_length=most, probability=0.3, seed=0).encode_epoch(0)
        for most in (5, 512)
    )
    assert encoded.lengths.tolist() == [min(5, length) for length in whole.lengths]
    assert whole.lengths.max() > 5
    assert rows(encoded) == [row[:5] for row in rows(whole)]
    assert [encoded[row]["labels"] for row in range(4)] == [0, 1, 2, 3]
    assert encoded.lengths[2] == 0


def test_unknown_words_stay_unknown(tokenizer):
    texts = ["bank \u4e2d bank", "x" * 101]
    dropout = SubwordDropout(texts, None, tokenizer, max_length=9, probability=1e-12, seed=0)
    assert rows(dropout.encode_epoch(0)) == Encoder(tokenizer, 9)(texts)


def test_takes_wordpiece_only():
    tokenizer = build_tokenizer("bytes", TEXTS, max_length=9)
    with pytest.raises(ValueError, match="WordPiece"):
        SubwordDropout(TEXTS, None, tokenizer, max_length=9, probability=0.1, seed=0)


def test_refuses_a_tokenizer_that_adds_special_tokens(tokenizer):
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", backend.token_to_id("[CLS]"))]
    )
    marked = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    with pytest.raises(ValueError, match="adds special tokens"):
        SubwordDropout(TEXTS, None, marked, max_length=9, probability=0.1, seed=0)
