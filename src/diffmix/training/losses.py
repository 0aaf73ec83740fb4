"""The classification loss. B rows, C classes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def class_weights(counts: np.ndarray) -> torch.Tensor:
    """Weights inverse to class frequency, their mean over the train rows 1: w_c = n / (C n_c). float32 [C]."""
    present = np.maximum(counts, 1)
    return torch.tensor(counts.sum() / ((counts > 0).sum() * present), dtype=torch.float32)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    """Cross-entropy of each row in fp32 [B], times the weight of its label's class."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
    return losses if weights is None else losses * weights.to(labels.device)[labels]
