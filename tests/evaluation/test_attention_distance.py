"""Distances to full attention on a model's queries and keys, against dense matrix powers."""

import numpy as np
import pytest
import torch

from diffmix.errors import RequestError
from diffmix.evaluation.attention_distance import attention_distances, full_attention, queries_and_keys
from diffmix.models import DiffmixConfig, DiffmixForCausalLM, DiffmixForSequenceClassification
from diffmix.ops.coefficients import personalized_pagerank
from diffmix.patterns import SparsePattern


@pytest.mark.parametrize("mixer", ["attention_diffusion", "softmax"])
@pytest.mark.parametrize("causal", [False, True])
def test_distances_are_those_of_the_definition(mixer, causal):
    kind = DiffmixForCausalLM if causal else DiffmixForSequenceClassification
    config = DiffmixConfig(
        mixer=mixer, vocab_size=40, hidden_size=32, num_hidden_layers=2, num_key_value_heads=2, is_causal=causal
    )
    model = kind(config)
    pattern = SparsePattern(2, 1, 1, causal=causal)
    ids = torch.randint(1, 40, (20,))
    theta = personalized_pagerank(0.2, 3)
    measured = attention_distances(model, [ids], pattern, {"sparse": personalized_pagerank(0.0, 1), "three": theta})
    for layer, (query, key) in enumerate(queries_and_keys(model, ids)):
        assert query.shape == key.shape == (4, 20, 8)
        score = query @ key.mT / 8**0.5
        full = (score.masked_fill(~torch.ones(20, 20).tril().bool(), -1e9) if causal else score).softmax(-1)
        assert torch.allclose(full_attention(query, key, causal=causal), full)
        sparse = score.masked_fill(~pattern.dense(20), -1e9).softmax(-1)
        diffused = sum(weight * torch.matrix_power(sparse, hop) for hop, weight in enumerate(theta))
        expected = (diffused - full).abs().sum(-1).mean(-1) / 2
        assert measured["variants"]["three"]["total_variation"][layer] == pytest.approx(expected.tolist(), abs=1e-5)
        relative = (diffused - full).flatten(1).norm(dim=1) / full.flatten(1).norm(dim=1)
        assert measured["variants"]["three"]["frobenius"][layer] == pytest.approx(relative.tolist(), abs=1e-5)
        # Renormalised over the edges, a row moves exactly what stood outside of them.
        assert measured["outside"][layer] == pytest.approx(
            measured["variants"]["sparse"]["total_variation"][layer], abs=1e-5
        )
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_with_a_full_pattern_is_at_no_distance():
    model = DiffmixForSequenceClassification(
        DiffmixConfig(mixer="softmax", vocab_size=40, hidden_size=32, num_hidden_layers=1)
    )
    rows = [torch.randint(1, 40, (n,)) for n in (5, 12)]
    measured = attention_distances(model, rows, SparsePattern(20), {"sparse": personalized_pagerank(0.0, 1)})
    assert np.max(measured["variants"]["sparse"]["total_variation"]) < 1e-6
    assert np.max(measured["outside"]) == 0


def test_what_has_no_softmax_over_queries_and_keys_is_refused():
    for mixer in ("neighbor", "heat_kernel"):
        model = DiffmixForSequenceClassification(DiffmixConfig(mixer=mixer, vocab_size=40, hidden_size=32))
        with pytest.raises(RequestError, match=f"mixer is {mixer}"):
            queries_and_keys(model, torch.tensor([1, 2]))
    model = DiffmixForSequenceClassification(DiffmixConfig(mixer="softmax", vocab_size=40, hidden_size=32))
    with pytest.raises(RequestError, match="no row"):
        attention_distances(model, [], SparsePattern(1), {})
