"""Models of Hugging Face with attention diffusion, built from their configurations."""

import inspect

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BartConfig,
    BertConfig,
    BigBirdPegasusConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    PhimoeConfig,
    RobertaConfig,
)

from diffmix import DiffmixConfig, register_attention
from diffmix.errors import RequestError
from diffmix.models.sparse_attention import DIFFUSION_SETTINGS, diffusion_settings

SMALL = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CAUSAL = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **SMALL),
    "llama": LlamaConfig(**SMALL, **WIDE, num_key_value_heads=2),
    "mistral": MistralConfig(**SMALL, **WIDE, num_key_value_heads=2, sliding_window=5),
}
MASKED = {
    "bert": BertConfig(**SMALL, **WIDE),
    "roberta": RobertaConfig(**SMALL, **WIDE),
    # Its second layer is local: |i - j| ≤ 2.
    "modernbert": ModernBertConfig(**SMALL, **WIDE, cls_token_id=1, sep_token_id=2, local_attention=4),
}
EVERY = CAUSAL | MASKED
SPARSE = {"diffusion_window": 2, "diffusion_global_tokens": [0, 7], "diffusion_random_links": 1}
PLAIN = {"diffusion_hops": 1, "diffusion_alpha": 0.0}
FULL = {"diffusion_window": 64} | PLAIN


def make(name, attention, **settings):
    register_attention()
    torch.manual_seed(0)
    kind = AutoModelForCausalLM if name in CAUSAL else AutoModelForMaskedLM
    config = type(EVERY[name])(**EVERY[name].to_dict() | settings)
    return kind.from_config(config, attn_implementation=attention, dtype=torch.float64).eval()


def options(name):
    return {"use_cache": False} if name in CAUSAL else {}


def draw_ids(tokens=17):
    return torch.randint(3, 60, (2, tokens))


@pytest.mark.parametrize("name", EVERY)
def test_a_full_pattern_and_one_hop_are_the_models_own_attention(name):
    ids, mask = draw_ids(), torch.ones(2, 17, dtype=torch.long)
    mask[1, 9:] = 0
    own, swapped = make(name, "sdpa"), make(name, "attention_diffusion", **FULL)
    for attention_mask, real in ((None, slice(None)), (mask, mask.bool())):
        expected = own(ids, attention_mask=attention_mask, **options(name)).logits[real]
        found = swapped(ids, attention_mask=attention_mask, **options(name)).logits[real]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama"])
def test_one_hop_is_the_models_own_attention_behind_a_mask(name):
    ids, model = draw_ids(), make(name, "attention_diffusion", **SPARSE, **PLAIN)
    heard = diffusion_settings(model.config, name in CAUSAL).diffusion_pattern().dense(17)
    bias = torch.zeros(2, 1, 17, 17, dtype=torch.float64).masked_fill(~heard, torch.finfo(torch.float64).min)
    expected = make(name, "sdpa")(ids, attention_mask=bias, **options(name)).logits
    torch.testing.assert_close(model(ids, **options(name)).logits, expected, atol=1e-8, rtol=1e-6)
    model.config.diffusion_hops = 3
    assert (model(ids, **options(name)).logits - expected).abs().max() > 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_padding_changes_nothing(name):
    ids, model = draw_ids(), make(name, "attention_diffusion", **SPARSE)
    alone = model(ids[1:, :9], **options(name)).logits[0]
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    torch.testing.assert_close(model(ids, attention_mask=mask, **options(name)).logits[1, :9], alone)
    if name in CAUSAL:
        left = torch.cat([ids[1, 9:], ids[1, :9]])[None]
        mask = (torch.arange(17) >= 8).long()[None]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = model(left, attention_mask=mask, position_ids=positions, use_cache=False).logits[0, 8:]
        torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_future_changes_nothing(name):
    ids, model = draw_ids(), make(name, "attention_diffusion", **SPARSE)
    before = model(ids, use_cache=False).logits[:, :10]
    torch.testing.assert_close(model(ids[:, :10], use_cache=False).logits, before)


def test_local_layers_keep_their_own_window():
    """With a full pattern and many hops, a token of a local layer is reached over K of its own windows, no farther."""
    ids = draw_ids(40)
    model = make(
        "modernbert",
        "attention_diffusion",
        diffusion_window=64,
        diffusion_hops=3,
        layer_types=["sliding_attention"] * 2,
    )
    changed = ids.clone()
    changed[:, 0] = 59 - ids[:, 0] + 3
    moved = (model(ids).logits - model(changed).logits).abs().amax(dim=(0, 2)) > 1e-12
    assert moved[: 2 * 3 * 2 + 1].all()  # two layers of three hops of two tokens
    assert not moved[2 * 3 * 2 + 1 :].any()


def test_local_layers_that_hear_both_ways_hear_as_far_as_their_own_mask():
    """transformers counts the window of a causal layer without its end, and that of one that hears both ways with it."""
    register_attention()
    torch.manual_seed(0)
    config = MistralConfig(**SMALL, **WIDE, num_key_value_heads=2, sliding_window=5, is_causal=False, **FULL)
    model = AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float64).eval()
    ids = draw_ids()
    expected = model(ids, use_cache=False).last_hidden_state
    model.set_attn_implementation("attention_diffusion")
    torch.testing.assert_close(model(ids, use_cache=False).last_hidden_state, expected, atol=1e-6, rtol=1e-5)


def test_a_window_in_the_mask_alone_is_kept():
    """PhiMoE names its window to the mask, not to the attention."""
    register_attention()
    torch.manual_seed(0)
    config = PhimoeConfig(**SMALL, **WIDE, num_key_value_heads=2, num_local_experts=2, sliding_window=4, **FULL)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    ids = draw_ids()
    expected = model(ids, use_cache=False).logits
    model.set_attn_implementation("attention_diffusion")
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected, atol=1e-5, rtol=1e-5)


def test_compiles_into_one_graph_that_follows_the_settings():
    model = make("bert", "attention_diffusion", **SPARSE, num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    ids, mask = draw_ids(), torch.ones(2, 17, dtype=torch.long)
    mask[1, 9:] = 0
    before = torch.zeros(2, 17, 60, dtype=torch.float64)
    for settings in ({}, {"diffusion_hops": 2}, {"diffusion_global_tokens": [3]}):
        model.config.update(settings)
        after = model(ids, attention_mask=mask).logits
        assert (after - before).abs().max() > 1e-6
        torch.testing.assert_close(compiled(ids, attention_mask=mask).logits, after)
        before = after


@pytest.mark.parametrize("name", EVERY)
def test_trains_and_comes_back_from_disk(name, tmp_path):
    model = make(name, "attention_diffusion", **SPARSE, diffusion_hop_dropout=0.2).train()
    ids = draw_ids()
    model(ids, labels=ids, **options(name)).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(grad is None or grad.isfinite().all() for grad in gradients)
    assert sum(grad is not None and grad.abs().max() > 0 for grad in gradients) > len(gradients) // 2
    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, attn_implementation="attention_diffusion", dtype=torch.float64)
    assert again.config.diffusion_global_tokens == [0, 7]
    torch.testing.assert_close(again(ids, **options(name)).logits, model(ids, **options(name)).logits)


def test_generates_without_a_cache_and_says_so_with_one():
    model, ids = make("gpt2", "attention_diffusion", **SPARSE), draw_ids(5)
    plain = ids
    with torch.inference_mode():
        found = model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False, eos_token_id=None)
        for _ in range(4):
            plain = torch.cat([plain, model(plain, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        assert torch.equal(found, plain)
        with pytest.raises(RequestError, match=r"^the model has 1 new tokens and 6 in all, [^\n]* set use_cache=False"):
            model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)


def test_settings_have_the_names_and_defaults_of_our_configuration():
    names = [name for name in inspect.signature(DiffmixConfig.__init__).parameters if name.startswith("diffusion_")]
    assert list(DIFFUSION_SETTINGS) == names
    ours = DiffmixConfig(mixer="attention_diffusion")
    theirs = diffusion_settings(BertConfig())
    assert theirs.diffusion_pattern() == ours.diffusion_pattern()
    assert theirs.diffusion_weights() == ours.diffusion_weights()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diffusion_window": -1}, "diffusion_window is -1; give a whole number"),
        ({"diffusion_hops": -1}, "diffusion_hops is -1; give a whole number"),
        ({"diffusion_wnidow": 3}, "config.diffusion_wnidow is no setting; give some of diffusion_window"),
        ({"diffusion_window": {3}}, "the diffusion settings are .* give numbers, lists and names"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    model = make("bert", "attention_diffusion")
    for name, value in settings.items():
        setattr(model.config, name, value)
    with pytest.raises(ValueError, match=message):
        model(draw_ids())


def test_models_that_ask_for_more_are_refused():
    ids = draw_ids(6)
    with pytest.raises(RequestError, match=r"attention_mask has shape \(2, 1, 6, 6\); .* give \[batch, tokens\]"):
        make("bert", "attention_diffusion")(ids, attention_mask=torch.zeros(2, 1, 6, 6, dtype=torch.float64))
    for name in ("attention_diffusion", "heat_kernel"):
        with pytest.raises(
            RequestError, match=f"output_attentions=True, but attn_implementation='{name}' returns no weights"
        ):
            make("bert", name)(ids, output_attentions=True)
    with pytest.raises(RequestError, match="the model has a mask of its own"):
        make("llama", "attention_diffusion")(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), use_cache=False)
    gemma = Gemma2Config(**SMALL, **WIDE, num_key_value_heads=2, head_dim=8)
    with pytest.raises(RequestError, match=r"caps its scores \(softcap\).*'attention_diffusion'"):
        AutoModelForCausalLM.from_config(gemma, attn_implementation="attention_diffusion")(ids, use_cache=False)
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    bart = BartConfig(**SMALL, **shape, encoder_attention_heads=2, decoder_attention_heads=2, decoder_start_token_id=1)
    model = AutoModel.from_config(bart, attn_implementation="attention_diffusion")
    for tokens, message in (
        (4, "leave models with cross-attention their own"),
        (6, "a decoder's attention that is not causal"),
    ):
        with pytest.raises(RequestError, match=message):
            model(input_ids=ids, decoder_input_ids=ids[:, :tokens], use_cache=False)


@pytest.mark.parametrize("attention", ["heat_kernel", "attention_diffusion"])
def test_a_decoder_that_leaves_causality_to_its_mask_is_refused(attention):
    register_attention()
    shape = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    pegasus = BigBirdPegasusConfig(**SMALL, **shape, max_position_embeddings=32)
    model = AutoModelForCausalLM.from_config(pegasus, attn_implementation=attention)
    with pytest.raises(RequestError, match="leave this model its own attention"):
        model(draw_ids(6), use_cache=False)


def test_heat_kernel_hears_another_text_as_the_models_own_attention_does():
    register_attention()
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    bart = BartConfig(**SMALL, **shape, encoder_attention_heads=2, decoder_attention_heads=2, decoder_start_token_id=1)
    model = AutoModel.from_config(bart, dtype=torch.float64).eval()
    ids, own = draw_ids(6), {}
    for attention in ("eager", "heat_kernel"):
        model.set_attn_implementation(attention)
        own[attention] = model(input_ids=ids, decoder_input_ids=ids.flip(1), use_cache=False).last_hidden_state
    torch.testing.assert_close(own["heat_kernel"], own["eager"])
