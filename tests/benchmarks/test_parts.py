import pytest
import torch

from diffmix.benchmarks.parts import SIDES, build_parts, measure_parts

SAME = [
    "padding set to 0",
    "max over tokens",
    "batch norm without padding",
    "15 tracks that move",
    "mixture and first layer",
]
SAME += ["loss of 4,096 tokens among 50,257"]


@pytest.mark.parametrize("part", SAME)
def test_both_sides_compute_the_same(part):
    torch.manual_seed(0)
    sides = build_parts(16, torch.float32)[part]
    hidden = torch.randn(3, 7, 16)
    mask = torch.arange(7) < torch.tensor([[7], [1], [4]])
    torch.testing.assert_close(sides["ours"](hidden, mask), sides["plain"](hidden, mask))


@pytest.mark.parametrize("part", ["dropout", "noise"])
def test_both_sides_draw_from_the_same_distribution(part):
    torch.manual_seed(0)
    sides = build_parts(64, torch.float32)[part]
    hidden, mask = torch.ones(8, 200, 64), torch.ones(8, 200, dtype=torch.bool)
    plain, ours = (sides[side](hidden, mask) for side in SIDES)
    torch.testing.assert_close(ours.mean(), plain.mean(), atol=0.01, rtol=0)
    torch.testing.assert_close(ours.std(), plain.std(), atol=0.01, rtol=0)


def test_every_part_is_timed():
    measured = measure_parts(
        side="ours", dtypes=["fp32"], batch=2, tokens=8, width=16, device="cpu", steps=1, baseline=0
    )
    assert {key for key in measured if "/" in key} == {f"{name}/fp32" for name in build_parts(16, torch.float32)}
    assert all(value > 0 for value in measured.values())
