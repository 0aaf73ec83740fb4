"""Patterns: who hears whom, the same however it is asked, and the same for a row cut short."""

import json

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmix.patterns import SparsePattern

LENGTHS = (1, 2, 3, 7, 16, 33, 100)


@st.composite
def patterns(draw):
    chosen = draw(st.one_of(st.integers(0, 12), st.lists(st.integers(0, 60), unique=True, max_size=5)))
    return SparsePattern(
        window=draw(st.sampled_from([0, 1, 3, 10, 200, 2**63 - 1, 10**30])),
        global_tokens=chosen,
        random_links=draw(st.sampled_from([0, 1, 2, 5])),
        causal=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )


@given(patterns(), st.sampled_from(LENGTHS))
def test_window_and_global_tokens_by_their_definition(pattern, n):
    i, j = np.indices((n, n))
    chosen = pattern.global_tokens
    chosen = range(chosen) if isinstance(chosen, int) else chosen
    expected = (abs(i - j) <= pattern.window) | np.isin(i, list(chosen)) | np.isin(j, list(chosen))
    if pattern.causal:
        expected &= j <= i
    dense = pattern.dense(n)
    assert dense.dtype is torch.bool
    linked = torch.zeros(n, n, dtype=torch.bool)
    linked[pattern.links(n)] = True
    assert not (linked & torch.from_numpy(expected)).any()  # links are always edges of their own
    assert torch.equal(dense, linked | torch.from_numpy(expected))


@given(patterns(), st.sampled_from(LENGTHS))
def test_links_are_drawn_among_earlier_tokens(pattern, n):
    hears, heard = pattern.links(n)
    back = heard < hears
    drawn = hears[back].bincount(minlength=n)
    chosen = set(pattern.global_positions(n).tolist())
    for token in range(n):
        reachable = [j for j in range(token - pattern.window) if j not in chosen]
        assert drawn[token] == (0 if token in chosen else min(pattern.random_links, len(reachable)))
    if pattern.causal:
        assert back.all()
    else:
        assert set(zip(hears.tolist(), heard.tolist(), strict=True)) == set(
            zip(heard.tolist(), hears.tolist(), strict=True)
        )


@given(patterns(), st.sampled_from(LENGTHS), st.data())
def test_a_longer_sequence_only_adds(pattern, n, data):
    m = data.draw(st.integers(1, n))
    assert torch.equal(pattern.dense(m), pattern.dense(n)[:m, :m])
    assert torch.equal(pattern.drawn_links(m), pattern.drawn_links(n)[:m])


@given(patterns(), st.sampled_from(LENGTHS))
def test_every_view_shows_the_same_graph(pattern, n):
    dense = pattern.dense(n)
    assert torch.equal(pattern.edges(n), dense.nonzero().T)
    hears, heard = pattern.links(n)
    back = heard < hears
    token = torch.arange(n)[:, None].expand(n, pattern.random_links)
    drawn = pattern.drawn_links(n)
    linked = torch.stack([token[drawn >= 0], drawn[drawn >= 0]])
    assert set(zip(*linked.tolist(), strict=True)) == set(zip(hears[back].tolist(), heard[back].tolist(), strict=True))
    assert torch.equal(pattern.degree(n), dense.sum(dim=1))
    facts = pattern.statistics(n)
    assert facts["edges"] == dense.sum()
    assert facts["mean_degree"] == pytest.approx(dense.sum(dim=1).double().mean())
    assert facts["lowest_degree"] == dense.sum(dim=1).min()
    assert facts["highest_degree"] == dense.sum(dim=1).max()
    assert facts["random_degree"] == pytest.approx(len(pattern.links(n)[0]) / n)
    possible = n * (n + 1) / 2 if pattern.causal else n * n
    assert facts["density"] == pytest.approx(dense.sum().item() / possible)


@given(patterns(), st.sampled_from(LENGTHS), st.data())
def test_the_past_of_some_tokens(pattern, n, data):
    positions = data.draw(st.lists(st.integers(0, n - 1), max_size=5))
    if not pattern.causal:
        with pytest.raises(ValueError, match="causal is False; give a causal pattern"):
            pattern.past_of(positions)
        return
    rows = pattern.past_of(torch.tensor(positions, dtype=torch.int64))
    dense = pattern.dense(n)
    assert [row[row >= 0].tolist() for row in rows] == [dense[i].nonzero().squeeze(1).tolist() for i in positions]
    assert rows.shape == (len(positions), max((int(dense[i].sum()) for i in positions), default=0))


@given(patterns(), st.sampled_from(LENGTHS), st.sampled_from([1, 2, 7, 64]))
def test_blocks_hold_all_edges_and_no_empty_block(pattern, n, size):
    count = -(-n // size)
    padded = torch.zeros(count * size, count * size, dtype=torch.bool)
    padded[:n, :n] = pattern.dense(n)
    expected = padded.view(count, size, count, size).any(dim=3).any(dim=1)
    assert torch.equal(pattern.blocks(n, size), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_the_mean_degree_does_not_fall_with_the_length(causal):
    pattern = SparsePattern(8, 2, 5, causal=causal)
    for n in (1_000, 10_000, 100_000):
        facts = pattern.statistics(n)
        assert facts["random_degree"] == pytest.approx(5 if causal else 10, rel=0.03)
        assert facts["mean_degree"] == pytest.approx(16 if causal else 31, rel=0.15)


def test_links_are_equally_likely():
    """Of 30 reachable tokens each is drawn about equally often: χ² with 29 degrees of freedom below its 1-in-10⁵ quantile."""
    counts = torch.zeros(30)
    for seed in range(600):
        hears, heard = SparsePattern(0, 0, 3, causal=True, seed=seed).links(31)
        counts += heard[hears == 30].bincount(minlength=30)
    expected = 600 * 3 / 30
    assert ((counts - expected) ** 2 / expected).sum() < 71


def test_the_seed_chooses_the_links():
    first, second = (SparsePattern(2, 0, 2, seed=seed).dense(50) for seed in (0, 1))
    assert not torch.equal(first, second)


@given(patterns())
def test_json_keeps_a_pattern(pattern):
    again = SparsePattern.from_dict(json.loads(json.dumps(pattern.to_dict())))
    assert again == pattern
    assert hash(again) == hash(pattern)
    assert torch.equal(again.dense(20), pattern.dense(20))


def test_writing_into_the_links_changes_no_pattern():
    pattern = SparsePattern(2, 1, 2)
    before = pattern.dense(30)
    for links in pattern.links(30):
        links.zero_()
    assert torch.equal(SparsePattern(2, 1, 2).dense(30), before)


def test_a_picture_shows_the_edges():
    mpl.use("agg")
    pattern = SparsePattern(1, 1, 1)
    axes = pattern.draw(12)
    assert np.array_equal(axes.images[0].get_array(), pattern.dense(12).numpy())
    assert "12 tokens" in axes.get_title()
    axes.figure.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": -1}, "window is -1; give a whole number, 0 or more"),
        ({"window": 1.5}, "window is 1.5"),
        ({"window": True}, "window is True"),
        ({"global_tokens": -2}, "global_tokens is -2"),
        ({"global_tokens": [0, -1]}, "global_tokens is -1; give positions from 0 on"),
        ({"global_tokens": [4, 4]}, r"global_tokens is \[4, 4\]; name each position once"),
        ({"global_tokens": "all"}, "global_tokens is 'all'"),
        ({"random_links": -1}, "random_links is -1"),
        ({"causal": 1}, "causal is 1; give True or False"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        SparsePattern(**{"window": 2, **change})


@pytest.mark.parametrize("n", [0, -3, 2.5])
@pytest.mark.parametrize(
    "view", ["dense", "edges", "degree", "statistics", "blocks", "links", "drawn_links", "global_positions", "draw"]
)
def test_a_sequence_has_a_token(view, n):
    with pytest.raises(ValueError, match=rf"n is {n}; give the number of tokens, 1 or more"):
        getattr(SparsePattern(2, 1, 1), view)(n)


def test_a_past_has_positions():
    with pytest.raises(ValueError, match="positions holds -2; give positions from 0 on"):
        SparsePattern(3, causal=True).past_of([4, -2])


def test_wrong_descriptions_are_named():
    with pytest.raises(ValueError, match="a pattern has no 'widow'"):
        SparsePattern.from_dict({"widow": 2})
    with pytest.raises(ValueError, match="add window"):
        SparsePattern.from_dict({"seed": 2})
    with pytest.raises(ValueError, match="block_size is 0"):
        SparsePattern(2).blocks(10, 0)
