"""Heat-kernel attention in the place of a causal model's own: a Llama trained for a moment on the embedded text, and others."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config

from diffmix import DiffmixConfig, DiffmixForCausalLM
from diffmix.errors import RequestError
from diffmix.evaluation.language import score_text, total_nll
from diffmix.evaluation.swap import fit_heat_time, measure_swap
from diffmix.models.attention import exact_heat_times, swapped_attention
from diffmix.tasks.language import Documents, TokenWindows, load_python_docs
from diffmix.tasks.tokenizers import build_tokenizer

BYTES = build_tokenizer("bytes", [], max_length=10**6)
SMALL = {"vocab_size": len(BYTES), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, **WIDE),
    "qwen2": Qwen2Config(**SMALL, **WIDE, num_key_value_heads=2),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **SMALL),
    "gpt2_by_layer": GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, scale_attn_by_inverse_layer_idx=True, **SMALL
    ),
}


def make(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():  # fresh scores are so small that every attention is a mean
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model


@pytest.fixture(scope="module")
def text():
    docs = load_python_docs(0)
    return Documents.of(text[:250] for text in docs.validation.texts[:4])


@pytest.fixture(scope="module")
def windows(text):
    return TokenWindows(text, BYTES, 48)


@pytest.fixture(scope="module")
def trained():
    """A Llama that has learnt where to look: the last letters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    tokens = torch.from_numpy(TokenWindows(load_python_docs(0).train, BYTES, 48).tokens).long()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(120):
        starts = torch.randint(len(tokens) - 64, (16,))
        ids = torch.stack([tokens[start : start + 64] for start in starts])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def sharpened(model, factors):
    """A copy whose queries are longer: its attention is that of the model at a time divided by the factor."""
    other = AutoModelForCausalLM.from_config(model.config)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer, factor in zip(other.model.layers, factors, strict=True):
            layer.self_attn.q_proj.weight.mul_(factor)
    return other.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_exact_time_changes_nothing_and_others_do(name, text, windows):
    model = make(name)
    found = measure_swap(model, windows, text, factors=(0.5, 3.0), bootstrap=20)
    rows = {row["attention"]: row for row in found["rows"]}
    own, exact = rows["own"]["metrics"], rows["heat_kernel, exact time"]["metrics"]
    head_size = 8
    expected = [math.sqrt(head_size) / 2] * 2
    if name == "gpt2_by_layer":
        expected[1] *= 2
        assert found["exact_time"] == pytest.approx(expected)
    else:
        assert found["exact_time"] == pytest.approx(expected[0])
    assert found["max_logit_difference"] < 1e-4
    assert found["compared_tokens"] == 96
    assert exact["nll"] == pytest.approx(own["nll"], abs=1e-6)
    assert exact["ece"] == pytest.approx(own["ece"], abs=1e-6)
    for factor in ("0.5", "3"):
        row = rows[f"heat_kernel, {factor} × exact"]
        assert np.asarray(row["time"]) == pytest.approx(float(factor) * np.asarray(found["exact_time"]))
        change = row["metrics"]["nll"] - own["nll"]
        assert abs(change) > 1e-4
        assert row["metrics"]["nll_difference"] == pytest.approx(change, abs=1e-9)
        assert row["metrics"]["nll_difference_low"] <= change <= row["metrics"]["nll_difference_high"]


def test_a_longer_query_is_a_shorter_time(trained, text, windows):
    """An independent way to the same model: t / 2 is twice as long queries."""
    rows = measure_swap(trained, windows, text, factors=(0.5,), bootstrap=0)["rows"]
    twice = score_text(sharpened(trained, [2, 2]), windows).metrics(bootstrap=0)
    for name in ("nll", "ece", "brier", "entropy"):
        assert rows[2]["metrics"][name] == pytest.approx(twice[name], abs=1e-5), name


def test_the_model_is_put_back(trained, windows, text):
    before = trained(input_ids=torch.tensor([[5, 6, 7]])).logits
    trained.config.heat_time = 0.25
    trained.train()
    try:
        with pytest.raises(IndexError), swapped_attention(trained, 1.0):
            trained(input_ids=torch.tensor([[10**6]]))
        measure_swap(trained, windows, text, factors=(), bootstrap=0)
        fit_heat_time(trained, windows, per_layer=True, tolerance=0.5)
        assert trained.training
        assert trained.config.heat_time == 0.25
        assert all(parameter.requires_grad for parameter in trained.parameters())
    finally:
        del trained.config.heat_time
        trained.eval()
    assert trained.config._attn_implementation == "sdpa"
    assert torch.equal(trained(input_ids=torch.tensor([[5, 6, 7]])).logits, before)
    exact_heat_times(trained)
    assert not hasattr(trained.config, "heat_time")


def nll_at(model, windows, time):
    with swapped_attention(model, time):
        total, count = total_nll(model, windows)
    return total / count


def test_the_fitted_time_is_the_best_one(trained, windows):
    """A model whose queries are three times too long wants three times the time, and gets it back."""
    [exact] = set(exact_heat_times(trained))
    right = fit_heat_time(trained, windows)
    assert isinstance(right, float)
    assert nll_at(trained, windows, right) <= nll_at(trained, windows, exact)
    found = fit_heat_time(sharpened(trained, [3, 3]), windows)
    assert found == pytest.approx(3 * right, rel=0.03)
    best = nll_at(trained, windows, right)
    assert best <= min(nll_at(trained, windows, right * 1.1), nll_at(trained, windows, right / 1.1))


def test_a_time_for_each_layer_mends_layers_that_are_wrong_each_in_their_way(trained, windows):
    spoilt = sharpened(trained, [3, 1 / 3])
    one, each = fit_heat_time(spoilt, windows), fit_heat_time(spoilt, windows, per_layer=True)
    assert isinstance(each, list)
    assert each[0] / each[1] > 3  # 9 undoes it
    best = nll_at(trained, windows, fit_heat_time(trained, windows, per_layer=True))
    assert nll_at(spoilt, windows, each) < nll_at(spoilt, windows, one)
    assert nll_at(spoilt, windows, each) == pytest.approx(best, abs=0.01)


def test_a_model_that_cannot_be_swapped_is_named(windows, text):
    ours = DiffmixForCausalLM(
        DiffmixConfig(mixer="softmax", vocab_size=len(BYTES), hidden_size=16, num_hidden_layers=1)
    )
    bloom = AutoModelForCausalLM.from_config(BloomConfig(**SMALL, hidden_size=16, n_layer=1, n_head=2))
    for model in (ours, bloom):
        with pytest.raises(RequestError, match="does not take its attention from Hugging Face's registry"):
            measure_swap(model, windows, text)
        with pytest.raises(RequestError, match="does not take its attention"):
            fit_heat_time(model, windows)
    capped = AutoModelForCausalLM.from_config(Gemma2Config(**SMALL, **WIDE, num_key_value_heads=2, head_dim=8))
    with pytest.raises(RequestError, match=r"caps its scores \(softcap\)"):
        measure_swap(capped, windows, text)


@pytest.mark.parametrize("time", [0.0, -1.0, math.nan, math.inf, "5", [1.0, -1.0], [1.0], [1.0] * 3])
def test_a_wrong_time_is_named(time, windows, text, trained):
    with pytest.raises(RequestError, match=r"heat_time is .*; give a finite number above 0|give one for each layer"):
        measure_swap(trained, windows, text, factors=(), times={"mine": time}, bootstrap=0)


def test_a_wrong_bound_is_named(trained, windows):
    for wrong in (1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="largest_factor is"):
            fit_heat_time(trained, windows, largest_factor=wrong)
