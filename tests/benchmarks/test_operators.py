import pytest
import torch

from diffmix.benchmarks.operators import CANDIDATES, OFFSETS, measure_operators
from diffmix.ops import reference


@pytest.mark.parametrize("name", [name for name in CANDIDATES if name != "compiled"])
@pytest.mark.parametrize("tokens", [1, 2, 15])
def test_every_candidate_computes_the_definition(name, tokens):
    hidden = torch.randn(2, tokens, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 6, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, tokens, 6, dtype=torch.float64)
    expected = reference.neighbor_diffusion(hidden, weight, OFFSETS)
    got = CANDIDATES[name](hidden, weight, OFFSETS)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    for one, other in zip(
        torch.autograd.grad(got, (hidden, weight), upstream),
        torch.autograd.grad(expected, (hidden, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_measures_every_width_and_dtype_forward_and_backward():
    measured = measure_operators(
        candidate="library",
        widths=[4, 8],
        dtypes=["fp32", "bf16"],
        batch=2,
        tokens=5,
        device="cpu",
        steps=1,
        baseline=0,
    )
    times = {key: value for key, value in measured.items() if "/" in key}
    assert set(times) == {
        f"{what}/{dtype}/{width}" for what in ("forward", "both") for dtype in ("fp32", "bf16") for width in (4, 8)
    }
    assert all(value > 0 for value in times.values())
