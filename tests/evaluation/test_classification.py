import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import f1_score, log_loss

from diffmix.evaluation import classification_metrics, confusion_matrix


@st.composite
def predictions(draw, max_examples=60):
    """(probabilities [n, C], labels [n]) with classes that never occur, ties and certain predictions among them."""
    n, classes = draw(st.integers(1, max_examples)), draw(st.integers(2, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = random.normal(size=(n, classes)) * draw(st.sampled_from([0.0, 1.0, 5.0, 400.0]))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return probabilities.astype(dtype), random.integers(0, draw(st.integers(1, classes)), n)


def calibrated(n, classes, seed=0):
    """Labels drawn from the very probabilities that are then reported."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, classes)) * 2
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) > random.random((n, 1))).argmax(axis=1)
    return probabilities, labels


@given(predictions())
def test_equals_the_naive_definitions(case):
    p, y = case
    metrics = classification_metrics(p, y, bootstrap=0)
    predicted = [int(np.argmax(row)) for row in p]
    tiny = float(np.finfo(p.dtype).tiny)
    assert metrics["n"] == len(y)
    assert metrics["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(predicted, y, strict=True)]))
    assert metrics["macro_f1"] == pytest.approx(f1_score(y, predicted, average="macro", zero_division=0))
    assert metrics["nll"] == pytest.approx(
        np.mean([-math.log(max(float(row[k]), tiny)) for row, k in zip(p, y, strict=True)]), abs=1e-6
    )
    assert metrics["brier"] == pytest.approx(
        np.mean([sum((float(q) - (j == k)) ** 2 for j, q in enumerate(row)) for row, k in zip(p, y, strict=True)]),
        abs=1e-6,
    )


def test_nll_agrees_with_scikit_learn():
    p, y = calibrated(500, 5)
    assert classification_metrics(p, y, bootstrap=0)["nll"] == pytest.approx(log_loss(y, p, labels=range(5)))


@given(predictions(), st.integers(0, 2**32 - 1))
def test_the_order_of_the_examples_changes_nothing(case, seed):
    p, y = case
    order = np.random.default_rng(seed).permutation(len(y))
    shuffled = classification_metrics(p[order], y[order], bootstrap=0)
    assert shuffled == pytest.approx(classification_metrics(p, y, bootstrap=0), abs=1e-9)


@settings(max_examples=30)
@given(predictions(max_examples=30))
def test_every_number_is_finite_and_in_its_range_and_inside_its_interval(case):
    p, y = case
    metrics = classification_metrics(p, y, bootstrap=200)
    assert all(math.isfinite(value) for value in metrics.values())
    for name, upper in {"accuracy": 1, "macro_f1": 1, "nll": math.inf, "brier": 2, "ece": 1}.items():
        assert -1e-9 <= metrics[f"{name}_low"] <= metrics[f"{name}_high"] <= upper + 1e-6
    assert metrics["accuracy_low"] - 1e-9 <= metrics["accuracy"] <= metrics["accuracy_high"] + 1e-9


def test_one_example_has_an_interval_of_no_width():
    metrics = classification_metrics([[0.25, 0.75]], [1])
    assert metrics["accuracy"] == metrics["accuracy_low"] == metrics["accuracy_high"] == 1
    assert metrics["nll"] == pytest.approx(math.log(4 / 3))
    assert metrics["brier"] == pytest.approx(2 * 0.25**2)
    assert metrics["ece"] == pytest.approx(0.25)


def test_a_test_set_of_one_class_only():
    metrics = classification_metrics([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [0, 0, 0])
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["macro_f1"] == pytest.approx((0.8 + 0) / 2)  # the wrongly predicted class counts, with an F1 of 0


@pytest.mark.parametrize(("dtype", "cost"), [(np.float32, 87.3365), (np.float64, 708.3964)])
def test_a_certain_mistake_costs_a_large_finite_nll(dtype, cost):
    metrics = classification_metrics(np.array([[1, 0]], dtype), [1])
    assert metrics["nll"] == pytest.approx(cost, abs=1e-3)
    assert metrics["brier"] == 2


def test_a_perfect_prediction_scores_plain_zeros():
    metrics = classification_metrics(np.eye(3), [0, 1, 2])
    assert (metrics["accuracy"], metrics["macro_f1"]) == (1, 1)
    assert [str(metrics[name]) for name in ("nll", "brier", "ece", "ece_noise_floor")] == ["0.0"] * 4


def test_intervals_cover_the_truth_as_often_as_they_claim():
    p, _ = calibrated(400_000, 3, 1)
    truth = p.max(axis=1).mean()  # a calibrated model's accuracy is its mean confidence
    covered = []
    for seed in range(120):
        metrics = classification_metrics(*calibrated(300, 3, seed), bootstrap=200, seed=seed)
        covered.append(metrics["accuracy_low"] <= truth <= metrics["accuracy_high"])
    assert np.mean(covered) > 0.87


def test_the_seed_alone_decides_the_intervals():
    p, y = calibrated(200, 3)
    assert classification_metrics(p, y, seed=1) == classification_metrics(p, y, seed=1)
    assert classification_metrics(p, y, seed=1) != classification_metrics(p, y, seed=2)


def test_a_calibrated_model_scores_about_its_noise_floor():
    ratios = []
    for seed in range(20):
        p, y = calibrated(4000, 4, seed)
        metrics = classification_metrics(p, y, bootstrap=0)
        ratios.append(metrics["ece"] / metrics["ece_noise_floor"])
    assert np.mean(ratios) == pytest.approx(1, abs=0.12)


def test_the_interval_of_ece_holds_the_ece_although_resampling_inflates_it():
    for seed in range(10):
        metrics = classification_metrics(*calibrated(1000, 4, seed), bootstrap=200)
        assert metrics["ece_low"] < metrics["ece"] < metrics["ece_high"]


def test_an_overconfident_model_stands_far_above_its_floor():
    p, y = calibrated(4000, 4)
    sharpened = p**3 / (p**3).sum(axis=1, keepdims=True)
    metrics = classification_metrics(sharpened, y)
    assert metrics["ece_low"] > 3 * metrics["ece_noise_floor"]


def test_25000_examples_and_1000_resamples_take_seconds():
    p, y = calibrated(25_000, 20)
    started = time.perf_counter()
    classification_metrics(p.astype(np.float32), y)
    assert time.perf_counter() - started < 10


@given(predictions())
def test_confusion_matrix_counts_label_by_prediction(case):
    p, y = case
    expected = sklearn_confusion(y, p.argmax(axis=1), labels=range(p.shape[1]))
    assert np.array_equal(confusion_matrix(p, y), expected)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[2.0, -1.0]], [0], r"probabilities\[0\] has a negative value: \[ ?2\., *-1\. ?\].*softmax"),
        ([[0.5, 0.5], [0.5, 0.6]], [0, 1], r"probabilities\[1\] does not sum to 1.*softmax"),
        ([[0.5, math.nan]], [0], r"probabilities\[0\] has a value that is not finite"),
        ([[0.5, 0.5]], [2], r"labels\[0\] is 2; it must be in 0\.\.1"),
        ([[0.5, 0.5]], [-1], r"labels\[0\] is -1"),
        ([[0.5, 0.5]], [0.0], r"labels has dtype float64"),
        ([[0.5, 0.5]], [[1, 0]], r"labels has shape \[1, 2\].*one-hot"),
        ([[0.5, 0.5]], [0, 1], r"labels has shape \[2\]; it must be \[1\]"),
        ([[1, 0]], [0], r"probabilities has dtype int64"),
        ([0.5, 0.5], [0, 1], r"probabilities has shape \[2\].*\[1 - p, p\]"),
        ([[1.0]], [0], r"probabilities has shape \[1, 1\]"),
        (np.zeros((0, 2)), [], r"probabilities has shape \[0, 2\]"),
    ],
)
def test_wrong_input_is_named_on_one_line(probabilities, labels, message):
    with pytest.raises(ValueError, match=message) as caught:
        classification_metrics(probabilities, labels)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        confusion_matrix(probabilities, labels)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="bins is 0"):
        classification_metrics([[0.5, 0.5]], [0], bins=0)
    with pytest.raises(ValueError, match="bootstrap is -1"):
        classification_metrics([[0.5, 0.5]], [0], bootstrap=-1)
