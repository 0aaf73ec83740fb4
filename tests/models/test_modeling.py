"""What must hold for every model: padding and batching change nothing, nothing is lost on disk, gradients reach all."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from diffmix import (
    DiffmixConfig,
    DiffmixForCausalLM,
    DiffmixForMaskedLM,
    DiffmixForSequenceClassification,
    DiffmixForSequencePairClassification,
    DiffmixModel,
)
from diffmix.models.mixers import NeighborMixer
from diffmix.models.ngrams import NgramEmbedding
from diffmix.models.pooling import AttentionPooling

VARIANTS = {
    "paper": {"neighbor_shared_steps": True, "neighbor_boundary": "wrap"},
    "own_steps": {"neighbor_alpha_mode": "channel", "pooling": "mean_max"},
    "pooled_features": {"pooling": "mean_max", "pooling_features": 24},
    "pre_norm": {"norm_placement": "pre", "pooling": "attention", "neighbor_alpha_mode": "learned"},
    "by_step": {
        "neighbor_offsets": [[-1, 0, 1], [-2, 0, 2], [-4, 4]],
        "neighbor_alpha_mode": "residual",
        "norm_placement": "pre",
        "gated_mlp": True,
    },
    "powers_of_two": {"neighbor_offsets": [-4, -2, -1, 0, 1, 2, 4], "neighbor_heads": 2, "pooling": "max"},
    "tracks": {
        "neighbor_offsets": [[-1, 0, 1], [-4, -2, 0, 2, 4]],
        "neighbor_tracks": True,
        "neighbor_alpha_mode": "residual",
        "norm_placement": "pre",
    },
    "paper_equation": {"neighbor_update": "mlp_then_mix", "pooling": "first"},
    "batch_norm": {"norm": "batch", "norm_placement": "pre"},
    "learned_positions": {"position_embedding": "learned"},
    "converging": {"neighbor_shared_steps": True, "neighbor_tolerance": 0.05, "neighbor_alpha": 0.7},
    "narrow_wrap": {"intermediate_size": 16, "neighbor_boundary": "wrap", "neighbor_shared_steps": True},
    "narrow": {"intermediate_size": 8},
    "ngrams": {"embedding_ngrams": [2, 5], "embedding_buckets": 40},
    "softmax": {"mixer": "softmax"},
    "diffusion": {"mixer": "attention_diffusion", "diffusion_window": 2, "diffusion_random_links": 1},
    "diffusion_heat": {
        "mixer": "attention_diffusion",
        "diffusion_window": 1,
        "diffusion_global_tokens": [0, 3],
        "diffusion_coefficients": "heat",
        "num_key_value_heads": 1,
        "pooling": "first",
    },
    "diffusion_own": {
        "mixer": "attention_diffusion",
        "diffusion_window": 2,
        "diffusion_hops": 2,
        "diffusion_coefficients": [0.5, -0.25, 0.75],
    },
    "softmax_learned": {"mixer": "softmax", "position_embedding": "learned", "pooling": "first"},
}


def make(variant, model=DiffmixForSequenceClassification, **changes):
    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_labels": 3}
    torch.manual_seed(1)
    made = model(DiffmixConfig(**small | VARIANTS[variant] | changes)).eval()
    for module in made.modules():
        if isinstance(module, AttentionPooling):
            torch.nn.init.normal_(module.query)
        if isinstance(module, NgramEmbedding):
            torch.nn.init.normal_(module.weight)
        if isinstance(module, NeighborMixer):
            module.training = variant.startswith("narrow")  # training is when the MLP's first layer is taken in
    return made


def padded(rows, left, width):
    """Rows of ids in a batch of `width`, row r behind left[r] paddings; padding holds ids that must not matter."""
    ids, mask = torch.full((len(rows), width), 7), torch.zeros(len(rows), width, dtype=torch.long)
    for row, (tokens, before) in enumerate(zip(rows, left, strict=True)):
        ids[row, before : before + len(tokens)] = torch.tensor(tokens)
        mask[row, before : before + len(tokens)] = 1
    return ids, mask


@st.composite
def batches(draw):
    rows = draw(st.lists(st.lists(st.integers(1, 49), min_size=1, max_size=9), min_size=1, max_size=4))
    width = max(map(len, rows)) + draw(st.integers(0, 5))
    left = [draw(st.integers(0, width - len(row))) for row in rows]
    return rows, left, width


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=15)
@given(batch=batches())
def test_logits_and_gradients_are_the_same_alone_batched_and_padded_anywhere(variant, dtype, tolerance, batch):
    rows, left, width = batch
    model = make(variant).to(dtype)
    labels = torch.arange(len(rows)) % 3

    def gradients(pairs):
        model.zero_grad()
        logits = []
        for (ids, mask), label in pairs:
            output = model(ids, mask)
            torch.nn.functional.cross_entropy(output.logits, label, reduction="sum").backward()
            logits.append(output.logits.detach())
        return torch.cat(logits), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    alone = gradients([((torch.tensor([row]), None), labels[i : i + 1]) for i, row in enumerate(rows)])
    together = gradients([(padded(rows, left, width), labels)])
    torch.testing.assert_close(together[0], alone[0], atol=tolerance, rtol=tolerance)
    scale = max(1.0, *(g.abs().max().item() for g in alone[1]))
    for got, expected in zip(together[1], alone[1], strict=True):
        torch.testing.assert_close(got, expected, atol=tolerance * scale, rtol=tolerance)


@pytest.mark.parametrize("variant", ["paper", "powers_of_two", "softmax", "diffusion"])
def test_hidden_states_return_to_where_their_tokens_stood(variant):
    model = make(variant, DiffmixModel)
    rows, left = [[3, 4, 5], [6, 7, 8, 9]], [2, 0]
    ids, mask = padded(rows, left, 6)
    output = model(ids, mask, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    for row, tokens in enumerate(rows):
        alone = model(torch.tensor([tokens])).last_hidden_state[0]
        torch.testing.assert_close(output.last_hidden_state[row, left[row] : left[row] + len(tokens)], alone)
    by_embeddings = model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask)
    torch.testing.assert_close(by_embeddings.last_hidden_state[mask.bool()], output.last_hidden_state[mask.bool()])


@pytest.mark.parametrize("variant", VARIANTS)
def test_survives_a_round_trip_through_auto_classes(variant, tmp_path):
    model = make(variant, id2label={0: "cat", 1: "dog", 2: "emu"}, label2id={"cat": 0, "dog": 1, "emu": 2}).eval()
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.randint(1, 50, (2, 9))
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert again.config.id2label == {0: "cat", 1: "dog", 2: "emu"}
    assert AutoModel.from_pretrained(tmp_path).config.mixer == model.config.mixer


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter_with_and_without_checkpointing(variant):
    model = make(variant, hidden_dropout=0.0, classifier_dropout=0.0).train()
    ids, mask = padded([[3, 4, 5], [6, 7, 8, 9]], [0, 1], 6)
    results = []
    for checkpointing in (False, True):
        trained = copy.deepcopy(model)
        if checkpointing:
            # Renamed during transformers 5; the old name warns where the new one exists.
            getattr(trained, "activation_checkpointing_enable", trained.gradient_checkpointing_enable)()
        loss = trained(ids, mask, labels=torch.tensor([0, 2])).loss
        loss.backward()
        missing = [name for name, p in trained.named_parameters() if p.grad is None]
        assert missing == []
        results.append((loss.detach(), [p.grad for p in trained.parameters()]))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    "variant", ["paper", "own_steps", "pre_norm", "tracks", "batch_norm", "softmax", "converging", "diffusion"]
)
def test_compiles_into_one_graph_for_any_batch_and_length(variant):
    model = make(variant)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for shape in ((2, 9), (3, 12)):
        ids = torch.randint(1, 50, shape)
        mask = (torch.arange(shape[1]) < torch.tensor([5, 7, 3])[: shape[0], None]).long()
        torch.testing.assert_close(compiled(ids, mask).logits, model(ids, mask).logits)


def test_noise_and_dropout_act_in_training_only():
    model = make("paper", noise_std=0.5, token_dropout=0.3, hidden_dropout=0.0, classifier_dropout=0.0)
    ids = torch.randint(1, 50, (2, 9))
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_noise_has_the_variance_it_says():
    model = make("paper", DiffmixModel, noise_std=0.5, hidden_dropout=0.0).train()
    ids = torch.full((64, 512), 3)
    noise = model._embed(ids) - model.get_input_embeddings()(ids)
    assert noise.mean().abs() < 0.01
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)


def test_the_step_is_the_equation_of_the_paper():
    """h ← LayerNorm(α h + (1-α) MLP(Σ_o W_o h_{i+o})), written out."""
    model = make("paper", DiffmixModel, num_hidden_layers=1, neighbor_alpha=0.6, neighbor_boundary="zero")
    step = model.layers[0]
    ids = torch.randint(1, 50, (1, 5))
    hidden = model.get_input_embeddings()(ids)[0]
    before, own, after = step.mixer.weight
    zero = torch.zeros(16)
    rows = []
    for i in range(5):
        left, right = hidden[i - 1] if i else zero, hidden[i + 1] if i < 4 else zero
        mixture = before @ left + own @ hidden[i] + after @ right
        rows.append(step.norm(0.6 * hidden[i] + 0.4 * step.mlp(mixture)))
    torch.testing.assert_close(model(ids).last_hidden_state[0], torch.stack(rows))


def test_information_travels_one_neighbourhood_a_step():
    model = make("paper", DiffmixModel, neighbor_boundary="zero")  # 3 steps of ±1
    ids = torch.randint(1, 50, (1, 20))
    changed = ids.clone()
    changed[0, 10] = changed[0, 10] % 49 + 1
    moved = (model(ids).last_hidden_state - model(changed).last_hidden_state).abs().amax(-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == list(range(7, 14))


@pytest.mark.parametrize("rows", [[[3, 4, 5]], [[3, 4, 5], [6], [9, 9, 9, 9, 9, 9]]])
def test_convergence_judges_each_sequence_on_its_own(rows):
    model = make("converging", neighbor_tolerance=0.02, neighbor_max_steps=50)
    output = model(*padded(rows, [0] * len(rows), 8))
    alone = [model(torch.tensor([row])) for row in rows]
    assert output.diffusion_steps.tolist() == [one.diffusion_steps.item() for one in alone]
    torch.testing.assert_close(output.logits, torch.cat([one.logits for one in alone]))
    assert all(0 < steps <= 50 for steps in output.diffusion_steps.tolist())


def test_convergence_stops_where_the_change_falls_under_the_tolerance():
    model = make("converging", DiffmixModel, neighbor_tolerance=0.02, neighbor_max_steps=200)
    ids = torch.randint(1, 50, (1, 12))
    output = model(ids, output_hidden_states=True)
    states = output.hidden_states
    changes = [((new - old).norm() / old.norm()).item() for old, new in itertools.pairwise(states)]
    steps = output.diffusion_steps.item()
    assert len(changes) == steps < 200
    assert changes[-1] < 0.02 <= min(changes[:-1])


def test_batch_norm_counts_real_tokens_only():
    model = make("batch_norm", DiffmixModel).train()
    norm = model.layers[0].norm
    tokens = torch.randn(2, 6, 16)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]).bool()
    out = norm(tokens, mask)
    assert out[mask].mean(0).abs().max() < 1e-5
    torch.testing.assert_close(out[mask].std(0, unbiased=False), torch.ones(16), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(norm.running_mean, 0.1 * tokens[mask].mean(0))
    oracle = torch.nn.BatchNorm1d(16)
    oracle(tokens[mask])
    torch.testing.assert_close(norm.running_var, oracle.running_var)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_batch_norm_is_the_same_with_a_mask_that_masks_nothing(dtype):
    found = []
    for mask in (None, torch.ones(2, 6, dtype=torch.bool)):
        norm = make("batch_norm", DiffmixModel).train().layers[0].norm
        if dtype is torch.float64:
            norm.double()
        torch.manual_seed(0)
        tokens = torch.randn(2, 6, 16, dtype=dtype, requires_grad=True)
        out = norm(tokens, mask)
        assert out.dtype == dtype
        gradients = torch.autograd.grad((out * torch.randn_like(out)).sum(), [tokens, norm.weight, norm.bias])
        found.append((out, *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked))
        assert norm(tokens[:1, :1], None if mask is None else mask[:1, :1]).isfinite().all()  # a token has no variance
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("masked", [False, True])
def test_checkpointing_counts_a_batch_once(masked):
    ids = torch.randint(1, 50, (4, 9))
    mask = torch.ones_like(ids)
    mask[1:, 6:] = 1 - masked
    found = []
    for checkpointing in (False, True):
        model = make("batch_norm").train()
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        norm = model.model.layers[0].norm
        found.append(
            (norm.running_mean, norm.running_var, norm.num_batches_tracked, *(p.grad for p in model.parameters()))
        )
    torch.testing.assert_close(*found)


def test_pairs_train_with_batch_norm_where_only_one_text_is_padded():
    first, second = torch.randint(1, 50, (4, 5)), torch.randint(1, 50, (4, 8))
    mask = torch.ones(4, 8, dtype=torch.long)
    mask[1:, 6:] = 0
    found = []
    for told in (None, torch.ones_like(first)):  # a mask that masks nothing takes the plain way through the norm
        model = make("batch_norm", DiffmixForSequencePairClassification).double().train()
        loss = model(
            input_ids=first,
            attention_mask=told,
            input_ids_pair=second,
            attention_mask_pair=mask,
            labels=torch.tensor([0, 1, 2, 0]),
        ).loss
        loss.backward()
        norm = model.model.layers[0].norm
        found.append([parameter.grad for parameter in model.parameters()] + [norm.running_mean, norm.running_var])
    torch.testing.assert_close(*found)


def test_pair_model_is_two_towers_with_shared_weights():
    model = make("own_steps", DiffmixForSequencePairClassification)
    first, second = torch.randint(1, 50, (2, 5)), torch.randint(1, 50, (2, 8))
    logits = model(input_ids=first, input_ids_pair=second, labels=torch.tensor([0, 1])).logits
    ids, mask = padded(second.tolist(), [3, 1], 12)
    torch.testing.assert_close(model(input_ids=first, input_ids_pair=ids, attention_mask_pair=mask).logits, logits)
    assert logits.shape == (2, 3)
    with pytest.raises(ValueError, match="input_ids_pair is missing"):
        model(input_ids=first)


@pytest.mark.parametrize(
    "head",
    [
        DiffmixModel,
        DiffmixForSequenceClassification,
        DiffmixForSequencePairClassification,
        DiffmixForMaskedLM,
        DiffmixForCausalLM,
    ],
)
def test_outputs_are_tuples_where_the_call_or_the_configuration_says_so(head):
    model = make("pre_norm", head)
    inputs = {"input_ids": torch.randint(1, 50, (2, 5)), "attention_mask": torch.tensor([[1] * 5, [0] * 2 + [1] * 3])}
    if head is DiffmixForSequencePairClassification:
        inputs["input_ids_pair"] = torch.randint(1, 50, (2, 4))
    expected = model(**inputs).to_tuple()
    torch.testing.assert_close(model(**inputs, return_dict=False), expected)
    model.config.return_dict = False
    found = model(**inputs)
    assert type(found) is tuple
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model(**inputs, return_dict=True).to_tuple(), expected)


def test_masked_lm_ties_its_head_and_scores_only_what_is_asked(tmp_path):
    model = make("own_steps", DiffmixForMaskedLM, hidden_dropout=0.0)
    ids = torch.randint(1, 50, (2, 8))
    labels = torch.full((2, 8), -100)
    labels[0, 3], labels[1, 5] = 11, 12
    expected = torch.nn.functional.cross_entropy(model(ids).logits[[0, 1], [3, 5]], torch.tensor([11, 12]))
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)
    torch.testing.assert_close(model.train()(ids, labels=labels).loss, expected)
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.decoder.weight is again.get_input_embeddings().weight


def test_sampled_softmax_is_the_full_one_when_every_token_is_drawn():
    full = make("own_steps", DiffmixForMaskedLM, hidden_dropout=0.0, vocab_size=900).train()
    sampled = make("own_steps", DiffmixForMaskedLM, hidden_dropout=0.0, vocab_size=900, sampled_softmax=5000).train()
    few = make("own_steps", DiffmixForMaskedLM, hidden_dropout=0.0, vocab_size=900, sampled_softmax=5).train()
    ids = torch.randint(1, 50, (2, 8))
    labels = torch.where(torch.rand(2, 8) < 0.5, ids, -100)
    torch.testing.assert_close(sampled(ids, labels=labels).loss, full(ids, labels=labels).loss)
    assert few(ids, labels=labels).loss < full(ids, labels=labels).loss  # fewer to choose among
    assert few.eval()(ids, labels=labels).logits.shape == (2, 8, 900)


def test_autocast_keeps_the_states_in_its_dtype():
    model = make("own_steps", DiffmixModel)
    ids = torch.randint(1, 50, (2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(ids).last_hidden_state
    assert hidden.dtype is torch.bfloat16
    torch.testing.assert_close(hidden.float(), model(ids).last_hidden_state, atol=0.1, rtol=0.1)


def test_empty_sequences_give_finite_logits():
    for variant in VARIANTS:
        model = make(variant)
        assert model(torch.ones(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long)).logits.isfinite().all(), (
            variant
        )


def test_wrong_inputs_are_named():
    model = make("learned_positions", max_position_embeddings=8)
    with pytest.raises(ValueError, match="input_ids has 9 tokens but the model has 8 positions"):
        model(torch.ones(1, 9, dtype=torch.long))
    writer = make("learned_positions", DiffmixForCausalLM, max_position_embeddings=8, is_causal=True)
    text = torch.tensor([[0, 0, 3, 4, 5, 6]])  # two of padding take no position
    written = writer.generate(
        text, attention_mask=(text > 0).long(), max_new_tokens=4, min_new_tokens=4, do_sample=False
    )
    assert written.shape == (1, 10)
    with pytest.raises(
        ValueError, match=r"input_ids has 9 tokens but the model has 8 positions; .*generate fewer tokens"
    ):
        writer.generate(text[:, 2:], max_new_tokens=9, min_new_tokens=9, do_sample=False)
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


@pytest.mark.parametrize("boundary", ["zero", "wrap"])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("width", [1, 8, 12, 13, 40])
def test_a_layer_taken_into_the_mixer_changes_nothing(width, heads, boundary):
    torch.manual_seed(0)
    config = DiffmixConfig(hidden_size=8, neighbor_offsets=[-2, 0, 1], neighbor_heads=heads, neighbor_boundary=boundary)
    mixer = NeighborMixer(config).double().train()
    torch.nn.init.normal_(mixer.weight)
    layer = torch.nn.Linear(8, width).double()
    hidden = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(7) < torch.tensor([[7], [1], [4]])
    inputs = [hidden, mixer.weight, layer.weight, layer.bias]
    probe = torch.randn(3, 7, width, dtype=torch.float64) * mask.unsqueeze(-1)

    taken_in = (mixer(hidden, mask, then=layer) * probe).sum()
    after = (layer(mixer(hidden, mask)) * probe).sum()
    torch.testing.assert_close(taken_in, after)
    for one, other in zip(torch.autograd.grad(taken_in, inputs), torch.autograd.grad(after, inputs), strict=True):
        torch.testing.assert_close(one, other)


def small(**options):
    return DiffmixConfig(
        **{"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2} | options
    )


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (DiffmixForSequenceClassification, {"neighbor_tolerance": 0.3}),
        (DiffmixForSequenceClassification, {"neighbor_boundary": "wrp"}),
        (DiffmixForCausalLM, {"neighbor_boundary": "wrap"}),
    ],
)
def test_values_given_while_loading_are_checked(kind, values, tmp_path):
    kind(small()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=next(iter(values))):
        kind.from_pretrained(tmp_path, **values)


def test_convergence_is_refused_where_each_step_has_its_own_weights():
    model = DiffmixModel(small()).eval()
    model.config.neighbor_tolerance = 0.1
    with pytest.raises(ValueError, match="neighbor_shared_steps=True"):
        model(torch.randint(1, 40, (1, 5)))


@pytest.mark.parametrize(
    "kind", [DiffmixModel, DiffmixForSequenceClassification, DiffmixForMaskedLM, DiffmixForCausalLM]
)
def test_hidden_states_are_given_when_asked_for(kind):
    model = kind(small()).eval()
    ids = torch.randint(1, 40, (2, 6))
    mask = torch.tensor([[1] * 6, [0, 1, 1, 1, 0, 0]])
    assert model(ids, mask).hidden_states is None
    asked = model(ids, mask, output_hidden_states=True).hidden_states
    model.config.output_hidden_states = True
    configured = model(ids, mask).hidden_states
    assert [state.shape for state in asked] == [(2, 6, 16)] * 3
    for one, other in zip(asked, configured, strict=True):
        assert torch.equal(one[mask.bool()], other[mask.bool()])
    alone = model(ids[1:, 1:4]).hidden_states
    torch.testing.assert_close(asked[-1][1, 1:4], alone[-1][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "attention", "mean_max"])
@pytest.mark.parametrize("mixer", ["neighbor", "softmax", "attention_diffusion"])
def test_a_text_without_tokens_is_classified_as_in_a_batch(mixer, pooling):
    model = DiffmixForSequenceClassification(small(mixer=mixer, pooling=pooling)).eval()
    alone = model(torch.empty(1, 0)).logits  # what a tokenizer makes of "", whose dtype nothing says
    batched = model(torch.tensor([[5, 6], [0, 0]]), torch.tensor([[1, 1], [0, 0]])).logits[1:]
    assert alone.isfinite().all()
    torch.testing.assert_close(alone, batched)


def test_trainer_gets_the_logits_alone_in_convergence_mode(tmp_path):
    model = DiffmixForSequenceClassification(small(neighbor_shared_steps=True, neighbor_tolerance=0.1))
    rows = [{"input_ids": torch.randint(1, 40, (5,)), "labels": torch.tensor(1)} for _ in range(3)]
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    assert Trainer(model, arguments).predict(rows).predictions.shape == (3, 2)
