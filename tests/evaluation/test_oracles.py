"""Our numbers beside torchmetrics' and scikit-learn's, on random predictions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from diffmix.evaluation import classification_metrics, expected_calibration_error
from diffmix.evaluation.streaming import StreamingCalibration

SIZES = (st.integers(2, 600), st.integers(2, 12), st.integers(1, 25), st.integers(0, 1000))


def draw(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=generator)


def stream(logits, labels, cuts=(), bins=15):
    found = StreamingCalibration(bins)
    bounds = sorted({0, len(labels), *(cut for cut in cuts if cut < len(labels))})
    for first, last in itertools.pairwise(bounds):
        found.update(logits[first:last], labels[first:last], torch.arange(first, last) // 20)
    return found.metrics(bootstrap=0)


@given(*SIZES, st.lists(st.integers(1, 599), max_size=5))
def test_calibration_errors_are_those_of_torchmetrics(n, classes, bins, seed, cuts):
    logits, labels = draw(n, classes, seed)
    probabilities = logits.softmax(-1)
    found = stream(logits, labels, cuts, bins)
    for name, norm in (("ece", "l1"), ("mce", "max")):
        theirs = multiclass_calibration_error(probabilities, labels, classes, n_bins=bins, norm=norm).item()
        assert found[name] == pytest.approx(theirs, abs=1e-6), name
    at_once = classification_metrics(probabilities.numpy(), labels.numpy(), bins=bins, bootstrap=0)
    assert at_once["ece"] == pytest.approx(found["ece"], abs=1e-12)


@given(*SIZES, st.lists(st.integers(1, 599), max_size=5))
def test_scores_are_those_of_scikit_learn(n, classes, bins, seed, cuts):
    logits, labels = draw(n, classes, seed)
    probabilities, truth = logits.softmax(-1).numpy(), labels.numpy()
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    names = np.arange(classes)
    expected = {
        "accuracy": accuracy_score(truth, predicted),
        "nll": log_loss(truth, probabilities, labels=names),
        "brier": brier_score_loss(truth, probabilities, scale_by_half=False, labels=names)
        if classes > 2
        else 2 * brier_score_loss(truth, probabilities[:, 1], pos_label=1, labels=names),
        "top_label_brier": float(np.mean((confidence - (predicted == truth)) ** 2)),
    }
    found = stream(logits, labels, cuts, bins)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    at_once = classification_metrics(probabilities, truth, bootstrap=0)
    assert at_once["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-6)
    for name in ("accuracy", "nll", "brier"):
        assert at_once[name] == pytest.approx(expected[name], abs=1e-6), name


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    """(low, high] as Guo et al. (2017) have it; torchmetrics takes [low, high), with a bin of its own for exactly 1."""
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5], [0.75, 0.25], [0.75, 0.25]])
    labels = np.array([1, 1, 0, 0])
    # (0, 0.5] holds the first two, both wrong, and (0.5, 1] the others, both right.
    assert expected_calibration_error(probabilities, labels, bins=2) == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)
    # Theirs has all four in [0.5, 1).
    theirs = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), 2, n_bins=2)
    assert theirs.item() == pytest.approx(abs(0.5 - 0.625))
    # One wrong at 1, one right at 0.99: one bin for us, two for them.
    certain, labels = np.array([[1.0, 0.0], [0.99, 0.01]]), np.array([1, 0])
    assert expected_calibration_error(certain, labels, bins=2) == pytest.approx(abs(0.5 - 0.995))
    theirs = multiclass_calibration_error(torch.tensor(certain), torch.tensor(labels), 2, n_bins=2)
    assert theirs.item() == pytest.approx(0.5 * 1 + 0.5 * 0.01)


@pytest.mark.parametrize(("n", "classes", "sharpness"), [(5_000, 2, 1.0), (10_000, 10, 2.0), (5_000, 100, 3.0)])
def test_a_calibrated_simulator_scores_within_its_noise_floor(n, classes, sharpness):
    """Labels drawn from the probabilities: over repetitions, the mean ECE is the noise floor, not more."""
    errors, floors = [], []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        logits = sharpness * torch.randn(n, classes, generator=generator)
        labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
        found = stream(logits, labels)
        errors.append(found["ece"])
        floors.append(found["ece_noise_floor"])
    assert np.mean(errors) == pytest.approx(np.mean(floors), rel=0.25)
    assert max(errors) < 2 * np.mean(floors)
