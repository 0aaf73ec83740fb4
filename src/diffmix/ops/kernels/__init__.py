"""Kernels for GPUs, in Triton. What needs Triton is imported only where it runs."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil

import torch
from torch import Tensor

BACKENDS = ("auto", "blocked", "triton")
CUDA_BACKEND = "triton"  # of "auto" on CUDA, where kernels can take the states: `diffmix bench kernels`
_WIDEST = 128  # channels of a head: wider ones leave no room for the operands of a step
_OLDEST = (8, 0)  # capability of a GPU
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def by_kernels(backend: str, query: Tensor, value: Tensor, dropout_p: float, hop_dropout_p: float) -> bool:
    """Whether kernels are to compute attention diffusion of these states, with one of BACKENDS asked for.

    Raises:
        ValueError: `"triton"` is asked for and cannot take them.
    """
    asked = backend if backend != "auto" else CUDA_BACKEND if query.is_cuda else "blocked"
    if asked != "triton" or dropout_p > 0 or hop_dropout_p > 0:
        return False
    reason = _reason_against(query, value)
    if reason is not None and backend == "triton":
        raise ValueError(f"backend is 'triton', but {reason}")
    return reason is None


@functools.cache
def _can_launch(device: torch.device) -> bool:
    """Whether Triton can build what launches a kernel, and the GPU has the shared memory that kernels take, up to 99 kB."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < _OLDEST:
        return False
    compilers = (os.environ.get("CC"), "gcc", "clang")
    return any(name and shutil.which(name) for name in compilers)


def _reason_against(query: Tensor, value: Tensor) -> str | None:
    """Why the kernels cannot take these states [B, H, N, D] and [B, H, N, C], with the mend; None where they can.

    They run on CUDA, and on CPUs in Triton's interpreter (TRITON_INTERPRET=1, set before Triton is imported), which is for tests.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; install it, or give backend='blocked'"
    from triton import knobs  # pyright: ignore[reportMissingImports]

    interpreted = bool(knobs.runtime.interpret)
    if query.device.type != "cuda" and not (interpreted and query.device.type == "cpu"):
        return f"query is on {query.device.type}; move it to cuda, or give backend='blocked'"
    if query.device.type == "cuda" and not _can_launch(query.device):
        return (
            "the kernels need an NVIDIA GPU of capability 8.0 or newer, and Triton a C compiler to launch them; install gcc, or "
            "give backend='blocked'"
        )
    if query.dtype not in _DTYPES:
        return f"query has dtype {query.dtype}; give float32, bfloat16 or float16, or backend='blocked'"
    if interpreted and query.dtype is torch.bfloat16:
        return "the interpreter cannot multiply bfloat16; give float32 or float16"
    widest = max(query.shape[-1], value.shape[-1])
    if widest > _WIDEST:
        return f"heads have {widest} channels; give at most {_WIDEST}, or backend='blocked'"
    return None
