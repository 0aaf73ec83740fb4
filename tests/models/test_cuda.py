"""On a GPU: every operator and model gives what a CPU gives. Skipped where there is none."""

import copy
import math

import pytest
import torch
from test_causal import VARIANTS as CAUSAL_VARIANTS
from test_causal import make as make_causal
from test_modeling import VARIANTS, make, padded

from diffmix.ops import attention_diffusion, heat_kernel_attention, kernels, neighbor_diffusion, reference
from diffmix.patterns import SparsePattern

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
BACKENDS = ["auto", "blocked", "triton"] if kernels.importlib.util.find_spec("triton") else ["auto", "blocked"]


def error(got, exact):
    """‖got − exact‖ / ‖exact‖."""
    return float((got.detach().double().cpu() - exact).norm() / exact.norm())


def compare(function, definition, inputs, tolerance, dtype):
    """`function` on the GPU in `dtype` beside its definition in fp64 on the CPU, with every gradient."""
    exact = [values.to(dtype).double().requires_grad_() for values in inputs]
    on_gpu = [values.detach().to("cuda", dtype).requires_grad_() for values in exact]
    expected, got = definition(*exact), function(*on_gpu)
    probe = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * probe).sum(), exact)
    gradients = torch.autograd.grad((got * probe.to(got)).sum(), on_gpu)
    assert error(got, expected.detach()) < tolerance
    for gradient, right in zip(gradients, expected_gradients, strict=True):
        assert error(gradient, right) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("boundary", ["zero", "wrap"])
@pytest.mark.parametrize("offsets", [(-1, 0, 1), (-64, -3, 0, 2, 5)])
def test_neighbor_diffusion(offsets, boundary, dtype, tolerance):
    mask = torch.arange(77) >= torch.tensor([[0], [40], [76]])
    inputs = [torch.randn(3, 77, 16), torch.randn(len(offsets), 2, 8, 8) / 4]

    def on(function):
        def call(hidden, weight):
            real = mask.to(hidden.device)
            out = function(hidden, weight, offsets, padding_mask=real, boundary=boundary)
            return out.masked_fill(~real.unsqueeze(-1), 0.0)

        return call

    compare(on(neighbor_diffusion), on(reference.neighbor_diffusion), inputs, tolerance, dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("form", ["dot", "squared", "normalized"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_heat_kernel_attention(is_causal, form, dtype, tolerance):
    inputs = [torch.randn(2, heads, 77, 16) for heads in (4, 2, 2)]
    mask = None if is_causal else (torch.arange(77) < torch.tensor([[77], [30]]))[:, None, None, :]

    def on(function):
        return lambda query, key, value: function(
            query,
            key,
            value,
            1.3,
            attn_mask=None if mask is None else mask.to(query.device),
            is_causal=is_causal,
            form=form,
            locality=0.05,
            enable_gqa=True,
        )

    compare(on(heat_kernel_attention), on(reference.heat_kernel_attention), inputs, tolerance, dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_diffusion(backend, causal, dtype, tolerance):
    pattern = SparsePattern(9, [0, 50], 2, causal=causal)
    mask = torch.arange(301) < torch.tensor([[301], [130]])

    def on(function, **options):
        def call(query, key, value):
            real = mask.to(query.device)
            out = function(query, key, value, pattern, padding_mask=real, **options)
            return out.masked_fill(~real[:, None, :, None], 0.0)

        return call

    inputs = [torch.randn(2, 3, 301, 16) for _ in range(3)]
    compare(on(attention_diffusion, backend=backend), on(reference.attention_diffusion), inputs, tolerance, dtype)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("pattern", [SparsePattern(3, 1, 1), SparsePattern(20, 0, 2)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number_stays_in_its_row_and_head(backend, pattern, wrong):
    query, key, value = (torch.randn(3, 2, 100, 16, device="cuda") for _ in range(3))
    value[1, 0, 97] = wrong
    inputs = [states.requires_grad_() for states in (query, key, value)]
    mixed = attention_diffusion(*inputs, pattern, backend=backend)
    whole = torch.zeros(3, 2, dtype=torch.bool, device="cuda")
    for states in (mixed, *torch.autograd.grad(mixed.sum(), inputs)):
        whole |= ~states.isfinite().flatten(2).all(dim=-1)
    assert whole.tolist() == [[False, False], [True, False], [False, False]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_of_models(variant):
    ids, mask = padded([[3, 4, 5], [6, 7, 8, 9, 10, 11, 12], [13]], [0, 1, 4], 9)
    labels = torch.tensor([0, 2, 1])
    exact = make(variant).double()
    fast = copy.deepcopy(exact).float().cuda()
    low = copy.deepcopy(fast)
    expected = exact(ids, mask, labels=labels)
    expected.loss.backward()
    got = fast(ids.cuda(), mask.cuda(), labels=labels.cuda())
    got.loss.backward()
    assert error(got.logits, expected.logits.detach()) < 1e-4
    scale = max(float(p.grad.norm()) for p in exact.parameters() if p.grad is not None)
    for right, parameter in zip(exact.parameters(), fast.parameters(), strict=True):
        if right.grad is not None:
            assert float((parameter.grad.double().cpu() - right.grad).norm()) < 1e-4 * scale
    with torch.autocast("cuda", torch.bfloat16):
        rounded = low(ids.cuda(), mask.cuda(), labels=labels.cuda())
    assert rounded.logits.isfinite().all()
    assert error(rounded.logits, expected.logits.detach()) < 0.1
    rounded.loss.backward()
    assert all(p.grad.isfinite().all() for p in low.parameters() if p.grad is not None)


@pytest.mark.parametrize("variant", CAUSAL_VARIANTS)
def test_generation_with_and_without_a_cache(variant):
    model = make_causal(variant)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(ids, **options)
    model = model.cuda()
    for use_cache in (True, False):
        assert torch.equal(model.generate(ids.cuda(), use_cache=use_cache, **options).cpu(), expected)
