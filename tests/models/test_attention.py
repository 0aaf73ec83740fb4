"""Models of Hugging Face with heat-kernel attention, built from their configurations."""

import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen2Config,
)

from diffmix import register_attention
from diffmix.errors import RequestError

SMALL = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CAUSAL = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **SMALL),
    "llama": LlamaConfig(**SMALL, **WIDE),
    "qwen2": Qwen2Config(**SMALL, **WIDE, num_key_value_heads=2),
}
MASKED = {
    "bert": BertConfig(**SMALL, **WIDE),
    "modernbert": ModernBertConfig(**SMALL, **WIDE, cls_token_id=1, sep_token_id=2, local_attention=4),
}
EVERY = CAUSAL | MASKED


def make(name, attention):
    register_attention()
    torch.manual_seed(0)
    kind = AutoModelForCausalLM if name in CAUSAL else AutoModelForMaskedLM
    return kind.from_config(EVERY[name], attn_implementation=attention, dtype=torch.float64).eval()


def batch():
    ids = torch.randint(3, 60, (2, 11))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return ids, mask


@pytest.mark.parametrize("name", EVERY)
def test_the_swap_alone_changes_nothing(name):
    ids, mask = batch()
    real = mask.bool()
    for attention_mask in (None, mask):
        own = make(name, "sdpa")(ids, attention_mask=attention_mask).logits
        swapped = make(name, "heat_kernel")(ids, attention_mask=attention_mask).logits
        torch.testing.assert_close(swapped[real], own[real], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_padding_changes_nothing(name):
    model = make(name, "heat_kernel")
    model.config.heat_time = 0.7
    ids, mask = batch()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    extra = {"position_ids": positions} if name != "modernbert" else {}
    padded = model(ids, attention_mask=mask, **extra).logits[1, 4:]
    torch.testing.assert_close(padded, model(ids[1:, 4:]).logits[0], atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_time_comes_from_the_call_the_config_or_a_list(name):
    ids, _ = batch()
    plain = make(name, "heat_kernel")(ids).logits
    model = make(name, "heat_kernel")
    model.config.heat_time = 0.5
    configured = model(ids).logits
    assert (configured - plain).abs().max() > 1e-6
    model.config.heat_time = [0.5, 0.5]
    torch.testing.assert_close(model(ids).logits, configured)
    model.config.heat_time = [0.5]
    for times in ([0.5], [0.5, 0.5, 0.5]):
        model.config.heat_time = times
        with pytest.raises(RequestError, match=rf"has {len(times)} times and the model 2 layers"):
            model(ids)


@pytest.mark.parametrize("time", [0, -1.0, math.nan, math.inf, "fast", True, [0.5, -1.0], [0.5, math.nan]])
def test_a_wrong_time_is_named_in_one_line(time):
    ids, _ = batch()
    model = make("llama", "heat_kernel")
    model.config.heat_time = time
    with pytest.raises(RequestError, match=r"^config.heat_time is [^\n]*; give a finite number above 0[^\n]*$"):
        model(ids)
    model.config.heat_time = None
    if not isinstance(time, list):
        with pytest.raises(RequestError, match=r"^heat_time is [^\n]*; give a finite number above 0"):
            model(ids, heat_time=time)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_a_time_for_one_call(name):
    ids, _ = batch()
    model = make(name, "heat_kernel")
    called = model(ids, heat_time=0.5).logits
    model.config.heat_time = 0.5
    torch.testing.assert_close(called, model(ids).logits)


@pytest.mark.parametrize("name", CAUSAL)
def test_generates_what_repeated_argmax_gives(name):
    model = make(name, "heat_kernel")
    model.config.heat_time = 0.7
    ids, mask = batch()
    with torch.inference_mode():
        found = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
        plain, grown = ids, mask
        for _ in range(6):
            positions = (grown.cumsum(1) - 1).clamp(min=0)
            logits = model(plain, attention_mask=grown, position_ids=positions, use_cache=False).logits
            plain = torch.cat([plain, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            grown = torch.cat([grown, torch.ones(2, 1, dtype=torch.long)], dim=1)
    assert torch.equal(found, plain)


@pytest.mark.parametrize("name", EVERY)
def test_trains_and_comes_back_from_disk(name, tmp_path):
    model = make(name, "heat_kernel").train()
    model.config.heat_time = 0.7
    ids, mask = batch()
    model(ids, attention_mask=mask, labels=ids).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(grad is None or grad.isfinite().all() for grad in gradients)
    assert sum(grad is not None and grad.abs().max() > 0 for grad in gradients) > len(gradients) // 2
    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, attn_implementation="heat_kernel", dtype=torch.float64)
    assert again.config.heat_time == 0.7
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_a_model_that_asks_for_more_is_refused():
    register_attention()
    config = Gemma2Config(**SMALL, **WIDE, num_key_value_heads=2, head_dim=8)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="heat_kernel")
    with pytest.raises(ValueError, match=r"caps its scores \(softcap\)"):
        model(torch.randint(3, 60, (1, 5)))
