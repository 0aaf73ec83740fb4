"""Every number that a classifier is judged by, from its probabilities, with bootstrap intervals over the examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffmix.evaluation.calibration import bin_index, confidence_and_correctness, fill_bins
from diffmix.evaluation.inputs import check_predictions
from diffmix.evaluation.intervals import bootstrap_weights, percentile_interval


def classification_metrics(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, bootstrap: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Measure n predictions over C classes.

    - `accuracy`: share of examples whose most probable class (the first of equals) is the label.
    - `macro_f1`: mean over classes of 2 TP / (2 TP + FP + FN); the classes that occur as a label or as a prediction.
    - `nll`: mean of -ln p[label], in nats. A probability below the smallest normal number of its dtype counts as that
      number, so a certain mistake costs a large finite 87.3 in float32 (708.4 in float64), not infinity.
    - `brier`: mean over examples of Σ_k (p_k - [k = label])², in [0, 2].
    - `ece`, `ece_equal_mass`: expected calibration error of the top prediction over `bins` bins of equal width, or of
      equal count; `ece_noise_floor`: the `ece` to expect of a perfectly calibrated model with these very confidences
      (see `diffmix.evaluation.calibration.noise_floor`).
    - `n`: the number of examples.
    - `accuracy_low`, `accuracy_high` and so on for macro_f1, nll, brier, ece: 95 % bootstrap intervals (percentile).
      ECE is biased upwards at finite n and resampling adds that bias a second time; its resamples are therefore
      shifted by their mean excess over `ece`. The interval says how far the reported ECE, its own bias included,
      varies.

    Args:
        probabilities: [n, C], rows summing to 1.
        labels: [n] integers in [0, C).
        bins: of ECE, at least 1.
        bootstrap: resamples; 0 leaves the intervals out.
        seed: of the resampling.

    Raises:
        ValueError: see `diffmix.evaluation.inputs.check_predictions`; bins < 1, bootstrap < 0.
    """
    p, y = check_predictions(probabilities, labels)
    if bootstrap < 0:
        raise ValueError(
            f"bootstrap is {bootstrap}; it must be at least 0: 1000 is the usual choice, 0 skips the intervals"
        )
    n, classes = p.shape
    predicted = p.argmax(axis=1)
    confidence, correct = confidence_and_correctness(p, y)
    filled = fill_bins(confidence, correct, bins)
    nll, brier = _negative_log_likelihood(p, y), _brier(p, y)
    metrics = {
        "accuracy": float(correct.mean()),
        "macro_f1": float(_macro_f1(predicted, y, classes, np.ones((1, n)))[0]),
        "nll": float(nll.mean()),
        "brier": float(brier.mean()),
        "ece": filled.error,
        "ece_equal_mass": fill_bins(confidence, correct, bins, equal_mass=True).error,
        "ece_noise_floor": filled.noise_floor,
        "n": n,
    }
    if bootstrap == 0:
        return metrics

    # All but macro-F1 are made of sums over examples: columns of one matrix, so that all resamples are one product.
    # From the fourth column on, each example's correct - confidence stands in the column of its bin.
    contributions = np.zeros((n, 3 + bins))
    contributions[:, :3] = np.column_stack([correct, nll, brier])
    contributions[np.arange(n), 3 + bin_index(confidence, filled.edges)] = correct - confidence
    blocks = []
    for weights in bootstrap_weights(n, bootstrap, seed=seed):
        sums = weights @ contributions / n
        blocks.append(
            np.column_stack([sums[:, :3], np.abs(sums[:, 3:]).sum(axis=1), _macro_f1(predicted, y, classes, weights)])
        )
    statistics = dict(zip(("accuracy", "nll", "brier", "ece", "macro_f1"), np.concatenate(blocks).T, strict=True))
    statistics["ece"] = np.clip(statistics["ece"] - (statistics["ece"].mean() - filled.error), 0, 1)
    for name, values in statistics.items():
        metrics[f"{name}_low"], metrics[f"{name}_high"] = percentile_interval(values)
    return metrics


def confusion_matrix(probabilities: ArrayLike, labels: ArrayLike) -> NDArray[np.int64]:
    """[C, C] counts: row = the label, column = the most probable class (the first of equals).

    Raises:
        ValueError: see `diffmix.evaluation.inputs.check_predictions`.
    """
    p, y = check_predictions(probabilities, labels)
    classes = p.shape[1]
    counts = np.bincount(y * classes + p.argmax(axis=1), minlength=classes**2)
    return counts.reshape(classes, classes).astype(np.int64)


def _negative_log_likelihood(p: NDArray[np.floating], y: NDArray[np.int64]) -> NDArray[np.float64]:
    of_label = np.clip(p[np.arange(len(y)), y], np.finfo(p.dtype).tiny, 1)
    return 0.0 - np.log(of_label.astype(np.float64))  # 0 - x, because -log(1) would print as -0.0


def _brier(p: NDArray[np.floating], y: NDArray[np.int64]) -> NDArray[np.float64]:
    q = p.astype(np.float64)  # a copy: 1 is taken off each label's own probability
    q[np.arange(len(y)), y] -= 1
    return np.einsum("nc,nc->n", q, q)


def _macro_f1(
    predicted: NDArray[np.int64], y: NDArray[np.int64], classes: int, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[b] macro-F1 of b weightings [b, n] of the examples, over the classes with any weight as label or prediction."""
    hit = predicted == y
    scores = np.empty(len(weights))
    for row, weight in enumerate(weights):
        # 2 TP + FP + FN = predicted + labelled
        occurrences = np.bincount(y, weight, classes) + np.bincount(predicted, weight, classes)
        true_positives = np.bincount(y[hit], weight[hit], classes)
        present = occurrences > 0
        scores[row] = (2 * true_positives[present] / occurrences[present]).mean()
    return scores
