import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmix.models.diffusion_time import AdaptiveTime, LearnedTime, depth_scaled_time, similarity_statistics


def test_the_depth_law_gives_the_published_times():
    assert [round(depth_scaled_time(layers), 2) for layers in (4, 8, 12, 24, 96)] == [0.28, 0.20, 0.16, 0.11, 0.06]
    with pytest.raises(ValueError, match="layers is 0"):
        depth_scaled_time(0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.booleans(), st.sampled_from(((1, 1), (1, 70), (64, 64), (65, 65), (130, 130), (3, 200)))
)
def test_statistics_are_those_of_the_scores(seed, is_causal, lengths):
    torch.manual_seed(seed)
    queries, keys = lengths
    query = torch.randn(2, 3, queries, 5, dtype=torch.float64, requires_grad=True)
    key = torch.randn(2, 3, keys, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, keys) < 0.8
    heard = mask[:, None, None, :].expand(2, 3, queries, keys)
    if is_causal:
        heard = heard & torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    scores = query @ key.transpose(-1, -2)
    count = heard.sum(-1, keepdim=True).clamp(min=1)
    mean = (scores * heard).sum(-1, keepdim=True) / count
    variance = ((scores - mean).square() * heard).sum(-1, keepdim=True) / count
    found = similarity_statistics(query, key, padding_mask=mask, is_causal=is_causal)
    for value, expected in zip(found, (mean, variance), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-9, rtol=1e-9)
        probe = torch.randn_like(expected)
        for grad, wanted in zip(
            torch.autograd.grad((value * probe).sum(), [query, key], retain_graph=True, allow_unused=True),
            torch.autograd.grad((expected * probe).sum(), [query, key], retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(torch.zeros_like(wanted) if grad is None else grad, wanted, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("kind", [LearnedTime, AdaptiveTime])
def test_time_starts_where_it_is_told_and_stays_in_its_bounds(kind):
    torch.manual_seed(0)
    time = kind(3, 0.28, 0.1, 10.0)
    query, key = torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 4)
    found = time(query, key, None, True)
    torch.testing.assert_close(found, torch.full_like(found, 0.28))
    assert torch.broadcast_shapes(found.shape, (2, 3, 9, 1)) == (2, 3, 9, 1)
    for parameter in time.parameters():
        torch.nn.init.normal_(parameter, std=30)
    found = time(100 * query, key, None, True)
    assert ((found >= 0.1 * (1 - 1e-5)) & (found <= 10 * (1 + 1e-5))).all()


def test_adaptive_time_differs_by_query_and_sees_no_future():
    torch.manual_seed(0)
    time = AdaptiveTime(2, 0.28, 0.1, 10.0).double()
    torch.nn.init.normal_(time.output_weight)
    query, key = torch.randn(1, 2, 150, 4, dtype=torch.float64), torch.randn(1, 2, 150, 4, dtype=torch.float64)
    before = time(query, key, None, True)
    assert before.std() > 1e-3
    query[:, :, 70:], key[:, :, 70:] = 5.0, -5.0
    torch.testing.assert_close(time(query, key, None, True)[:, :, :70], before[:, :, :70], atol=1e-12, rtol=1e-10)
