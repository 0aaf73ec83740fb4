"""smECE, the calibration error without bins, through the package relplot (the extra `smece`)."""

from __future__ import annotations

from diffmix.errors import RequestError
from diffmix.evaluation.streaming import StreamingCalibration


def smooth_calibration_error(calibration: StreamingCalibration) -> float:
    """SmoothECE of the top prediction, in [0, 1] (Błasiok and Nakkiran, "Smooth ECE", 2023), with relplot's own bandwidth.

    relplot smooths correct - confidence over the confidences. It is given each confidence to a hundred-thousandth, which is
    what `calibration` keeps: far below any bandwidth.

    Raises:
        RequestError: relplot is not installed.
    """
    try:
        from relplot.metrics import smECE  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RequestError("smECE needs the package relplot: run pip install 'diffmix[smece]'") from None
    return float(smECE(*calibration.confidences()))
