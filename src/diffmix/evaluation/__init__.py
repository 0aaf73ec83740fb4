"""How good a classifier's probabilities are: accuracy, proper scores, calibration, and how sure we are of each.

Shapes in this package: n examples, C classes; `probabilities` is [n, C], `labels` is [n].
"""

from diffmix.evaluation.calibration import expected_calibration_error, noise_floor, reliability
from diffmix.evaluation.classification import classification_metrics, confusion_matrix
from diffmix.evaluation.intervals import mean_interval, paired_difference, proportion_interval

__all__ = [
    "classification_metrics",
    "confusion_matrix",
    "expected_calibration_error",
    "mean_interval",
    "noise_floor",
    "paired_difference",
    "proportion_interval",
    "reliability",
]
