"""The Triton kernels: in the interpreter, through the compiler, and on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffmix.ops import attention_diffusion, kernels, personalized_pagerank, reference
from diffmix.patterns import SparsePattern

needs_triton = pytest.mark.skipif(
    kernels.importlib.util.find_spec("triton") is None, reason="needs triton, which is installed on Linux on x86-64"
)
PATTERN = SparsePattern(24, [0, 7], 3)
SMALLEST_GPU = 99 * 1024  # bytes of shared memory that a program may take, of capabilities 8.6 and 8.9


@needs_triton
@pytest.mark.slow
def test_in_the_interpreter():
    """See `interpreted.py`."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("interpreted.py")),
    ]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "capability", "dtype"),
    [
        (16, 80, torch.bfloat16),
        *[
            pytest.param(128, capability, dtype, marks=pytest.mark.acceptance)
            for capability in (80, 90)
            for dtype in (torch.bfloat16, torch.float32)
        ],
    ],
)
def test_what_is_launched_compiles_for_gpus(channels, capability, dtype, tmp_path, monkeypatch):
    """The launches of both passes, recorded, go through Triton's compiler and the assembler, for GPUs of a capability."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import mangle_type

    from diffmix.ops.kernels import diffusion, sparse_attention

    launches = {}

    class Recorder:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(sparse_attention, name)

        def __getitem__(self, grid):
            return self.record

        def record(self, *arguments, num_warps, num_stages, **constants):
            names = self.kernel.arg_names
            signature = dict(zip(names, map(mangle_type, arguments), strict=False))
            assert [*signature, *sorted(constants, key=names.index)] == names
            constants |= {
                name: 1 for name, given in zip(names, arguments, strict=False) if isinstance(given, int) and given == 1
            }
            signature |= dict.fromkeys(constants, "constexpr")
            source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants)
            kind = (self.name, constants.get("TRANSPOSED"), constants["EVERY"])
            launches[kind] = source, {"num_warps": num_warps, "num_stages": num_stages}

    recorders = {name: Recorder(name) for name in ("log_sum_exp", "multiply", "differentiate_scores")}
    for name, recorder in recorders.items():
        monkeypatch.setattr(sparse_attention, name, recorder)
    states = torch.zeros(1, 2, 100, channels, dtype=dtype)
    shared = (None, PATTERN, personalized_pagerank(0.1, 2), 0.125)
    result, kept = diffusion.forward(states, states, states, *shared, keep=True)
    diffusion.backward(result, states, states, states, kept, *shared)
    assert len(launches) == 2 + 4 + 4
    for kind, (source, options) in launches.items():
        if channels == 16 and (kind[1] is False or kind[2]):
            continue  # one of each kernel is what there is time for
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert made.asm["cubin"], kind
        assert made.metadata.shared <= SMALLEST_GPU, kind


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [16, 80, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_on_a_gpu_kernels_err_no_more_than_blocks(causal, channels, dtype):
    pattern = SparsePattern.from_dict(PATTERN.to_dict() | {"causal": causal})
    states = [torch.randn(2, 3, 1500, channels, dtype=dtype, device="cuda") for _ in range(4)]
    mask = torch.arange(1500, device="cuda") < torch.tensor([[1500], [1000]], device="cuda")

    def value_and_gradients(function, precision, **options):
        inputs = [values.detach().to(precision).requires_grad_() for values in states[:3]]
        out = function(*inputs, pattern, padding_mask=mask, **options).masked_fill(~mask[:, None, :, None], 0.0)
        return out, *torch.autograd.grad((out * states[3].to(precision)).sum(), inputs)

    exact = value_and_gradients(reference.attention_diffusion, torch.float64)
    plain = value_and_gradients(reference.attention_diffusion, dtype)
    blocked, ours, again = (
        value_and_gradients(attention_diffusion, dtype, backend=backend, recompute=recompute)
        for backend, recompute in (("blocked", False), ("triton", False), ("triton", True))
    )
    for name, e, p, b, o, a in zip(("out", "query", "key", "value"), exact, plain, blocked, ours, again, strict=True):
        allowed = 2 * max((p.double() - e).norm(), (b.double() - e).norm()) + 1e-6 * e.norm()
        assert (o.double() - e).norm() <= allowed, name
        assert torch.equal(o, a), name


def test_backends_that_cannot_be_had_are_named():
    states = torch.randn(1, 1, 5, 4)
    with pytest.raises(ValueError, match="backend is 'cuda'; give one of auto, blocked, triton"):
        attention_diffusion(states, states, states, PATTERN, backend="cuda")
    with pytest.raises(
        ValueError, match=r"backend is 'triton', but (query is on cpu; move it to cuda|triton is not inst)"
    ):
        attention_diffusion(states, states, states, PATTERN, backend="triton")


@needs_triton
def test_on_cuda_kernels_compute_what_they_can(monkeypatch):
    """Stand-ins for states on a GPU."""

    def states(dtype=torch.bfloat16, channels=64):
        return SimpleNamespace(is_cuda=True, device=torch.device("cuda"), dtype=dtype, shape=(1, 2, 5, channels))

    monkeypatch.setattr(kernels, "_can_launch", lambda device: True)
    assert kernels.by_kernels("auto", states(), states(), 0.0, 0.0)
    assert not kernels.by_kernels("blocked", states(), states(), 0.0, 0.0)
    assert not kernels.by_kernels("auto", states(), states(), 0.1, 0.0)
    assert not kernels.by_kernels("auto", states(), states(), 0.0, 0.1)
    for other in (states(torch.float64), states(channels=129)):
        assert not kernels.by_kernels("auto", other, other, 0.0, 0.0)
    monkeypatch.setattr(kernels, "_can_launch", lambda device: False)
    assert not kernels.by_kernels("auto", states(), states(), 0.0, 0.0)
    with pytest.raises(ValueError, match=r"backend is 'triton', but the kernels need an NVIDIA GPU of capability 8\.0"):
        kernels.by_kernels("triton", states(), states(), 0.0, 0.0)


@pytest.mark.parametrize(
    ("found", "hip", "capability", "expected"),
    [
        ("gcc", None, (9, 0), True),
        ("clang", None, (8, 0), True),
        ("", None, (9, 0), False),
        ("gcc", "6.0", (9, 0), False),
        ("gcc", None, (7, 5), False),
    ],
)
def test_kernels_are_launched_with_a_c_compiler_on_gpus_of_nvidia_that_hold_them(
    found, hip, capability, expected, monkeypatch
):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: name if name == found else None)
    assert kernels._can_launch.__wrapped__(torch.device("cuda")) is expected


def test_without_triton_it_is_named_and_the_blocks_compute(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    states = torch.randn(1, 1, 5, 4)
    with pytest.raises(ValueError, match="triton is not installed; install it, or give backend='blocked'"):
        attention_diffusion(states, states, states, PATTERN, backend="triton")
    assert torch.equal(
        attention_diffusion(states, states, states, PATTERN),
        attention_diffusion(states, states, states, PATTERN, backend="blocked"),
    )
