import itertools

import pytest
import torch

from diffmix.benchmarks.obvious import ObviousClassifier, copy_weights, largest_difference
from diffmix.errors import RequestError
from diffmix.models import DiffmixConfig, DiffmixForSequenceClassification


def config(**keys):
    return DiffmixConfig(
        **{
            "vocab_size": 50,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_labels": 3,
            "neighbor_boundary": "wrap",
            **keys,
        }
    )


@pytest.mark.parametrize(
    ("placement", "update", "shared"),
    list(itertools.product(("pre", "post"), ("mix_then_mlp", "mlp_then_mix"), (True, False))),
)
@pytest.mark.parametrize("alpha_mode", ["fixed", "channel"])
def test_computes_the_same_as_the_model_with_wrapped_ends(placement, update, shared, alpha_mode):
    keys = {
        "norm_placement": placement,
        "neighbor_update": update,
        "neighbor_shared_steps": shared,
        "neighbor_alpha_mode": alpha_mode,
        "neighbor_offsets": [-2, 0, 1],
        "neighbor_alpha": 0.6,
    }
    compute_the_same(keys)


def test_computes_the_same_with_a_neighbourhood_for_each_step():
    keys = {"norm_placement": "pre", "neighbor_alpha_mode": "residual", "neighbor_offsets": [[-1, 0, 1], [-2, 2]]}
    compute_the_same(keys)


def compute_the_same(keys):
    keys = {**keys, "pooling": "mean_max"}
    ours = DiffmixForSequenceClassification(config(**keys)).double().eval()
    obvious = ObviousClassifier(config(**keys)).double().eval()
    copy_weights(ours, obvious)
    ids, labels = torch.randint(1, 50, (4, 11)), torch.tensor([0, 1, 2, 0])
    one, other = ours(ids, labels=labels), obvious(ids, torch.ones_like(ids), labels)
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-10, atol=1e-10)
    one.loss.backward()
    other.loss.backward()
    torch.testing.assert_close(ours.model.embedding.weight.grad, obvious.embedding.weight.grad, rtol=1e-9, atol=1e-11)
    for step, (layer, theirs) in enumerate(zip(ours.model.layers, obvious.steps, strict=True)):
        stacked = torch.stack([projection.weight.grad for projection in theirs.projections])
        torch.testing.assert_close(layer.mixer.weight.grad, stacked, rtol=1e-9, atol=1e-11, msg=f"step {step}")


def test_has_as_many_weights():
    count = [
        sum(p.numel() for p in kind(config()).parameters())
        for kind in (DiffmixForSequenceClassification, ObviousClassifier)
    ]
    assert count[0] == count[1]


def test_largest_difference_holds_for_any_boundary_and_vocabulary():
    assert largest_difference(config(neighbor_boundary="zero", vocab_size=16_000)) < 1e-5


@pytest.mark.parametrize("keys", [{"neighbor_heads": 2}, {"norm": "batch"}, {"mixer": "softmax"}])
def test_refuses_what_it_cannot_write_plainly(keys):
    if keys.get("mixer") == "softmax":
        keys = {**keys, "neighbor_boundary": "zero"}
    with pytest.raises(RequestError, match=next(iter(keys))):
        ObviousClassifier(config(**keys))
