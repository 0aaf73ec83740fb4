"""Calibration of predictions that are too many to keep: language models score millions of tokens over a vocabulary.

n predictions in a batch, V classes (token ids). Memory depends on the number of documents, not on that of predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffmix.evaluation.calibration import ConfidenceBins, bin_index
from diffmix.evaluation.intervals import bootstrap_weights, percentile_interval

_FINE = 100_000  # equal widths from which bins of equal mass are joined
_SUMS = ("n", "correct", "nll", "brier", "top_label_brier", "confidence", "entropy")


class StreamingCalibration:
    """Sums over predictions, batch by batch; `metrics` says what they come to.

    Args:
        bins: of the expected calibration error.
    """

    def __init__(self, bins: int = 15):
        if bins < 1:
            raise ValueError(f"bins is {bins}; it must be at least 1: 15 is the usual choice")
        self.bins = bins
        self._edges = np.linspace(0, 1, bins + 1)
        self._fine = np.zeros((3, _FINE))  # count, confidence, correct
        self._documents: dict[int, NDArray[np.float64]] = {}  # [sums, then count, confidence, correct of each bin]
        self._entropy_square = 0.0
        self._entropy_range = math.inf, -math.inf

    def update(self, logits: Tensor, labels: Tensor, documents: Tensor | int = 0) -> None:
        """Count predictions.

        Args:
            logits: [n, V], before softmax, any floating dtype; scored in fp32 or better.
            labels: [n] integers; a negative one is not counted.
            documents: [n] integers or one for all: what the bootstrap draws as a whole.
        """
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"logits has shape {list(logits.shape)} and labels {list(labels.shape)}; give [n, V] and [n]"
            )
        if bool((labels >= logits.shape[1]).any()):
            raise ValueError(
                f"labels holds {int(labels.max())} but logits has {logits.shape[1]} classes; give ids below that"
            )
        counted = labels >= 0
        document = torch.as_tensor(documents, device=labels.device).expand(labels.shape)[counted].cpu().numpy()
        logits, labels = logits[counted], labels[counted]
        if len(labels) == 0:
            return
        log_probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
        probabilities = log_probabilities.exp()
        highest, predicted = probabilities.max(dim=-1)
        confidence = highest.double().clamp(max=1.0)
        of_label = log_probabilities.gather(1, labels[:, None]).squeeze(1).double()
        correct = (predicted == labels).double()
        square = probabilities.square().sum(dim=-1, dtype=torch.float64)
        entropy = -(probabilities * log_probabilities.clamp(min=torch.finfo(log_probabilities.dtype).min)).sum(
            dim=-1, dtype=torch.float64
        )
        columns = torch.stack(
            [
                torch.ones_like(confidence),
                correct,
                -of_label,
                square - 2 * of_label.exp() + 1,
                (confidence - correct).square(),
                confidence,
                entropy,
            ],
            dim=1,
        )
        self._add(columns.cpu().numpy(), document)

    def _add(self, columns: NDArray[np.float64], document: NDArray[np.int64]) -> None:
        confidence, correct, entropy = (columns[:, _SUMS.index(name)] for name in ("confidence", "correct", "entropy"))
        fine = np.minimum((confidence * _FINE).astype(np.int64), _FINE - 1)
        for row, weights in enumerate((np.ones_like(confidence), confidence, correct)):
            self._fine[row] += np.bincount(fine, weights=weights, minlength=_FINE)
        self._entropy_square += float(np.square(entropy).sum())
        lowest, highest = self._entropy_range
        self._entropy_range = min(lowest, float(entropy.min())), max(highest, float(entropy.max()))
        index = bin_index(confidence, self._edges)
        for one in np.unique(document):
            own = document == one
            in_bins = [
                np.bincount(index[own], weights=weights[own], minlength=self.bins)
                for weights in (np.ones_like(confidence), confidence, correct)
            ]
            sums = np.concatenate([columns[own].sum(axis=0), *in_bins], dtype=np.float64)
            before = self._documents.get(int(one))
            self._documents[int(one)] = sums if before is None else before + sums

    def metrics(self, *, bootstrap: int = 1000, seed: int = 0) -> dict[str, float]:
        """What the predictions come to.

        - `accuracy`, `nll` (nats), `brier` (Σ_k (p_k - [k = label])², in [0, 2]), `top_label_brier` ((confidence - correct)²).
        - `ece`, `ece_equal_mass`, `mce`: Σ_b (n_b / n) |accuracy_b - confidence_b| over bins of equal width and of (nearly)
          equal count, and the largest |accuracy_b - confidence_b|. `ece_noise_floor`: the `ece` to expect of a perfectly
          calibrated model with these confidences. `overconfidence`: mean confidence - accuracy.
        - `entropy`, `entropy_std`, `entropy_min`, `entropy_max`, in nats; `n`, `documents`.
        - `…_low`, `…_high` of accuracy, nll, brier and ece: 95 % bootstrap intervals over documents, where there are two or
          more; those of ece without the bias of resampling (see `classification_metrics`).

        Raises ValueError where nothing was counted.
        """
        if not self._documents:
            raise ValueError("no prediction was counted; call update with labels of 0 or more")
        documents = np.stack(list(self._documents.values()))
        total = documents.sum(axis=0)
        sums = dict(zip(_SUMS, total[: len(_SUMS)].tolist(), strict=True))
        n = sums["n"]
        bins = self.confidence_bins()
        gap = np.abs(bins.correct_sum - bins.confidence_sum)
        metrics = {
            "accuracy": sums["correct"] / n,
            **{name: sums[name] / n for name in ("nll", "brier", "top_label_brier")},
            "ece": bins.error,
            "ece_equal_mass": self.confidence_bins(equal_mass=True).error,
            "mce": float((gap[bins.count > 0] / bins.count[bins.count > 0]).max()),
            "ece_noise_floor": bins.noise_floor,
            "overconfidence": (sums["confidence"] - sums["correct"]) / n,
            "entropy": sums["entropy"] / n,
            "entropy_std": math.sqrt(max(0.0, self._entropy_square / n - (sums["entropy"] / n) ** 2)),
            "entropy_min": self._entropy_range[0],
            "entropy_max": self._entropy_range[1],
            "n": n,
            "documents": len(documents),
        }
        if bootstrap == 0 or len(documents) < 2:
            return metrics
        parts = []
        for weights in bootstrap_weights(len(documents), bootstrap, seed=seed):
            drawn = weights @ documents
            size = drawn[:, :1]
            gaps = (
                drawn[:, len(_SUMS) + self.bins : len(_SUMS) + 2 * self.bins] - drawn[:, len(_SUMS) + 2 * self.bins :]
            )
            columns = [drawn[:, [_SUMS.index(name)]] / size for name in ("correct", "nll", "brier")]
            parts.append(np.hstack([*columns, np.abs(gaps).sum(axis=1, keepdims=True) / size]))
        values = np.concatenate(parts)
        values[:, 3] = np.clip(values[:, 3] - (values[:, 3].mean() - metrics["ece"]), 0, 1)
        for column, name in enumerate(("accuracy", "nll", "brier", "ece")):
            metrics[f"{name}_low"], metrics[f"{name}_high"] = percentile_interval(values[:, column])
        return metrics

    def document_nll(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predictions and summed NLL of each document, [documents] each, by its number."""
        sums = np.stack([self._documents[document] for document in sorted(self._documents)])
        return sums[:, _SUMS.index("n")], sums[:, _SUMS.index("nll")]

    def confidences(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[n] confidences to 1e-5, in order, and [n] the share of correct predictions among those of the same confidence."""
        count, confidence, correct = self._fine[:, self._fine[0] > 0]
        repeats = np.rint(count).astype(np.int64)
        return np.repeat(confidence / count, repeats), np.repeat(correct / count, repeats)

    def confidence_bins(self, *, equal_mass: bool = False) -> ConfidenceBins:
        """What a reliability diagram needs: see `diffmix.evaluation.calibration`."""
        if not equal_mass:
            in_bins = np.stack(list(self._documents.values()))[:, len(_SUMS) :].sum(axis=0).reshape(3, self.bins)
            return ConfidenceBins(self._edges, in_bins[0].astype(np.int64), in_bins[1], in_bins[2])
        share = self._fine[0].cumsum() / self._fine[0].sum()
        cuts = np.searchsorted(share, np.arange(1, self.bins) / self.bins - 1e-12, side="left") + 1
        bounds = np.concatenate([[0], cuts, [_FINE]])
        summed = np.concatenate([np.zeros((3, 1)), self._fine.cumsum(axis=1)], axis=1)[:, bounds]
        joined = np.diff(summed, axis=1)
        return ConfidenceBins(bounds / _FINE, np.rint(joined[0]).astype(np.int64), joined[1], joined[2])


def fit_temperature(
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]], *, tolerance: float = 1e-4, passes: int = 20
) -> float:
    """The T > 0 that minimises the NLL of softmax(logits / T), by Newton's method on β = 1 / T.

    NLL is convex in β: its slope is Σ (E_p[z] - z_label), its curvature Σ Var_p[z], each from one pass over the batches.

    Args:
        batches: starts a pass over (logits [n, V], labels [n], negative ones not counted), of validation data.
        tolerance: the change of ln β at which it stops.
        passes: at most that many. The best T of logits that say less than nothing is infinite; the result is then 2^passes.

    Raises:
        ValueError: nothing to fit on.
    """
    beta = 1.0
    for _ in range(passes):
        slope = curvature = 0.0
        count = 0
        for logits, labels in batches():
            counted = labels >= 0
            exact = torch.promote_types(logits.dtype, torch.float32)
            scores, targets = logits[counted].to(exact), labels[counted]
            weights = (beta * scores).softmax(dim=-1)
            mean = (weights * scores).sum(dim=-1)
            slope += float((mean - scores.gather(1, targets[:, None]).squeeze(1)).sum(dtype=torch.float64))
            curvature += float(((weights * scores.square()).sum(dim=-1) - mean.square()).sum(dtype=torch.float64))
            count += len(targets)
        if count == 0:
            raise ValueError("no label to fit a temperature on; give validation data")
        if curvature <= 0:
            return 1 / beta
        # A step in ln β, at most a factor of 2, keeps β positive and far starts stable.
        change = max(-math.log(2), min(math.log(2), -slope / (curvature * beta)))
        beta *= math.exp(change)
        if abs(change) < tolerance:
            break
    return 1 / beta
