"""Causal language models of every mixer: no future, the same with a cache and without, wherever padding stands."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, StaticCache, Trainer, TrainingArguments

from diffmix import DiffmixConfig, DiffmixForCausalLM
from diffmix.ops.diffusion_decoding import NewTokens

VARIANTS = {
    "neighbor": {"neighbor_offsets": [-3, -1, 0, 1]},
    "neighbor_by_step": {"neighbor_offsets": [[-1, 0, 1], [-2, 0]], "gated_mlp": True},
    "neighbor_tracks": {"neighbor_offsets": [[-1, 0, 1], [-2, 0]], "neighbor_tracks": True},
    "neighbor_shared": {"neighbor_shared_steps": True, "neighbor_update": "mlp_then_mix"},
    "neighbor_learned_positions": {"position_embedding": "learned"},
    "softmax": {"mixer": "softmax"},
    "softmax_qk_norm": {"mixer": "softmax", "attention_qk_norm": True, "num_key_value_heads": 1},
    "heat": {"mixer": "heat_kernel"},
    "heat_squared": {"mixer": "heat_kernel", "heat_form": "squared", "heat_locality": 0.2},
    "heat_normalized_learned": {"mixer": "heat_kernel", "heat_form": "normalized", "heat_time_mode": "learned"},
    "heat_adaptive": {"mixer": "heat_kernel", "heat_time_mode": "adaptive", "num_key_value_heads": 2},
    "heat_learned_positions": {"mixer": "heat_kernel", "position_embedding": "learned"},
}

DIFFUSION = {
    "diffusion": {"diffusion_window": 3, "diffusion_random_links": 2},
    "diffusion_one_hop": {"diffusion_window": 2, "diffusion_hops": 1, "diffusion_alpha": 0.0},
    "diffusion_no_hop": {"diffusion_hops": 0},
    "diffusion_heat": {  # the later global token lies in the future of the first four
        "diffusion_window": 1,
        "diffusion_global_tokens": [0, 4],
        "diffusion_coefficients": "heat",
        "num_key_value_heads": 2,
    },
}
VARIANTS |= {name: {"mixer": "attention_diffusion", **options} for name, options in DIFFUSION.items()}


def make(variant, dtype=torch.float64):
    torch.manual_seed(1)
    small = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_dropout": 0.0,
    }
    model = (
        DiffmixForCausalLM(DiffmixConfig(**small | {"max_position_embeddings": 64} | VARIANTS[variant]))
        .eval()
        .to(dtype)
    )
    for name, parameter in model.named_parameters():
        if "time" in name:  # so that times differ
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_future_changes_nothing(variant):
    model = make(variant)
    ids = torch.randint(1, 40, (2, 30))
    before = model(ids).logits
    for at in (1, 11, 29):
        changed = ids.clone()
        changed[:, at:] = torch.randint(1, 40, (2, 30 - at))
        torch.testing.assert_close(model(changed).logits[:, :at], before[:, :at], atol=1e-10, rtol=1e-8)


@settings(max_examples=8, deadline=None)
@given(st.data())
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cache_changes_nothing(variant, data):
    model = make(variant)
    length = data.draw(st.integers(2, 20))
    ids = torch.randint(1, 40, (2, length))
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4)))
    whole = model(ids).logits
    past, parts = None, []
    with torch.set_grad_enabled(data.draw(st.booleans())):
        for first, last in zip([0, *cuts], [*cuts, length], strict=True):
            output = model(ids[:, first:last], past_key_values=past, use_cache=True)
            past = output.past_key_values
            parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_left_padding_changes_nothing(variant, use_cache):
    model = make(variant)
    rows = [[5, 6, 7, 8, 9], [11, 12]]
    ids = torch.tensor([[5, 6, 7, 8, 9], [3, 3, 3, 11, 12]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    logits = model(ids, attention_mask=mask, use_cache=use_cache).logits
    for row, tokens in enumerate(rows):
        alone = model(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(logits[row, -len(tokens) :], alone, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_generates_what_repeated_argmax_gives(variant):
    model = make(variant)
    ids = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 0, 11, 12]])
    mask = (ids != 0).long()
    with torch.inference_mode():
        found = model.generate(ids, attention_mask=mask, max_new_tokens=7, do_sample=False, pad_token_id=0)
        plain = ids
        for _ in range(7):
            grown = torch.cat([mask, torch.ones(2, plain.shape[1] - 5, dtype=torch.long)], dim=1)
            plain = torch.cat([plain, model(plain, attention_mask=grown).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, plain)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 0.7}]
)
@pytest.mark.parametrize("variant", ["neighbor", "heat_adaptive"])
def test_beams_and_sampling_run(variant, options):
    model = make(variant, torch.float32)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    out = model.generate(ids, max_new_tokens=5, pad_token_id=0, eos_token_id=None, **options)
    assert out.shape == (2, 8)
    assert torch.equal(out[:, :3], ids)


def test_beams_with_a_cache_are_those_without():
    for variant in ("neighbor", "heat", "diffusion", "diffusion_heat"):
        model = make(variant)
        options = {"max_new_tokens": 6, "num_beams": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
        assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options)), variant
        options |= {"attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}
        assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options)), variant


def test_a_cache_cut_short_and_split_goes_on():
    model = make("diffusion")
    ids = torch.randint(1, 40, (2, 12))
    whole = model(ids).logits
    with torch.inference_mode():
        past = model(ids, use_cache=True).past_key_values
        past.crop(-5)
        past.batch_select_indices(torch.tensor([1]))
        rest = model(ids[1:, 7:], past_key_values=past).logits
    torch.testing.assert_close(rest, whole[1:, 7:])


@pytest.mark.slow
def test_a_long_text_is_read_once():
    """More tokens than a block of anything, in single precision, as `generate` reads and writes them."""
    model = make("diffusion", torch.float32)
    ids = torch.randint(1, 40, (1, 700))
    with torch.inference_mode():
        whole = model(ids).logits
        past = model(ids[:, :400], use_cache=True).past_key_values
        middle = model(ids[:, 400:699], past_key_values=past).logits
        last = model(ids[:, 699:], past_key_values=past).logits
    torch.testing.assert_close(torch.cat([middle, last], dim=1), whole[:, 400:], atol=2e-5, rtol=1e-4)


def test_attention_starts_at_the_temperature_asked_for(tmp_path):
    shape = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = torch.randint(1, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    softmax = DiffmixForCausalLM(DiffmixConfig(mixer="softmax", attention_init_temperature=0.56, **shape)).eval()
    torch.manual_seed(0)
    heat = DiffmixForCausalLM(DiffmixConfig(mixer="heat_kernel", heat_time=0.28, **shape)).eval()
    torch.testing.assert_close(softmax(ids).logits, heat(ids).logits)
    softmax.save_pretrained(tmp_path)
    torch.testing.assert_close(DiffmixForCausalLM.from_pretrained(tmp_path)(ids).logits, softmax(ids).logits)


def test_the_loss_is_that_of_the_next_token_and_blocks_change_nothing(monkeypatch):
    model = make("heat").train()
    ids = torch.randint(1, 40, (3, 12))
    labels = ids.clone()
    labels[1, 5:] = -100
    logits = model.eval()(ids).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(model(ids, labels=labels).loss, expected, check_dtype=False)
    monkeypatch.setattr("diffmix.models.token_loss.SCORED_AT_ONCE", 40 * 7)
    loss = model.train()(ids, labels=labels).loss
    torch.testing.assert_close(loss, expected, check_dtype=False)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    for grad, other in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(grad, other, atol=1e-6, rtol=1e-5)


def test_generates_the_same_where_the_configuration_asks_for_tuples():
    model = make("heat")
    ids = torch.randint(1, 40, (1, 5))
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    model.config.return_dict = False
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_survives_a_round_trip(variant, tmp_path):
    model = make(variant, torch.float32)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(1, 40, (2, 9))
    assert again.config.is_causal
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert again.decoder.weight is again.get_input_embeddings().weight


def test_what_a_cache_cannot_do_is_said():
    for variant in ("diffusion", "softmax", "neighbor"):
        model = make(variant)
        fixed = StaticCache(model.config, max_cache_len=8)
        with pytest.raises(
            ValueError, match=r"is a StaticCache, .* give a DynamicCache: leave out cache_implementation"
        ):
            model(torch.ones(1, 3, dtype=torch.long), past_key_values=fixed)
        with pytest.raises(
            ValueError, match=r"is a StaticCache, .* give a DynamicCache: leave out cache_implementation"
        ):
            model.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=4, cache_implementation="static")
    model = make("diffusion")
    cache = model(torch.ones(1, 3, dtype=torch.long), use_cache=True).past_key_values
    cache.offloading = True  # as on a GPU
    with pytest.raises(ValueError, match="give a DynamicCache without offloading, or use_cache=False"):
        model(torch.ones(1, 1, dtype=torch.long), past_key_values=cache)
    model = make("neighbor_shared")
    model.config.neighbor_tolerance = 0.1
    with pytest.raises(ValueError, match="set neighbor_tolerance=None"):
        model(torch.ones(1, 3, dtype=torch.long), use_cache=True)
    model = make("heat")
    model.config.neighbor_tolerance = 0.1  # of another mixer: it means nothing here
    model(torch.ones(1, 3, dtype=torch.long), use_cache=True)
    with pytest.raises(ValueError, match="with the cached tokens"):
        make("heat")(torch.ones(1, 3, dtype=torch.long), attention_mask=torch.ones(1, 2), use_cache=True)


@pytest.mark.parametrize("mixer", ["neighbor", "softmax", "attention_diffusion"])
def test_what_stands_at_padding_may_be_no_number(mixer):
    config = DiffmixConfig(mixer=mixer, vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    model = DiffmixForCausalLM(config).eval()
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    states = torch.randn(1, 5, 16)
    holes = states.masked_fill(mask[..., None] == 0, float("nan"))
    for use_cache in (False, True):
        expected = model(inputs_embeds=states, attention_mask=mask, use_cache=use_cache).logits[:, 2:]
        got = model(inputs_embeds=holes, attention_mask=mask, use_cache=use_cache).logits[:, 2:]
        torch.testing.assert_close(got, expected)


def test_a_single_token_has_nothing_to_be_scored():
    model = DiffmixForCausalLM(DiffmixConfig(mixer="softmax", vocab_size=30, hidden_size=16, num_attention_heads=2))
    ids = torch.tensor([[3]])
    assert model.train()(ids, labels=ids).loss == 0
    assert model.eval()(ids, labels=ids).loss == 0


@pytest.mark.parametrize("variant", ["neighbor", "heat_squared"])
def test_padding_behind_real_tokens_is_refused_with_a_cache_that_counts_places(variant):
    model, ids = make(variant), torch.randint(1, 40, (1, 6))
    with pytest.raises(ValueError, match="padding on the left only"):
        model(ids, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]), use_cache=True)
    model(ids, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1]]), use_cache=True)
    make("heat")(ids, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]), use_cache=True)


def test_generation_returns_hidden_states():
    model = make("softmax")
    found = model.generate(
        torch.ones(1, 3, dtype=torch.long), max_new_tokens=2, output_hidden_states=True, return_dict_in_generate=True
    )
    assert [len(states) for states in found.hidden_states] == [4, 4]


def test_trainer_shifts_labels_that_it_smooths(tmp_path):
    model, ids = make("softmax", torch.float32), torch.randint(1, 40, (2, 9))
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=1e-9, use_cpu=True, report_to=[])
    loss = Trainer(model, arguments).compute_loss(model, {"input_ids": ids, "labels": ids})
    torch.testing.assert_close(loss, model(ids, labels=ids).loss, atol=1e-5, rtol=1e-5)


def test_generates_whatever_the_default_device_is():
    pattern, positions = make("diffusion").config.diffusion_pattern(), torch.arange(5).expand(2, 5)
    expected = NewTokens(pattern, positions, 0).rows
    with torch.device("meta"):  # stands in for a GPU
        found = NewTokens(pattern, positions, 0).rows
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
