"""What the machine offers: device, number format, memory; and what a run used of it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from diffmix.errors import RequestError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def resolve_device(device: str) -> str:
    """`"cpu"` or `"cuda"` for a recipe's `device`. Raises RequestError for any other, and a CUDA device that is not there."""
    if device not in ("auto", "cpu", "cuda"):
        raise RequestError(f"device is {device!r}; give auto, cpu or cuda")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("device is cuda but torch finds no CUDA device; set device=auto or device=cpu")
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """`"bf16"`, `"fp16"` or `"fp32"`; `"auto"` is bf16 where the hardware multiplies it natively, else fp32.

    Raises RequestError for any other, for fp16 on a CPU, which has no gradient scaling, and bf16 on a GPU without it.
    """
    if dtype not in ("auto", "bf16", "fp16", "fp32"):
        raise RequestError(f"dtype is {dtype!r}; give auto, bf16, fp16 or fp32")
    if device == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if dtype == "bf16" and not supported:
            raise RequestError("dtype is bf16 but this GPU does not compute in it; set dtype=fp16 or dtype=fp32")
        return ("bf16" if supported else "fp32") if dtype == "auto" else dtype
    if dtype == "fp16":
        raise RequestError("dtype is fp16, which needs a CUDA device; on a CPU set dtype=auto, bf16 or fp32")
    if dtype == "auto":
        return "bf16" if _cpu_flags() & {"amx_bf16", "avx512_bf16"} else "fp32"
    return dtype


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def free_memory() -> int | None:
    """Bytes that this process may still take before the machine, or its container, runs out; None: unknown."""
    available = _proc_kilobytes("/proc/meminfo", "MemAvailable")
    if available is None:
        return None
    free = available
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit, used = Path(limit_file).read_text().strip(), Path(used_file).read_text().strip()
        except OSError:
            continue
        if limit.isdigit() and used.isdigit():
            free = min(free, max(int(limit) - int(used), 0))
    return free


def resident_memory() -> int:
    """Bytes of this process in memory now; 0 where the system does not say."""
    return _proc_kilobytes("/proc/self/status", "VmRSS") or 0


def peak_resident_memory() -> int:
    """The largest `resident_memory` since the start, or since `reset_peak_memory`."""
    peak = _proc_kilobytes("/proc/self/status", "VmHWM")
    if peak is not None:
        return peak
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def tune_cpu() -> None:
    """Two settings of this process, for good, that make training on a CPU faster: `diffmix train` begins with them.

    - The memory that tensors free is kept for the next ones, where the C library is glibc. Else it gives large blocks back to the
      system, which clears every page again when it is touched: a quarter of a small model's step.
    - Numbers below the smallest normal one count as 0, in this thread and in those that it starts later, so call it before the
      first product: a CPU multiplies them many times slower, and sharp attention makes many.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the highest that it takes; setting it also ends its own tuning
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    torch.set_flush_denormal(True)


def reset_peak_memory() -> bool:
    """Start `peak_resident_memory` and CUDA's peak anew; False where the system cannot forget a resident peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # Memory that was freed but kept by the C library would hide what is taken next.
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory(device: str, baseline: int) -> int:
    """Bytes at most in use: on CUDA by tensors, on a CPU resident above `baseline` (that of just after the imports)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return max(peak_resident_memory() - baseline, 0)


def _proc_kilobytes(file: str, name: str) -> int | None:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), None)


def environment(device: str) -> dict[str, Any]:
    """Versions, device, threads and revision, as `environment.json` holds them."""
    packages = ("diffmix", "torch", "transformers", "accelerate", "tokenizers", "numpy", "scikit-learn")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "device_type": device,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "revision": _revision(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _revision() -> str | None:
    """The git revision of the package's own checkout, with `+` where files differ; None for an installed package."""
    git = ["git", "-C", str(Path(__file__).parents[1])]

    def told(*command: str) -> str:
        return subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout.strip()

    try:
        told("ls-files", "--error-unmatch", "__init__.py")  # fails in a checkout of something else, around a .venv
        revision, changed = told("rev-parse", "HEAD"), told("status", "--porcelain", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+" if changed else "")
