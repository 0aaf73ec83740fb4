"""Drawn expressions follow the grammar's law, whatever the number of threads, and their labels are their values."""

import random
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from diffmix.tasks.long_range_arena.expressions import CLOSE, MIN, SM, evaluate, levels
from diffmix.tasks.long_range_arena.listops import Grammar, check_labels, draw, generate, select


def length_law(longest, max_depth=10, max_arguments=10):
    """P(length = k) of a node that is an operator at depth 1, float [longest + 1], from the grammar alone."""
    node = np.zeros(longest + 1)
    node[1] = 1.0  # at max_depth
    operator = node
    for _ in range(max_depth - 1):
        power, total = node.copy(), np.zeros(longest + 1)
        for _ in range(2, max_arguments + 1):
            power = np.convolve(power, node)[: longest + 1]
            total += power / (max_arguments - 1)
        operator = np.concatenate([[0.0, 0.0], total[:-2]])
        node = 0.25 * operator
        node[1] += 0.75
    return operator


def plain(rng, depth, max_depth, max_arguments):
    """One node as the published generator draws it: (text, length)."""
    if depth >= max_depth or rng.random() > 0.25:
        return str(rng.randrange(10)), 1
    arguments = [plain(rng, depth + 1, max_depth, max_arguments) for _ in range(rng.randint(2, max_arguments))]
    operator = rng.choice(["[MIN", "[MAX", "[MED", "[SM"])
    return " ".join([operator, *(text for text, _ in arguments), "]"]), 2 + sum(length for _, length in arguments)


def lengths_of(expressions):
    return np.diff(expressions.offsets)


def test_lengths_follow_the_law_of_the_grammar():
    drawn = draw(Grammar(20, 90), np.random.default_rng(1), trees=60_000)
    law = length_law(90)[20:]
    assert len(drawn.labels) / 60_000 == pytest.approx(law.sum(), abs=0.01)
    counts = np.bincount(lengths_of(drawn) - 20, minlength=71)
    assert stats.chisquare(counts, law / law.sum() * counts.sum()).pvalue > 1e-3


def test_the_published_median_follows_from_the_grammar():
    law = length_law(1999)[501:]
    assert 501 + np.searchsorted(np.cumsum(law), law.sum() / 2) == pytest.approx(956, abs=10)


def test_expressions_are_distributed_as_those_of_tree_by_tree_sampling():
    rng, limits = random.Random(0), Grammar(6, 16, max_depth=4, max_arguments=4)
    plains = []
    while len(plains) < 3000:
        text, length = plain(rng, 1, 4, 4)
        if 6 <= length <= 16:
            plains.append((text, length))
    drawn = draw(limits, np.random.default_rng(2), trees=20_000)
    tree_depths = []
    for row in range(2000):
        one = select(drawn, slice(row, row + 1))
        tree_depths.append((len(levels(one.ids)), int((one.ids == CLOSE).sum())))
    theirs = Counter((max_nesting(text), text.count("]")) for text, _ in plains)
    ours = Counter(tree_depths)
    keys = [key for key in theirs if theirs[key] + ours[key] >= 20]
    table = np.array([[theirs[key] for key in keys], [ours[key] for key in keys]])
    assert len(keys) > 4
    assert stats.chi2_contingency(table).pvalue > 1e-3


def max_nesting(text):
    """Levels of nodes of an expression."""
    depth = deepest = 0
    for token in text.split():
        deepest = max(deepest, depth + (token != "]"))
        depth += token.startswith("[") - (token == "]")
    return deepest


def test_symbols_are_uniform_and_single_digits_occur_where_they_fit():
    drawn = draw(Grammar(1, 40), np.random.default_rng(3), trees=20_000)
    counts = np.bincount(drawn.ids, minlength=16)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:11]).pvalue > 1e-3
    assert stats.chisquare(counts[MIN : SM + 1]).pvalue > 1e-3
    assert (lengths_of(drawn) == 1).mean() == pytest.approx(0.75 / (0.75 + 0.25 * length_law(40).sum()), abs=0.02)


def test_labels_are_values_and_a_wrong_one_is_found():
    drawn = generate(300, 5, 32, 128)
    assert np.array_equal(evaluate(drawn.ids), drawn.labels)
    assert not len(check_labels(drawn, rows=77))
    drawn.labels[[7, 290]] = (drawn.labels[[7, 290]] + 1) % 10
    assert check_labels(drawn, rows=77).tolist() == [7, 290]


def test_threads_change_nothing_and_smaller_counts_are_the_beginning():
    one, three = generate(2500, 0, 32, 64), generate(2500, 0, 32, 64, workers=3)
    assert all(np.array_equal(a, b) for a, b in zip(one, three, strict=True))
    first = select(one, slice(0, 100))
    assert all(np.array_equal(a, b) for a, b in zip(generate(100, 0, 32, 64), first, strict=True))
    assert not np.array_equal(generate(100, 1, 32, 64).ids, first.ids)
    lengths = lengths_of(one)
    assert (lengths.min(), lengths.max()) == (32, 64)
    rows = {one.ids[a:b].tobytes() for a, b in zip(one.offsets[:-1], one.offsets[1:], strict=True)}
    assert len(rows) == 2500


def test_easier_sets_keep_their_limits():
    easy = generate(200, 0, 4, 20, max_depth=3, max_arguments=3)
    assert len(levels(easy.ids)) <= 3
    assert max(int(level.arities.max(initial=0)) for level in levels(easy.ids)) <= 3
    assert sum(len(level.arities) for level in levels(easy.ids)) == (easy.ids == CLOSE).sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "count"),
        ({"min_length": 0}, "min_length"),
        ({"min_length": 9, "max_length": 8}, "max_length"),
        ({"max_depth": 0}, "max_depth"),
        ({"max_depth": 1, "min_length": 4}, "single digits"),
        ({"max_arguments": 1}, "max_arguments"),
        ({"count": 11, "min_length": 1, "max_length": 1}, "only 10 different expressions"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message, monkeypatch):
    monkeypatch.setattr("diffmix.tasks.long_range_arena.listops._BARREN", 3)
    with pytest.raises(ValueError, match=message):
        generate(**{"count": 5, "seed": 0, "min_length": 3, "max_length": 30, **arguments})
