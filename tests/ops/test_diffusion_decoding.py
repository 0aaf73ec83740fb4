"""Tokens computed a few at a time, from the kept states of those before, are those of the whole sequence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmix.ops import heat, personalized_pagerank, reference
from diffmix.ops.alignment import aligned_positions
from diffmix.ops.diffusion_decoding import NewTokens, diffuse_new_tokens
from diffmix.patterns import SparsePattern

PATTERNS = (
    SparsePattern(0, causal=True),
    SparsePattern(3, 2, 2, causal=True),
    SparsePattern(2, [0, 9, 40], 2, causal=True, seed=1),  # 9 and 40 lie in the future of many
    SparsePattern(1, [25], 0, causal=True),
    SparsePattern(20, 1, 3, causal=True),
    SparsePattern(0, 0, 4, causal=True),
    SparsePattern(100, causal=True),
)
COEFFICIENTS = (personalized_pagerank(0.1, 5), (0.0, 1.0), (0.3, 0.7), heat(2.0, 3), (0.5, -0.25, 0.75), (1.0,))


def in_chunks(query, key, value, pattern, cuts, coefficients, mask=None, scale=None, **dropout):
    """The operator, from one cut to the next."""
    mixed, past = [], None
    for first, last in zip([0, *cuts], [*cuts, query.shape[2]], strict=True):
        seen = None if mask is None else mask[:, :last]
        if seen is None:
            positions = torch.arange(first, last).expand(len(query), -1)
        else:
            positions = (seen.long().cumsum(1) - 1).clamp(min=0)[:, first:]
        new = NewTokens(pattern, positions, first, seen)
        part = (states[:, :, first:last] for states in (query, key, value))
        options = {"coefficients": coefficients, "scale": query.shape[-1] ** -0.5 if scale is None else scale} | dropout
        found, states = diffuse_new_tokens(*part, new, past, **options)
        mixed.append(found)
        kept = (key[:, :, first:last], states)
        past = kept if past is None else tuple(torch.cat(both, dim=2) for both in zip(past, kept, strict=True))
    return torch.cat(mixed, dim=2)


def draw_mask(kind, n):
    length = torch.randint(1, n + 1, (2, 1))
    place = torch.arange(n)
    return {
        "none": None,
        "left": place >= n - length,
        "right": place < length,
        "holes": torch.rand(2, n) < 0.7,
    }[kind]


@settings(max_examples=100)
@given(
    st.integers(0, 2**31),
    st.integers(1, 60),
    st.sampled_from(PATTERNS),
    st.sampled_from(COEFFICIENTS),
    st.sampled_from(("none", "left", "right", "holes")),
    st.sampled_from((1, 2)),
    st.booleans(),
    st.data(),
)
def test_equals_the_definition(seed, n, pattern, coefficients, kind, key_heads, whole_first, data):
    torch.manual_seed(seed)
    query = torch.randn(2, 2, n, 4, dtype=torch.float64)
    key, value = torch.randn(2, 2, key_heads, n, 4, dtype=torch.float64)
    mask = draw_mask(kind, n)
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=6))) if n > 1 else []
    value.requires_grad_(not whole_first)  # then the first chunk, too, goes row by row
    found = in_chunks(query, key, value, pattern, cuts, coefficients, mask)
    repeated = [states.repeat_interleave(2 // key_heads, dim=1) for states in (key, value)]
    expected = reference.attention_diffusion(query, *repeated, pattern, coefficients=coefficients, padding_mask=mask)
    real = torch.ones(2, n, dtype=torch.bool) if mask is None else mask
    assert found.isfinite().all()
    torch.testing.assert_close(
        found.transpose(1, 2)[real], expected.transpose(1, 2)[real], atol=1e-10, rtol=1e-8, check_stride=False
    )


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("pattern", PATTERNS[1:4])
def test_gradients_pass_through_what_was_kept(pattern, coefficients):
    inputs = [torch.randn(1, 2, 45, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    probe = torch.randn(1, 2, 45, 4, dtype=torch.float64)
    wanted = (reference.attention_diffusion(*inputs, pattern, coefficients=coefficients) * probe).sum()
    found = (in_chunks(*inputs, pattern, [20, 21, 43], coefficients) * probe).sum()
    needed = inputs if len(coefficients) > 1 else inputs[2:]
    for got, expected in zip(torch.autograd.grad(found, needed), torch.autograd.grad(wanted, needed), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)


def test_long_rows_are_computed_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr("diffmix.ops.diffusion_decoding._PAIRS", 50)
    query, key, value = torch.randn(3, 2, 2, 70, 4, dtype=torch.float64)
    pattern, theta = PATTERNS[2], personalized_pagerank(0.2, 3)
    expected = reference.attention_diffusion(query, key, value, pattern, coefficients=theta)
    torch.testing.assert_close(in_chunks(query, key, value, pattern, [30], theta), expected)
    rows = NewTokens(pattern, torch.arange(30, 70).expand(2, -1), 30).rows
    assert max(some.heard.numel() for some in rows) <= 50
    assert {some.heard.shape[1] for some in rows} >= {41}  # only the global token hears everything
    assert sum(len(some.batch) for some in rows if some.heard.shape[1] == 41) == 2


def test_bfloat16_is_near():
    query, key, value = torch.randn(3, 1, 2, 50, 8)
    pattern, theta = PATTERNS[1], personalized_pagerank(0.1, 5)
    expected = reference.attention_diffusion(query, key, value, pattern, coefficients=theta)
    found = in_chunks(*(states.bfloat16() for states in (query, key, value)), pattern, [20, 21], theta)
    assert found.dtype is torch.bfloat16
    assert (found - expected).abs().max() < 0.05


def test_dropout_of_edges_is_one_for_all_hops_and_that_of_states_one_for_each():
    states = torch.ones(1, 1, 4000, 1)
    alone = SparsePattern(0, causal=True)  # A is the identity
    edges = in_chunks(states, states, states, alone, [2000], (0.0, 0.0, 1.0), dropout_p=0.5)
    assert set(edges.unique().tolist()) == {0.0, 4.0}
    assert edges.mean() == pytest.approx(2.0, abs=0.2)
    hops = in_chunks(states, states, states, alone, [2000], (0.0, 0.0, 1.0), hop_dropout_p=0.5)
    assert set(hops.unique().tolist()) == {0.0, 4.0}
    assert hops.mean() == pytest.approx(1.0, abs=0.2)


def test_positions_count_real_tokens():
    mask = torch.tensor([[False, True, False, True, True]])
    assert aligned_positions(mask).tolist() == [[3, 0, 4, 1, 2]]
    new = NewTokens(SparsePattern(1, causal=True), torch.tensor([[2]]), 4, mask)
    assert [rows.heard.tolist() for rows in new.rows] == [[[3, 4]]]
