import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmix.evaluation import classification_metrics
from diffmix.evaluation.streaming import StreamingCalibration, fit_temperature


def predictions(n, classes, seed=0, sharpness=2.0):
    rng = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n, classes, generator=rng, dtype=torch.float64)
    labels = torch.multinomial((0.7 * logits).softmax(-1), 1, generator=rng).squeeze(1)
    return logits, labels


@given(st.integers(1, 300), st.integers(2, 12), st.integers(0, 100), st.lists(st.integers(1, 299), max_size=4))
def test_equals_the_metrics_of_all_at_once_however_it_is_cut(n, classes, seed, cuts):
    logits, labels = predictions(n, classes, seed)
    stream = StreamingCalibration()
    bounds = sorted({0, n, *(cut for cut in cuts if cut < n)})
    for first, last in itertools.pairwise(bounds):
        stream.update(logits[first:last], labels[first:last], torch.arange(first, last) // 10)
    found = stream.metrics(bootstrap=0)
    expected = classification_metrics(logits.softmax(-1).numpy(), labels.numpy(), bootstrap=0)
    for name in ("accuracy", "nll", "brier", "ece", "ece_noise_floor", "n"):
        assert found[name] == pytest.approx(expected[name], abs=1e-9), name
    assert found["ece_equal_mass"] == pytest.approx(expected["ece_equal_mass"], abs=2 / n + 1e-3)
    assert found["documents"] == math.ceil(n / 10)


def test_the_other_numbers_are_their_formulas():
    logits, labels = predictions(500, 7)
    stream = StreamingCalibration()
    stream.update(logits, labels)
    found = stream.metrics(bootstrap=0)
    p = logits.softmax(-1)
    confidence, predicted = p.max(-1)
    correct = (predicted == labels).double()
    entropy = -(p * p.log()).sum(-1)
    assert found["top_label_brier"] == pytest.approx((confidence - correct).square().mean().item())
    assert found["overconfidence"] == pytest.approx((confidence.mean() - correct.mean()).item())
    assert found["entropy"] == pytest.approx(entropy.mean().item())
    assert found["entropy_std"] == pytest.approx(entropy.std(correction=0).item())
    assert found["entropy_min"] == pytest.approx(entropy.min().item())
    assert found["entropy_max"] == pytest.approx(entropy.max().item())
    index = (confidence * 15).ceil().long() - 1
    gaps = [
        (correct[index == b].mean() - confidence[index == b].mean()).abs().item()
        for b in range(15)
        if (index == b).any()
    ]
    assert found["mce"] == pytest.approx(max(gaps))


def test_a_calibrated_model_scores_within_its_noise_floor():
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 10, generator=rng)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=rng).squeeze(1)
    stream = StreamingCalibration()
    stream.update(logits, labels)
    found = stream.metrics(bootstrap=0)
    assert found["ece"] < 2 * found["ece_noise_floor"]
    assert abs(found["overconfidence"]) < found["ece_noise_floor"]


def test_memory_does_not_grow_with_predictions_and_ignored_labels_do_not_count():
    stream = StreamingCalibration()
    for seed in range(20):
        logits, labels = predictions(100, 5, seed)
        labels[::2] = -100
        stream.update(logits.bfloat16(), labels, seed % 3)
    found = stream.metrics(bootstrap=50)
    assert found["n"] == 1000
    assert found["documents"] == 3
    assert len(stream._documents) == 3
    assert found["nll_low"] <= found["nll"] <= found["nll_high"]
    assert found["ece_low"] <= found["ece"] <= found["ece_high"]


def test_documents_are_drawn_whole():
    """Within a document all predictions are alike, so that the interval must be that of a few documents, not of many tokens."""
    right, wrong = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    stream = StreamingCalibration()
    for document in range(20):
        logits = (right if document % 2 else wrong).expand(500, 2)
        stream.update(logits, torch.zeros(500, dtype=torch.long), document)
    found = stream.metrics()
    assert found["accuracy"] == 0.5
    assert found["accuracy_high"] - found["accuracy_low"] > 0.3


def test_the_temperature_is_the_best_one():
    logits, labels = predictions(4000, 6, sharpness=3.0)
    found = fit_temperature(lambda: zip(logits.split(700), labels.split(700), strict=True))
    assert found == pytest.approx(1 / 0.7, rel=0.1)  # labels were drawn at that temperature

    def nll(temperature):
        return torch.nn.functional.cross_entropy(logits / temperature, labels).item()

    assert nll(found) <= min(nll(found * 1.01), nll(found / 1.01))
    assert fit_temperature(lambda: [(logits * 1000, labels)]) == pytest.approx(1000 * found, rel=1e-3)


def test_wrong_arguments_are_named():
    stream = StreamingCalibration()
    with pytest.raises(ValueError, match="no prediction was counted"):
        stream.metrics()
    with pytest.raises(ValueError, match="labels holds 3 but logits has 3 classes"):
        stream.update(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"logits has shape \[2\]"):
        stream.update(torch.zeros(2), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="bins is 0"):
        StreamingCalibration(0)
    with pytest.raises(ValueError, match="no label to fit"):
        fit_temperature(list)
    assert np.isfinite(fit_temperature(lambda: [(torch.zeros(3, 2), torch.tensor([0, 1, 1]))]))
