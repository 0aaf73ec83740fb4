import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from diffmix.errors import RequestError
from diffmix.tasks.encoding import EncodedDataset, PaddingCollator
from diffmix.training import batch_size, hardware


def test_auto_takes_the_device_that_is_there():
    assert hardware.resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert hardware.resolve_device("cpu") == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused():
    with pytest.raises(RequestError, match="device=auto"):
        hardware.resolve_device("cuda")


def test_what_is_neither_a_device_nor_a_number_format_is_refused():
    with pytest.raises(RequestError, match="device is 'cuda0'; give auto, cpu or cuda"):
        hardware.resolve_device("cuda0")
    with pytest.raises(RequestError, match="dtype is 'half'; give auto, bf16, fp16 or fp32"):
        hardware.resolve_dtype("half", "cpu")


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(RequestError, match="bf16 or fp32"):
        hardware.resolve_dtype("fp16", "cpu")


@pytest.mark.parametrize(("flags", "dtype"), [({"amx_bf16"}, "bf16"), ({"avx512_bf16"}, "bf16"), ({"avx2"}, "fp32")])
def test_auto_computes_in_bf16_where_the_cpu_does(flags, dtype, monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: frozenset(flags))
    assert hardware.resolve_dtype("auto", "cpu") == dtype


def test_peak_memory_sees_what_was_freed_again():
    if not hardware.reset_peak_memory():
        pytest.skip("the system cannot forget a resident peak")
    before = hardware.resident_memory()
    del (taken := [np.ones(2**23)])[:]  # 64 MiB, touched and freed
    assert taken == []
    assert hardware.peak_memory("cpu", before) > 50 * 2**20


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_revision_is_of_a_checkout_of_the_package_not_of_what_it_is_installed_in(tmp_path, monkeypatch):
    def git(*command):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *command], check=True)

    for name in [name for name in os.environ if name.startswith("GIT_")]:  # a hook's, which would point elsewhere
        monkeypatch.delenv(name)
    module = tmp_path / "diffmix" / "training" / "hardware.py"
    module.parent.mkdir(parents=True)
    (module.parents[1] / "__init__.py").touch()
    monkeypatch.setattr(hardware, "__file__", str(module))
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "without the package")
    assert hardware.environment("cpu")["revision"] is None
    git("add", ".")
    git("commit", "-q", "-m", "with it")
    revision = hardware.environment("cpu")["revision"]
    assert len(revision) == 40
    module.touch()
    assert hardware.environment("cpu")["revision"] == f"{revision}+"


def _dataset(rows, length):
    offsets = np.arange(rows + 1) * length
    return EncodedDataset(np.zeros(rows * length, dtype=np.int32), offsets, np.zeros(rows, dtype=np.int64))


class _Greedy(torch.nn.Module):
    """Takes 4 MiB a row."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2**20))

    def forward(self, batch):
        return (self.weight * torch.ones(len(batch["input_ids"]), 1)).exp().sum()


@pytest.mark.parametrize(("free", "expected"), [(10**12, 64), (120 * 2**20, range(2, 40)), (1, 1)])
def test_the_batch_shrinks_to_the_memory_that_is_free(free, expected, monkeypatch):
    if not hardware.reset_peak_memory():
        pytest.skip("the system cannot forget a resident peak")
    monkeypatch.setattr(batch_size, "free_memory", lambda: free)
    model = _Greedy()
    state = torch.random.get_rng_state()
    rows = batch_size.fitting_micro_batch(
        lambda model, batch: model(batch), model, _dataset(64, 8), PaddingCollator(0), rows=64
    )
    assert rows == expected if isinstance(expected, int) else rows in expected
    assert model.weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_unknown_memory_changes_nothing(monkeypatch):
    monkeypatch.setattr(batch_size, "free_memory", lambda: None)
    assert batch_size.fitting_micro_batch(None, None, None, None, rows=64) == 64  # pyright: ignore


@pytest.mark.parametrize(
    ("rows", "fitting", "expected"), [(64, 64, 64), (64, 63, 32), (64, 5, 4), (10, 4, 3), (3, 0, 1)]
)
def test_halvings(rows, fitting, expected):
    assert batch_size.halvings(rows, fitting) == expected


def test_a_device_that_does_not_hold_one_row_is_said(monkeypatch, tmp_path):
    """On CUDA the batch is halved until it fits; here every size runs out of memory."""
    from diffmix.errors import RunError
    from diffmix.training import fitting
    from diffmix.training.recipe import load_recipe

    tried = []

    def run_out(self, micro, *rest):
        tried.append(micro)
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(fitting.Fitter, "_fit_with", run_out)
    fitter = fitting.Fitter(load_recipe("digits", ["batch_size=12"]), tmp_path, "cuda", "fp32", 0, print)
    monkeypatch.setattr(fitting, "environment", lambda device: {})
    with pytest.raises(RunError, match="does not hold a training step of one row: lower max_length"):
        fitter.fit(lambda: None, [0] * 20, None, None, None, None, "nll")
    assert tried[0] == 12
    assert tried[-1] == 1
    assert tried == sorted(set(tried), reverse=True)


@pytest.mark.parametrize("tuned", [True, False])
def test_a_tuned_process_keeps_freed_memory_and_counts_the_smallest_numbers_as_0(tuned):
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc is told")
    code = f"""
import torch
from diffmix.training.hardware import resident_memory, tune_cpu
torch.set_num_threads(2)
if {tuned}:
    tune_cpu()
before = resident_memory()
blocks = [torch.ones(2**20) for _ in range(25)]
del blocks
print(resident_memory() - before, end=" ")
print(float((torch.full((4_000_000,), 1e-30) * 1e-10 == 0).double().mean()))  # on both threads
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split()
    left, zero = map(float, told)
    assert (left > 80e6) if tuned else (left < 20e6)  # of 100 MB
    assert zero == tuned
