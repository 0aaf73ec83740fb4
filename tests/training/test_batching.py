import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmix.training.batching import LengthBucketedBatches, batches_by_tokens

lengths = st.lists(st.integers(0, 500), min_size=1, max_size=300)


@given(lengths, st.integers(1, 40), st.integers(0, 3), st.integers(0, 2))
def test_every_row_comes_once_an_epoch_in_even_batches(lengths, batch_size, seed, epoch):
    batches = LengthBucketedBatches(lengths, batch_size=batch_size, seed=seed)
    batches.set_epoch(epoch)
    epoch_batches = list(batches)
    assert len(epoch_batches) == len(batches)
    assert sorted(row for batch in epoch_batches for row in batch) == list(range(len(lengths)))
    sizes = [len(batch) for batch in epoch_batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(20, 200), st.integers(1, 3), st.integers(1, 4))
def test_processes_and_accumulation_share_the_same_global_batches(rows, processes, accumulation):
    lengths = np.random.default_rng(rows).integers(1, 100, rows)
    shape = {"batch_size": 12, "seed": 1, "length_warmup": rows // 24}
    whole = [set(batch) for batch in LengthBucketedBatches(lengths, **shape)]
    parts = [
        list(LengthBucketedBatches(lengths, **shape, accumulation=accumulation, processes=processes, rank=rank))
        for rank in range(processes)
    ]
    assert {len(part) for part in parts} == {len(whole) * accumulation}
    for index, batch in enumerate(whole):
        steps = slice(index * accumulation, (index + 1) * accumulation)
        assert set().union(*(row for part in parts for row in part[steps])) == batch
        assert all(micro for part in parts for micro in part[steps])


def test_epochs_and_seeds_differ_and_repeat():
    lengths = np.arange(100) % 17

    def order(seed, epoch):
        batches = LengthBucketedBatches(lengths, batch_size=10, seed=seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_batches_hold_rows_of_like_length_and_the_longest_comes_first():
    lengths = np.random.default_rng(0).integers(1, 512, 5000)
    batches = list(LengthBucketedBatches(lengths, batch_size=32))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()
    assert lengths[batches[0]].max() == lengths.max()


@given(lengths, st.integers(1, 2000))
def test_inference_batches_stay_within_their_tokens(lengths, tokens):
    batches = batches_by_tokens(lengths, tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= tokens


def test_length_warmup_goes_from_short_rows_to_long_ones_and_forgets_none():
    lengths = np.random.default_rng(0).integers(4, 400, 20_000)
    batches = LengthBucketedBatches(lengths, batch_size=10, length_warmup=3000)
    warm = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        warm += list(batches)
    longest = np.array([lengths[batch].max() for batch in warm[:3000]])
    assert longest[0] == lengths.max()  # the memory it takes shows at once
    low, high = np.quantile(lengths, [0.01, 0.99])
    limit = low * (high / low) ** (np.arange(1, 3001) / 3000)
    assert (longest[1:] <= limit[1:] + 3).all()
    assert 0.4 < (longest > limit / 1.4)[300:].mean() < 0.8
    assert longest[2800:].min() < 20  # the short ones come back to the end
    assert max(lengths[batch].max() / lengths[batch].min() for batch in warm[300:3000]) < 2
    plain = LengthBucketedBatches(lengths, batch_size=10)
    plain.set_epoch(1)
    assert warm[3000:] == list(plain)[1000:]


@pytest.mark.parametrize(
    "lengths",
    [
        [1, *np.random.default_rng(0).integers(200, 400, 5000)],
        [*np.random.default_rng(0).integers(20, 60, 5000), 4000],
        np.maximum(12, np.random.default_rng(0).lognormal(5, 0.8, 5000)).astype(int),
        [*np.random.default_rng(0).integers(4, 32, 5000), *np.random.default_rng(1).integers(500, 2000, 5000)],
    ],
    ids=["a short one", "a long one", "skewed", "a gap"],
)
def test_length_warmup_never_draws_the_same_batch_again(lengths):
    batches = LengthBucketedBatches(lengths, batch_size=32, length_warmup=150)
    assert len({frozenset(batch) for batch in batches}) == len(batches)


@given(lengths, st.integers(1, 40), st.integers(0, 3), st.integers(0, 2), st.integers(1, 200))
def test_length_warmup_makes_batches_of_the_same_sizes(lengths, batch_size, seed, epoch, warmup):
    batches = LengthBucketedBatches(lengths, batch_size=batch_size, seed=seed, length_warmup=warmup)
    plain = LengthBucketedBatches(lengths, batch_size=batch_size, seed=seed)
    for each in (batches, plain):
        each.set_epoch(epoch)
    drawn = list(batches)
    assert sorted(map(len, drawn)) == sorted(map(len, plain))
    assert all(len(set(batch)) == len(batch) and set(batch) <= set(range(len(lengths))) for batch in drawn)
    assert drawn == list(batches)


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_than_a_batch(rows):
    assert [len(batch) for batch in LengthBucketedBatches([5] * rows, batch_size=8)] == [rows]


def test_the_length_warmup_grows_in_what_is_given_in_the_place_of_lengths():
    growth = np.repeat([3.0, 6.0, 12.0], 100)
    rows = LengthBucketedBatches([64] * 300, batch_size=5, length_warmup=50, growth=growth)
    batches = rows.global_batches()
    hardest = [growth[batch].max() for batch in batches]
    assert hardest[1:10] == [3.0] * 9
    assert max(hardest[10:40]) == 6.0
    assert max(hardest[40:51]) == 12.0
    assert sorted(len(batch) for batch in batches) == [5] * 60
