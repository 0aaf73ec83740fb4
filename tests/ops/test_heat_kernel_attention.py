"""The fast path is the definition: every form, mask and kind of time, forward and all gradients."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmix.ops import heat_kernel_attention, locality_radius, reference

FORMS = ("dot", "squared", "normalized")
TIMES = ("float", "scalar", "head", "query", "all")


def draw_time(kind, batch, heads, queries, dtype=torch.float64):
    if kind == "float":
        return 0.7
    shape = {"scalar": (), "head": (heads, 1, 1), "query": (1, 1, queries, 1), "all": (batch, heads, queries, 1)}[kind]
    return (0.3 + torch.rand(shape, dtype=dtype)).requires_grad_()


def draw_mask(kind, batch, heads, queries, keys, dtype=torch.float64):
    if kind == "none":
        return None
    if kind == "padding":
        return torch.rand(batch, 1, 1, keys) < 0.7
    heard = torch.rand(batch, heads, queries, keys) < 0.5
    heard[0, 0, 0] = False  # a row that hears nothing
    if kind == "bool":
        return heard
    if kind == "two-dimensional":
        return heard[0, 0]
    return torch.randn(batch, heads, queries, keys, dtype=dtype).masked_fill(~heard, -math.inf)


def both(inputs, probe, *args, **options):
    """Outputs and gradients of the fast path and of the definition."""
    found = []
    for function in (heat_kernel_attention, reference.heat_kernel_attention):
        out = function(*args, **options)
        found.append((out, torch.autograd.grad((out * probe).sum(), inputs, allow_unused=True)))
    return found


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(FORMS),
    st.sampled_from(TIMES),
    st.sampled_from(("none", "padding", "bool", "two-dimensional", "additive")),
    st.booleans(),
    st.sampled_from((0.0, 0.3)),
    st.sampled_from((1, 2)),
    st.sampled_from(((1, 1), (7, 7), (1, 9), (5, 11), (11, 5), (33, 33))),
)
def test_equals_the_definition(seed, form, time, mask, is_causal, locality, repeats, lengths):
    torch.manual_seed(seed)
    queries, keys = lengths
    query = torch.randn(2, 4, queries, 5, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, 4 // repeats, keys, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    time = draw_time(time, 2, 4, queries)
    inputs = [query, key, value] + ([time] if isinstance(time, torch.Tensor) else [])
    options = {"attn_mask": draw_mask(mask, 2, 4, queries, keys), "is_causal": is_causal, "form": form}
    options |= {"locality": locality, "enable_gqa": repeats > 1}
    (out, grads), (expected, expected_grads) = both(
        inputs, torch.randn(2, 4, queries, 5, dtype=torch.float64), query, key, value, time, **options
    )
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-8)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        grad, wanted = (torch.zeros(()) if g is None else g for g in (grad, wanted))
        torch.testing.assert_close(grad + 0 * wanted, wanted + 0 * grad, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("locality", [0.0, 0.05])
@pytest.mark.parametrize("is_causal", [False, True])
def test_blocks_of_queries_join(form, locality, is_causal):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 601, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    time = torch.tensor([[[0.4]], [[0.9]]], dtype=torch.float64, requires_grad=True)
    mask = torch.rand(1, 1, 1, 601) < 0.9 if form == "dot" else None
    (out, grads), (expected, expected_grads) = both(
        [query, key, value, time],
        torch.randn_like(query),
        *(query, key, value, time),
        form=form,
        locality=locality,
        is_causal=is_causal,
        attn_mask=mask,
    )
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-8)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, atol=1e-9, rtol=1e-7)


def test_dot_at_half_the_root_of_the_channels_is_scaled_dot_product_attention():
    query, key, value = (torch.randn(2, 3, 17, 16) for _ in range(3))
    out = heat_kernel_attention(query, key, value, math.sqrt(16) / 2, is_causal=True)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value, is_causal=True))


def test_normalized_is_squared_on_unit_vectors():
    query, key, value = (torch.randn(2, 3, 17, 16, dtype=torch.float64) for _ in range(3))
    unit = [F.normalize(states, dim=-1) for states in (query, key)]
    torch.testing.assert_close(
        heat_kernel_attention(query, key, value, 0.2, form="normalized"),
        heat_kernel_attention(*unit, value, 0.2, form="squared"),
    )


@pytest.mark.parametrize("form", FORMS)
def test_weights_sum_to_one_and_deaf_rows_are_zero(form):
    query, key = torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = torch.rand(2, 1, 9, 9) < 0.5
    mask[:, :, 3] = False
    out = heat_kernel_attention(query, key, torch.ones(2, 2, 9, 8), 0.5, form=form, attn_mask=mask)
    heard = mask.any(-1, keepdim=True).expand_as(out)
    torch.testing.assert_close(out, heard.float())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_as_good_as_the_plain_way(form, dtype):
    torch.manual_seed(0)
    exact = [torch.randn(2, 4, 129, 64, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    rounded = [states.detach().to(dtype).requires_grad_() for states in exact]
    exact = [states.detach().double().requires_grad_() for states in rounded]
    probe = torch.randn(2, 4, 129, 64, dtype=torch.float64)
    wanted = reference.heat_kernel_attention(*exact, 4.0, form=form, is_causal=True)
    wanted_grads = torch.autograd.grad((wanted * probe).sum(), exact)
    errors = []
    for function in (heat_kernel_attention, reference.heat_kernel_attention):
        out = function(*rounded, 4.0, form=form, is_causal=True)
        assert out.dtype is dtype
        grads = torch.autograd.grad((out * probe.to(dtype)).sum(), rounded)
        errors.append(
            [(a.double() - b).norm() / b.norm() for a, b in zip((out, *grads), (wanted, *wanted_grads), strict=True)]
        )
    for fast, plain in zip(*errors, strict=True):
        assert fast <= 2 * plain + 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("locality", [0.0, 0.1])
@pytest.mark.parametrize("per_query", [False, True])
def test_no_query_sees_the_future(form, locality, per_query):
    torch.manual_seed(0)
    states = [torch.randn(1, 2, 300, 4, dtype=torch.float64) for _ in range(3)]
    time = 0.3 + torch.rand(1, 2, 300, 1, dtype=torch.float64) if per_query else 0.5
    before = heat_kernel_attention(*states, time, form=form, locality=locality, is_causal=True)
    for at in (1, 128, 256, 299):
        changed = [values.clone() for values in states]
        for values in changed:
            values[:, :, at:] = torch.randn_like(values[:, :, at:]) * 10
        after = heat_kernel_attention(*changed, time, form=form, locality=locality, is_causal=True)
        torch.testing.assert_close(after[:, :, :at], before[:, :, :at], atol=1e-12, rtol=1e-10)


def test_the_published_radius_is_not_safe_and_ours_is():
    """A far key in line with the query beside near ones against it: the published radius skips most of the row."""
    time, locality, keys = 0.05, 0.01, 64
    published = math.sqrt(4 * time * math.log(1 / torch.finfo(torch.float32).eps) / locality)
    query = torch.zeros(1, 1, keys, 4, dtype=torch.float64)
    query[..., 0] = 1
    key = -query.clone()
    far = int(published) + 2
    key[:, :, keys - 1 - far, 0] = 1
    score = (query[0, 0, -1] @ key[0, 0].T) / (2 * time)
    score = score - locality * torch.arange(keys - 1, -1, -1) ** 2 / (4 * time)
    skipped = score.softmax(0)[: keys - 1 - int(published)].sum()
    assert skipped > 0.5
    ours = locality_radius(time, locality, keys, torch.float32)
    beyond = score.softmax(0)[: max(0, keys - 1 - math.ceil(ours))].sum()
    assert beyond < torch.finfo(torch.float32).eps


def test_the_radius_changes_nothing_that_can_be_seen():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, 2000, 4, dtype=torch.float64) for _ in range(3))
    assert locality_radius(0.3, 1.0, 2000, torch.float64) < 100  # most keys are skipped
    options = {"form": "normalized", "locality": 1.0}
    torch.testing.assert_close(
        heat_kernel_attention(query, key, value, 0.3, **options),
        reference.heat_kernel_attention(query, key, value, 0.3, **options),
    )


def test_dropout_keeps_the_expectation():
    torch.manual_seed(0)
    query, key = torch.randn(1, 8, 64, 8), torch.randn(1, 8, 64, 8)
    out = heat_kernel_attention(query, key, torch.ones(1, 8, 64, 8), 2.0, dropout_p=0.5)
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert out.std() > 0.01


def test_autocast_decides_the_dtype():
    query, key, value = (torch.randn(1, 2, 33, 16) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = heat_kernel_attention(query, key, value, 1.0, form="squared")
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(
        out.float(), heat_kernel_attention(query, key, value, 1.0, form="squared"), atol=0.05, rtol=0.05
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": 0.0}, "time is 0.0; give a finite number above 0"),
        ({"time": math.nan}, "time is nan"),
        ({"time": torch.tensor([1.0, -1.0]).view(2, 1, 1)}, "time holds -1.0"),
        ({"time": torch.ones(3, 1, 1)}, r"time has shape \(3, 1, 1\); give one that broadcasts to \[1, 2, 5, 1\]"),
        ({"form": "cosine"}, "form is 'cosine'; give one of 'dot'"),
        ({"locality": -1.0}, "locality is -1.0"),
        ({"dropout_p": 1.0}, "dropout_p is 1.0"),
        ({"attn_mask": torch.ones(4, 5, dtype=torch.bool)}, "attn_mask has shape"),
        ({"attn_mask": torch.ones(5, 5, dtype=torch.long)}, "attn_mask has dtype torch.int64"),
        ({"key": torch.randn(1, 1, 5, 4), "value": torch.randn(1, 1, 5, 4)}, "key has 1 heads for 2 of query"),
        ({"value": torch.randn(1, 2, 4, 4)}, "give one value for each key"),
        ({"query": torch.randn(2, 5, 4)}, "query has shape"),
        ({"key": torch.randn(1, 2, 5, 4).half()}, "key has dtype torch.float16 but query torch.float32"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"time": 1.0} | {name: torch.randn(1, 2, 5, 4) for name in ("query", "key", "value")} | change
    for function in (heat_kernel_attention, reference.heat_kernel_attention):
        with pytest.raises(ValueError, match=message):
            function(**arguments)


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"is_causal": True, "locality": 0.1}, {"form": "squared"}, {"form": "normalized"}],
)
def test_compiles_into_one_graph(options):
    compiled = torch.compile(heat_kernel_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    query, key, value = (torch.randn(1, 2, 20, 8) for _ in range(3))
    torch.testing.assert_close(
        compiled(query, key, value, 0.5, **options), heat_kernel_attention(query, key, value, 0.5, **options)
    )


@pytest.mark.parametrize("form", ["dot", "normalized", "squared"])
def test_second_derivatives_where_the_weights_are_made(form):
    time = torch.full((1, 1, 1), 0.7, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(1, 1, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def mixed(*states):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return heat_kernel_attention(*states, time, form=form, locality=0.5)

    assert torch.autograd.gradgradcheck(mixed, states)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, where it prepares them
@pytest.mark.parametrize("form", FORMS)
def test_forward_derivatives_are_those_of_the_definition(form):
    states = tuple(torch.randn(1, 2, 5, 3, dtype=torch.float64) for _ in range(3))
    tangents = tuple(torch.randn_like(state) for state in states)
    found = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused ones have none
        for function in (heat_kernel_attention, reference.heat_kernel_attention):
            found.append(torch.func.jvp(functools.partial(function, time=0.7, form=form), states, tangents))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("time", "locality"), [(0.28, 0.05), (0.1, 1.0)])
def test_keys_far_away_keep_their_order_in_low_precision(dtype, time, locality):
    """Where a mask leaves far keys only, locality's bias is thousands, and its differences are what counts."""
    query, key, value = (torch.randn(1, 1, 600, 16).to(dtype) for _ in range(3))
    place = torch.arange(600)
    heard = (place[:, None] // 128 - 2 == place // 128) | ((place[:, None] < 256) & (place[:, None] == place))
    found = heat_kernel_attention(query, key, value, time, attn_mask=heard, locality=locality)
    exact = reference.heat_kernel_attention(
        query.double(), key.double(), value.double(), time, attn_mask=heard, locality=locality
    )
    assert (found.double() - exact).square().mean().sqrt() < 5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("function", [heat_kernel_attention, reference.heat_kernel_attention])
def test_directions_of_zero_vectors_have_ordinary_gradients(function):
    states = [torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3)]
    with torch.no_grad():
        states[0][:, :, 1] = 0.0
        states[1][:, :, 3] = 0.0
    out = function(*states, 0.5, form="normalized")
    slopes = torch.autograd.grad(out.square().sum(), states)
    assert out.isfinite().all()
    assert max(float(slope.abs().max()) for slope in slopes) < 100


def test_squared_takes_large_keys_in_half_precision():
    states = [(torch.randn(1, 1, 8, 64) * scale).half() for scale in (45, 45, 1)]
    found = heat_kernel_attention(*states, 50.0, form="squared")
    exact = reference.heat_kernel_attention(*(each.double() for each in states), 50.0, form="squared")
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0.02)


def test_squared_takes_small_times_that_are_tensors_in_half_precision():
    states = [torch.randn(1, 2, 6, 8).half() for _ in range(3)]
    time = torch.full((2, 1, 1), 1e-4)
    found = heat_kernel_attention(*states, time, form="squared")
    exact = reference.heat_kernel_attention(*(each.double() for each in states), time.double(), form="squared")
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0.02)
