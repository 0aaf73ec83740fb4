"""The fast path is the definition: any length, mask, pattern and coefficients, forward and all gradients."""

import inspect
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmix.ops import attention_diffusion, heat, personalized_pagerank, reference
from diffmix.patterns import SparsePattern

LENGTHS = (1, 2, 3, 7, 16, 33, 100, 161)
PATTERNS = (
    SparsePattern(0),
    SparsePattern(3, 2, 2),
    SparsePattern(3, [0, 5, 40], 2, seed=1),
    SparsePattern(8, 1, 3),
    SparsePattern(0, 0, 2),
    SparsePattern(20, 3, 1),
    SparsePattern(3, 200),
    SparsePattern(400),
)
COEFFICIENTS = (personalized_pagerank(0.1, 5), heat(2.0, 3), (0.0, 1.0), (0.5, -0.25, 0.75), (0.3, 0.7))


def causal(pattern):
    return SparsePattern.from_dict(pattern.to_dict() | {"causal": True})


def draw(n, *, batch=2, heads=3, channels=4, dtype=torch.float64):
    return [torch.randn(batch, heads, n, channels, dtype=dtype, requires_grad=True) for _ in range(3)]


def draw_mask(kind, batch, n):
    length = torch.randint(0, n + 1, (batch, 1))
    place = torch.arange(n)
    return {
        "none": None,
        "all": torch.ones(batch, n, dtype=torch.bool),
        "right": place < length,
        "left": place >= n - length,
        "holes": torch.rand(batch, n) < 0.7,
    }[kind]


def value_and_gradients(function, inputs, probe, pattern, **options):
    out = function(*inputs, pattern, **options)
    if options.get("padding_mask") is not None:
        out = out.masked_fill(~options["padding_mask"][:, None, :, None], 0.0)
    return out, *torch.autograd.grad((out * probe).sum(), inputs)


def compare(inputs, pattern, tolerance=1e-9, **options):
    probe = torch.randn_like(inputs[2])
    ours, theirs = dict(options), options
    for got, expected in zip(
        value_and_gradients(attention_diffusion, inputs, probe, pattern, **ours),
        value_and_gradients(reference.attention_diffusion, inputs, probe, pattern, **theirs),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@settings(max_examples=120)
@given(
    st.integers(0, 2**31),
    st.sampled_from(LENGTHS),
    st.sampled_from(PATTERNS),
    st.booleans(),
    st.sampled_from(("none", "all", "right", "left", "holes")),
    st.sampled_from(COEFFICIENTS),
    st.booleans(),
    st.sampled_from((None, 0.7)),
)
def test_equals_the_definition(seed, n, pattern, is_causal, mask, coefficients, recompute, scale):
    torch.manual_seed(seed)
    compare(
        draw(n),
        causal(pattern) if is_causal else pattern,
        padding_mask=draw_mask(mask, 2, n),
        coefficients=coefficients,
        recompute=recompute,
        scale=scale,
    )


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [70, 999, 1001])
def test_a_thousand_tokens(window, is_causal):
    pattern = SparsePattern(window, 4, 3, causal=is_causal)
    compare(draw(1000, batch=1, heads=2), pattern, padding_mask=torch.arange(1000)[None] < 990)


def test_groups_of_sequences_join(monkeypatch):
    """As if few sequences fitted at a time: some heads of a row, and rows with all of their heads."""
    pattern = SparsePattern(3, 2, 2)
    inputs = draw(33, batch=5)
    mask = draw_mask("holes", 5, 33)
    for tokens in (1, 2 * 33, 7 * 33):
        monkeypatch.setattr(sys.modules["diffmix.ops.attention_diffusion"], "_GROUP_ON_CPU", tokens)
        compare(inputs, pattern, padding_mask=mask)


def test_values_may_have_channels_of_their_own():
    query, key, _ = draw(33)
    value = torch.randn(2, 3, 33, 6, dtype=torch.float64, requires_grad=True)
    compare([query, key, value], SparsePattern(3, 2, 2))


def test_the_definition_is_the_sum_of_powers():
    query, key, value = draw(12, batch=1, heads=1)
    pattern = SparsePattern(2, 1, 1)
    scores = (query @ key.mT / 2).masked_fill(~pattern.dense(12), -math.inf)
    weights = scores.softmax(-1)
    theta = heat(1.5, 4)
    expected = sum(c * torch.linalg.matrix_power(weights, k) @ value for k, c in enumerate(theta))
    torch.testing.assert_close(reference.attention_diffusion(query, key, value, pattern, coefficients=theta), expected)


def test_a_full_pattern_is_powers_of_dense_attention():
    query, key, value = draw(50)
    weights = (query @ key.mT / 2).softmax(-1)
    expected = 0.2 * value + 0.3 * weights @ value + 0.5 * weights @ weights @ value
    out = attention_diffusion(query, key, value, SparsePattern(50), coefficients=(0.2, 0.3, 0.5))
    torch.testing.assert_close(out, expected)


def test_no_hop_returns_the_values():
    query, key, value = draw(9)
    pattern = SparsePattern(2, 1, 1)
    assert torch.equal(
        attention_diffusion(query, key, value, pattern, coefficients=personalized_pagerank(0.1, 0)), value
    )


@pytest.mark.parametrize("is_causal", [False, True])
def test_one_hop_without_teleport_is_sparse_attention(is_causal):
    pattern = SparsePattern(5, 2, 3, causal=is_causal)
    query, key, value = draw(90)
    out = attention_diffusion(query, key, value, pattern, coefficients=personalized_pagerank(0.0, 1))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=pattern.dense(90))
    torch.testing.assert_close(out, expected)


@given(st.integers(0, 2**31), st.sampled_from(PATTERNS), st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_padding_changes_nothing_and_is_not_read(seed, pattern, left, right, is_causal):
    torch.manual_seed(seed)
    pattern = causal(pattern) if is_causal else pattern
    inputs = draw(33)
    probe = torch.randn_like(inputs[0])
    alone = value_and_gradients(attention_diffusion, inputs, probe, pattern)
    padded = [F.pad(states.detach(), (0, 0, left, right), value=math.nan).requires_grad_() for states in inputs]
    mask = F.pad(torch.ones(2, 33, dtype=torch.bool), (left, right))
    out = attention_diffusion(*padded, pattern, padding_mask=mask)
    # What is made of padding reaches no gradient either.
    gradients = torch.autograd.grad((out * F.pad(probe, (0, 0, left, right), value=1e3)).sum(), padded)
    assert out.isfinite().all()
    for got, expected in zip((out, *gradients), alone, strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got[:, :, left : left + 33], expected, atol=1e-10, rtol=1e-10)
    for gradient in gradients:
        assert not gradient[:, :, :left].any()
        assert not gradient[:, :, left + 33 :].any()


@pytest.mark.parametrize("pattern", [SparsePattern(2, 2, 2, causal=True), SparsePattern(30, [1, 60], 1, causal=True)])
def test_no_token_sees_the_future(pattern):
    states = [values.detach() for values in draw(100)]
    before = attention_diffusion(*states, pattern)
    for at in (1, 32, 61, 99):
        changed = [values.clone() for values in states]
        for values in changed:
            values[:, :, at:] = torch.randn_like(values[:, :, at:]) * 10
        after = attention_diffusion(*changed, pattern)
        torch.testing.assert_close(after[:, :, :at], before[:, :, :at], atol=1e-12, rtol=1e-12)
        assert not torch.allclose(after[:, :, at:], before[:, :, at:])
    # So a longer sequence changes nothing of its beginning: what cached generation relies on.
    cut = attention_diffusion(*(values[:, :, :57] for values in states), pattern)
    torch.testing.assert_close(cut, before[:, :, :57], atol=1e-12, rtol=1e-12)


def test_hops_reach_farther_than_the_window():
    query, key, value = draw(40)
    for hops in (1, 2, 5):
        out = attention_diffusion(query, key, value, SparsePattern(3), coefficients=personalized_pagerank(0.1, hops))
        reached = torch.autograd.grad(out[:, :, 0].sum(), value)[0].abs().sum((0, 1, 3)) > 0
        assert reached.nonzero().max() == 3 * hops


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    "dropouts", [{}, {"dropout_p": 0.3}, {"hop_dropout_p": 0.3}, {"dropout_p": 0.2, "hop_dropout_p": 0.2}]
)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradcheck(is_causal, dropouts, recompute):
    pattern = SparsePattern(2, 1, 1, causal=is_causal)
    mask = torch.tensor([[True] * 20, [False, True] * 10])

    def diffuse(*inputs):
        torch.manual_seed(3)  # the same dropout each time
        return attention_diffusion(
            *inputs, pattern, padding_mask=mask, coefficients=(0.1, 0.2, 0.3, 0.4), recompute=recompute, **dropouts
        )

    torch.autograd.gradcheck(diffuse, draw(20, heads=2, channels=2), fast_mode=True, nondet_tol=0.0)


@pytest.mark.parametrize("name", ["dropout_p", "hop_dropout_p"])
def test_dropout_keeps_the_expectation_and_follows_the_seed(name):
    query, key, _ = draw(64, heads=16)
    ones = torch.ones(2, 16, 64, 4, dtype=torch.float64)

    def diffuse(seed):
        torch.manual_seed(seed)
        return attention_diffusion(query, key, ones, SparsePattern(8, 2, 2), **{name: 0.4})

    assert torch.equal(diffuse(0), diffuse(0))
    assert not torch.equal(diffuse(0), diffuse(1))
    assert diffuse(0).std() > 0.05
    mean = torch.stack([diffuse(seed).mean() for seed in range(20)]).mean()
    assert mean.item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_as_good_as_the_plain_way(dtype, is_causal):
    pattern = SparsePattern(24, 4, 6, causal=is_causal)
    rounded = [states.detach().to(dtype).requires_grad_() for states in draw(300, heads=2, channels=32)]
    exact = [states.detach().double().requires_grad_() for states in rounded]
    probe = torch.randn(2, 2, 300, 32).to(dtype)
    wanted = value_and_gradients(reference.attention_diffusion, exact, probe.double(), pattern)
    plain = value_and_gradients(reference.attention_diffusion, rounded, probe, pattern)
    ours = value_and_gradients(attention_diffusion, rounded, probe, pattern)
    for name, w, p, o in zip(("out", "query", "key", "value"), wanted, plain, ours, strict=True):
        assert o.dtype is dtype
        assert (o.double() - w).norm() <= 2 * (p.double() - w).norm() + 1e-6 * w.norm(), name


def test_large_scores_that_nobody_hears_do_no_harm():
    """A key far louder than all others drowns those who hear it, and nobody else."""
    query, key, value = draw(200, batch=1, heads=1)
    with torch.no_grad():
        query.abs_()
        key[:, :, 100] = 1e4
        key[:, :, 0] = -1e4
    compare([query, key, value], SparsePattern(4, 0, 2), tolerance=1e-7)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("pattern", [SparsePattern(3, 1, 1), SparsePattern(20, 0, 2), causal(SparsePattern(3))])
def test_what_is_no_number_stays_in_its_row_and_head(pattern, wrong):
    query, key, value = draw(100, batch=3, heads=2)
    with torch.no_grad():
        value[1, 0, 97] = wrong
    whole = torch.zeros(3, 2, dtype=torch.bool)
    for states in (
        attention_diffusion(query, key, value, pattern),
        *torch.autograd.grad(attention_diffusion(query, key, value, pattern).sum(), (query, key, value)),
    ):
        whole |= ~states.isfinite().flatten(2).all(dim=-1)
    assert whole.tolist() == [[False, False], [True, False], [False, False]]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, where it prepares them
def test_derivatives_that_there_are_not_are_refused():
    inputs, pattern = draw(20), SparsePattern(3, 1, 1)
    with pytest.raises(RuntimeError, match=r"create_graph is True.*take diffmix\.ops\.reference\.attention_diffusion"):
        torch.autograd.grad(attention_diffusion(*inputs, pattern).square().sum(), inputs, create_graph=True)
    query, key, value = (states.detach() for states in inputs)
    with pytest.raises(RuntimeError, match=r"tangent of forward-mode.*take diffmix\.ops\.reference"):
        torch.func.jvp(lambda states: attention_diffusion(query, key, states, pattern), (value,), (value,))
    first = torch.autograd.grad(
        reference.attention_diffusion(*inputs, pattern).square().sum(), inputs, create_graph=True
    )
    assert torch.autograd.grad(first[0].square().sum(), inputs)[0].isfinite().all()


def test_the_definition_takes_the_same_arguments():
    ours, plain = (inspect.signature(function) for function in (attention_diffusion, reference.attention_diffusion))
    assert ours == plain


def test_autocast_decides_the_dtype():
    query, key, value = draw(33, dtype=torch.float32, channels=16)
    pattern = SparsePattern(4, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention_diffusion(query, key, value, pattern)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), attention_diffusion(query, key, value, pattern), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_into_one_graph_for_any_length(masked):
    pattern = SparsePattern(3, 2, 1)

    def diffuse(query, key, value, mask):
        return attention_diffusion(query, key, value, pattern, padding_mask=mask if masked else None).sin()

    compiled = torch.compile(diffuse, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (20, 50):
        inputs = draw(n)
        mask = torch.rand(2, n) < 0.7
        found, expected = (
            (out, *torch.autograd.grad(out.sum(), inputs)) for out in (compiled(*inputs, mask), diffuse(*inputs, mask))
        )
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_memory_for_the_backward_pass_grows_with_the_length_and_not_with_its_square():
    def kept(n, recompute):
        sizes = []
        inputs = draw(n, batch=1, heads=1, dtype=torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: sizes.append(saved.numel()) or saved, lambda s: s):
            attention_diffusion(*inputs, SparsePattern(16, 2, 2), recompute=recompute)
        return sum(sizes)

    assert kept(8000, False) < 4.1 * kept(2000, False)
    assert kept(8000, True) <= 3 * 8000 * 4 + 10  # query, key and value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": "window"}, "pattern is 'window'; give a diffmix.patterns.SparsePattern"),
        ({"coefficients": (0.5, 0.4)}, "sums to 0.9"),
        ({"coefficients": ()}, r"coefficients is \(\)"),
        ({"padding_mask": torch.ones(1, 4, dtype=torch.bool)}, r"padding_mask has shape \(1, 4\); give \[1, 5\]"),
        ({"padding_mask": torch.ones(1, 5)}, "padding_mask has dtype"),
        ({"dropout_p": 1.0}, "dropout_p is 1.0"),
        ({"hop_dropout_p": -0.1}, "hop_dropout_p is -0.1"),
        ({"scale": math.nan}, "scale is nan"),
        ({"scale": "a"}, "scale is 'a'"),
        ({"coefficients": "ab"}, "coefficients is 'ab'; give K.1 finite numbers"),
        ({"coefficients": 1.0}, "coefficients is 1.0; give K.1 finite numbers"),
        (
            {"coefficients": torch.tensor([0.5, 0.5], requires_grad=True)},
            "give K.1 finite numbers that take no gradient",
        ),
        ({"scale": 1e38}, "scale is 1e.38, with which scores may reach"),
        ({"query": torch.full((1, 2, 5, 4), math.inf)}, "query holds values that are not finite"),
        ({"key": torch.full((1, 2, 5, 4), math.nan)}, "key holds values that are not finite"),
        ({"query": torch.randn(2, 5, 4)}, "query has shape"),
        ({"key": torch.randn(1, 1, 5, 4)}, "key has shape"),
        ({"key": torch.randn(1, 2, 5, 6)}, "key has 6 channels but query 4"),
        ({"value": torch.randn(1, 2, 4, 4)}, "value has shape"),
        ({"value": torch.randn(1, 2, 5, 4).double()}, "value has dtype torch.float64 but query torch.float32"),
        ({"value": torch.ones(1, 2, 5, 4, dtype=torch.long)}, "value has dtype torch.int64; give a floating dtype"),
        ({name: torch.randn(1, 2, 0, 4) for name in ("query", "key", "value")}, "give 1 token or more"),
    ],
)
@pytest.mark.parametrize("function", [attention_diffusion, reference.attention_diffusion])
def test_wrong_arguments_are_named(function, change, message):
    states = {name: torch.randn(1, 2, 5, 4) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match=message):
        function(**(states | {"pattern": SparsePattern(1, 1, 1)} | change))
