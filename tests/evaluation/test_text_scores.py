"""Scoring a text: with our causal model and with a Hugging Face GPT-2, both from configurations."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from diffmix import DiffmixConfig, DiffmixForCausalLM
from diffmix.errors import RequestError
from diffmix.evaluation.language import fit_text_temperature, language_metrics, score_text, target_scores, total_nll
from diffmix.models.diffusion_time import recorded_times
from diffmix.tasks.language import Documents, TokenWindows
from diffmix.tasks.tokenizers import build_tokenizer

BYTES = build_tokenizer("bytes", [], max_length=10**6)
TEXTS = Documents.of(["The heat equation.\n", "Ein Wort, zwei Wörter.\n", "a b\nc\n", "x"])
SHAPE = {"vocab_size": len(BYTES), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def gpt2(**changes):
    shape = {"vocab_size": len(BYTES), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **changes}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=1, eos_token_id=1)).double()


def build(kind):
    torch.manual_seed(0)
    model = gpt2() if kind == "gpt2" else DiffmixForCausalLM(DiffmixConfig(mixer=kind, **SHAPE)).double()
    with torch.no_grad():  # a fresh model is nearly indifferent; this one has opinions
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


MODELS = {kind: build(kind) for kind in ("gpt2", "softmax", "heat_kernel", "neighbor")}


class Indifferent(torch.nn.Module):
    """Every token is as likely as every other: all its numbers are known."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, len(BYTES)))


@torch.inference_mode()
def plain_loop(model, windows):
    """Window by window and target by target: the negative log-likelihood and whether the best guess was right."""
    losses, hits = [], []
    model.eval()
    for number in range(len(windows)):
        ids = torch.tensor(windows[number]["input_ids"]).long()
        logits = model(input_ids=ids[None, :-1]).logits[0]
        for scores, target in zip(logits, ids[1:], strict=True):
            losses.append(-scores.log_softmax(-1)[target].item())
            hits.append(float(scores.argmax() == target))
    return losses, hits


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("length", "batch_size"), [(7, 1), (7, 3), (60, 8), (64, 2)])
def test_equals_a_plain_loop_over_the_logits(kind, length, batch_size):
    windows = TokenWindows(TEXTS, BYTES, length)
    losses, hits = plain_loop(MODELS[kind], windows)
    found = score_text(MODELS[kind], windows, batch_size=batch_size).metrics(bootstrap=0)
    assert found["n"] == len(windows.tokens) - 1 == len(losses)
    assert found["nll"] == pytest.approx(sum(losses) / len(losses), abs=1e-9)
    assert found["accuracy"] == pytest.approx(sum(hits) / len(hits), abs=1e-12)
    assert found["documents"] == len(TEXTS.texts)
    total, count = total_nll(MODELS[kind], windows, batch_size=batch_size)
    assert (total, count) == (pytest.approx(sum(losses), abs=1e-7), len(losses))
    last = len(windows) - 1
    total, count = total_nll(MODELS[kind], windows, [last], batch_size=batch_size)
    assert total == pytest.approx(sum(losses[last * length :]), abs=1e-7)
    assert count == len(losses) - last * length


@settings(max_examples=15)
@given(st.integers(1, 70), st.integers(1, 9))
def test_every_target_is_scored_once_and_in_order(length, batch_size):
    windows = TokenWindows(TEXTS, BYTES, length)
    parts = list(target_scores(Indifferent(), windows, batch_size=batch_size))
    targets = torch.cat([part[1] for part in parts])
    assert targets.tolist() == windows.tokens[1:].tolist()
    assert torch.cat([part[2] for part in parts]).tolist() == windows.owners[1:].tolist()
    assert sum(len(part[0]) for part in parts) == len(targets)


def test_perplexities_and_bits_by_hand():
    windows = TokenWindows(TEXTS, BYTES, 10)
    found = language_metrics(score_text(Indifferent(), windows), TEXTS, bootstrap=20)
    tokens = TEXTS.bytes  # one token a byte, behind a mark that is none of them
    words = 3 + 1 + 4 + 1 + 3 + 2 + 1  # with the lines' ends
    assert TEXTS.words == words
    assert found["n"] == tokens
    assert found["nll"] == pytest.approx(math.log(len(BYTES)))
    for suffix in ("", "_low", "_high"):
        assert found[f"perplexity{suffix}"] == pytest.approx(len(BYTES))
        assert found[f"word_perplexity{suffix}"] == pytest.approx(len(BYTES) ** (tokens / words))
        assert found[f"bits_per_byte{suffix}"] == pytest.approx(math.log2(len(BYTES)) * tokens / TEXTS.bytes)
    assert found["entropy_min"] == found["entropy_max"] == pytest.approx(math.log(len(BYTES)))


def test_a_perplexity_beyond_floats_is_large_and_finite():
    windows = TokenWindows(Documents.of(["xyz\n" * 50]), BYTES, 10)
    few_words = Documents(TEXTS.texts, 1, 1)
    assert 1e300 < language_metrics(score_text(Indifferent(), windows), few_words)["word_perplexity"] < math.inf


def test_parts_of_a_long_window_come_to_the_same(monkeypatch):
    windows = TokenWindows(TEXTS, BYTES, 60)
    whole = score_text(MODELS["gpt2"], windows).metrics(bootstrap=0)
    monkeypatch.setattr("diffmix.evaluation.language._SCORES_AT_ONCE", 5 * len(BYTES))
    assert score_text(MODELS["gpt2"], windows).metrics(bootstrap=0) == pytest.approx(whole)


def test_the_mode_is_put_back_and_the_progress_is_told():
    windows, told = TokenWindows(TEXTS, BYTES, 10), []
    model = gpt2(attn_pdrop=0.5, embd_pdrop=0.5).train()
    first = score_text(model, windows, batch_size=4, on_batch=told.append).metrics(bootstrap=0)
    assert model.training
    assert told == [4, len(windows) - 4]
    assert score_text(model.eval(), windows, batch_size=4).metrics(bootstrap=0) == first
    assert not model.training


def test_low_precision_is_near_and_scored_in_fp32():
    windows = TokenWindows(TEXTS, BYTES, 30)
    model = build("gpt2").float()
    exact = score_text(model, windows).metrics(bootstrap=0)["nll"]
    assert score_text(model, windows, dtype="bf16").metrics(bootstrap=0)["nll"] == pytest.approx(exact, rel=0.02)
    assert next(target_scores(model.bfloat16(), windows))[0].dtype == torch.float32


class Bigrams(torch.nn.Module):
    """How often each token follows each in a text, and `sharpness` times too sure of it."""

    def __init__(self, tokens, sharpness):
        super().__init__()
        counts = torch.full((len(BYTES), len(BYTES)), 1e-12, dtype=torch.float64)
        counts.index_put_((tokens[:-1], tokens[1:]), torch.ones(len(tokens) - 1).double(), accumulate=True)
        self.scores = torch.nn.Parameter(sharpness * (counts / counts.sum(1, keepdim=True)).log())

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.scores[input_ids])


@pytest.mark.parametrize("sharpness", [3.0, 0.4])
def test_the_temperature_of_a_text_is_the_best_one(sharpness):
    """Of a model that is the text's own frequencies to a power, it is that power."""
    windows = TokenWindows(TEXTS, BYTES, 30)
    model = Bigrams(torch.from_numpy(windows.tokens).long(), sharpness)
    assert fit_text_temperature(model, windows) == pytest.approx(sharpness, rel=1e-3)
    before, after = (score_text(model, windows, temperature=t).metrics(bootstrap=0)["nll"] for t in (1.0, sharpness))
    assert after < before


def test_what_does_not_fit_is_named():
    windows = TokenWindows(TEXTS, BYTES, 20)
    with pytest.raises(RequestError, match="windows of 20 tokens are longer than the model's 16 positions"):
        score_text(gpt2(n_positions=16), windows)
    windows = TokenWindows(TEXTS, BYTES, 10)
    with pytest.raises(RequestError, match="the model knows 100 tokens: give the tokenizer"):
        score_text(gpt2(vocab_size=100), windows)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        score_text(MODELS["gpt2"], windows, dtype="int8")
    with pytest.raises(ValueError, match="batch_size is 0"):
        score_text(MODELS["gpt2"], windows, batch_size=0)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature is"):
            score_text(MODELS["gpt2"], windows, temperature=temperature)


def test_recorded_times_are_those_of_the_text_whatever_is_scored_at_once():
    torch.manual_seed(0)
    model = DiffmixForCausalLM(DiffmixConfig(mixer="heat_kernel", heat_time_mode="adaptive", **SHAPE)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    windows = TokenWindows(TEXTS, BYTES, 14)
    assert windows.lengths[-1] < windows.lengths[0]
    found = []
    for batch_size in (1, 8):
        with recorded_times(model) as times:
            score_text(model, windows, batch_size=batch_size)
        found.append([head for heads in times.values() for head in heads])
    assert found[0]
    for alone, together in zip(*found, strict=True):
        assert alone == pytest.approx(together)
