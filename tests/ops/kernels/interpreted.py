"""The kernels in Triton's interpreter: any length, mask, pattern and coefficients, forward and all gradients.

Whether functions are interpreted is settled when Triton is imported, so `test_kernels.py` runs this file in a process of its own.
"""

import math

import pytest
import torch

from diffmix.ops import attention_diffusion, personalized_pagerank, reference
from diffmix.ops.kernels import diffusion
from diffmix.patterns import SparsePattern


@pytest.fixture(autouse=True)
def _short_stretches(monkeypatch):
    """So that short rows have several of them."""
    monkeypatch.setattr(diffusion, "STRETCH", 64)


def value_and_gradients(function, inputs, probe, mask, *arguments, **options):
    out = function(*inputs, *arguments, padding_mask=mask, **options)
    if mask is not None:
        assert out.isfinite().all()
        out = out.masked_fill(~mask[:, None, :, None], 0.0)
    return out, *torch.autograd.grad((out * probe).sum(), inputs)


def compare(
    pattern,
    n,
    hops,
    *,
    mask=None,
    heads=1,
    channels=(8, 8),
    dtype=torch.float32,
    tolerance=2e-6,
    recompute=False,
    padding=0.0,
):
    batch = 1 if mask is None else len(mask)
    inputs = [torch.randn(batch, heads, n, size).to(dtype) for size in (channels[0], *channels)]
    probe = torch.randn(batch, heads, n, channels[1]).to(dtype)
    exact = [states.double().requires_grad_() for states in inputs]
    if mask is not None:
        inputs = [states.masked_fill(~mask[:, None, :, None], padding) for states in inputs]
    inputs = [states.requires_grad_() for states in inputs]
    theta = personalized_pagerank(0.1, hops)
    ours = {"coefficients": theta, "backend": "triton", "recompute": recompute}
    found = value_and_gradients(attention_diffusion, inputs, probe, mask, pattern, **ours)
    wanted = value_and_gradients(
        reference.attention_diffusion, exact, probe.double(), mask, pattern, coefficients=theta
    )
    for name, got, expected in zip(("out", "query", "key", "value"), found, wanted, strict=True):
        assert got.dtype is dtype
        torch.testing.assert_close(
            got.double(), expected, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def right_padding(n, *lengths):
    return torch.arange(n) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "window", "hops"), [(1, 0, 1), (2, 3, 1), (3, 4, 2)])
def test_short_rows(n, window, hops, causal):
    compare(SparsePattern(window, 1, 1, causal=causal), n, hops)


@pytest.mark.parametrize("causal", [False, True])
def test_window_globals_and_links_under_padding(causal):
    """Global tokens inside and outside of the window of a token, at the start and not, beyond the end of a row."""
    compare(SparsePattern(3, [0, 5, 30], 2, causal=causal), 37, 1, mask=right_padding(37, 37, 20))


def test_causal_links_lead_one_way():
    compare(SparsePattern(2, 0, 3, causal=True), 37, 2)


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_over_several_blocks(causal):
    compare(SparsePattern(40, causal=causal), 100, 1)


def test_global_tokens_hear_several_stretches():
    compare(SparsePattern(0, 18), 100, 1)


def test_five_hops():
    compare(SparsePattern(3, 1, 1), 37, 5)


def test_a_pattern_that_is_full():
    compare(SparsePattern(200), 37, 2, heads=2)


def test_holes_in_the_mask_and_rows_without_a_token():
    mask = torch.stack([torch.rand(12) < 0.6, torch.zeros(12, dtype=torch.bool)])
    compare(SparsePattern(1, 1, 1), 12, 2, mask=mask, padding=math.nan)


def test_channels_that_are_no_power_of_two_and_recomputing():
    compare(SparsePattern(3, 2), 20, 2, channels=(5, 20), recompute=True)


def test_no_hop():
    query = torch.randn(1, 1, 9, 4)
    assert torch.equal(
        attention_diffusion(query, query, query, SparsePattern(2), coefficients=(1.0,), backend="triton"), query
    )


def test_half_precision():
    compare(SparsePattern(3, 2, 1), 37, 2, dtype=torch.float16, tolerance=4e-3)


def test_large_scores():
    """A key far louder than all others drowns those who hear it, and nobody else."""
    query, key, value = (torch.randn(1, 1, 40, 8) for _ in range(3))
    key[:, :, 30] = 1e3
    found, wanted = (
        attention_diffusion(query.abs(), key, value, SparsePattern(2, 0, 2), backend=backend)
        for backend in ("triton", "blocked")
    )
    torch.testing.assert_close(found, wanted)


def test_dropout_takes_the_blocks():
    query, key, value = (torch.randn(1, 1, 30, 8) for _ in range(3))
    for name in ("dropout_p", "hop_dropout_p"):
        found = []
        for backend in ("triton", "blocked"):
            torch.manual_seed(0)
            found.append(attention_diffusion(query, key, value, SparsePattern(2), backend=backend, **{name: 0.5}))
        assert torch.equal(*found)


@pytest.mark.parametrize(
    ("channels", "dtype", "message"),
    [
        (129, torch.float32, "heads have 129 channels; give at most 128, or backend='blocked'"),
        (8, torch.float64, "query has dtype torch.float64; give float32, bfloat16 or float16"),
        (8, torch.bfloat16, "the interpreter cannot multiply bfloat16"),
    ],
)
def test_what_kernels_cannot_take_is_named(channels, dtype, message):
    states = torch.randn(1, 1, 5, channels, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        attention_diffusion(states, states, states, SparsePattern(1), backend="triton")
