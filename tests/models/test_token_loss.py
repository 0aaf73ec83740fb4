"""The loss over a wide vocabulary, against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmix.models.token_loss import IGNORED, token_loss


def draw(tokens, channels, vocabulary, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, channels, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, channels, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, vocabulary, (tokens,), generator=generator)
    labels = labels.where(labels >= 0, IGNORED)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def plain(hidden, weight, labels):
    return F.cross_entropy(F.linear(hidden, weight), labels, reduction="sum", ignore_index=IGNORED)


@given(
    tokens=st.integers(1, 13),
    channels=st.integers(1, 5),
    vocabulary=st.integers(1, 11),
    held=st.integers(1, 100),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_loss_and_gradients_are_torchs_in_blocks_of_any_size(tokens, channels, vocabulary, held, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffmix.models.token_loss.SCORED_AT_ONCE", held)
        hidden, weight, labels = draw(tokens, channels, vocabulary, torch.float64, seed)
        loss = 0.7 * token_loss(hidden, weight, labels)
        got = torch.autograd.grad(loss, (hidden, weight))
    expected = 0.7 * plain(hidden, weight, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        got, torch.autograd.grad(expected, (hidden, weight), materialize_grads=True), rtol=1e-10, atol=1e-10
    )


def test_the_gradients_are_those_of_finite_differences():
    hidden, weight, labels = draw(5, 3, 7, torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: token_loss(h, w, labels), (hidden, weight))


def test_nothing_asked_costs_nothing():
    hidden, weight, labels = draw(4, 3, 7, torch.float32)
    loss = token_loss(hidden, weight, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert all(states.grad is not None and not states.grad.any() for states in (hidden, weight))


def test_large_scores_stay_finite():
    hidden, weight, labels = draw(6, 3, 7, torch.float32)
    loss = token_loss(1e4 * hidden, weight, labels)
    torch.testing.assert_close(loss, plain(1e4 * hidden, weight, labels))


def test_autocast_is_as_near_to_fp32_as_torch_in_autocast():
    hidden, weight, labels = draw(257, 32, 500, torch.float32)
    exact = plain(hidden, weight, labels)
    wanted = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        ours, torchs = token_loss(hidden, weight, labels), plain(hidden, weight, labels)
    assert ours.dtype == torch.float32
    assert abs(ours - exact) <= 2 * abs(torchs.float() - exact) + 1e-4 * exact
    for got, torch_got, want in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(torchs, (hidden, weight)), wanted, strict=True
    ):
        assert (got - want).norm() <= 2 * (torch_got - want).norm()
