import pytest
import torch

from diffmix.models.perturbation import Dropout, add_noise


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drops_its_share_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(1001, 333, dtype=dtype))
    assert out.dtype is dtype
    assert (out == 0).double().mean().item() == pytest.approx(p, abs=0.005)
    assert out.double().mean().item() == pytest.approx(1, abs=0.01 / (1 - p))
    assert out.unique().numel() == 2  # every kept value has the same scale


def test_gradient_passes_where_values_do():
    x = torch.randn(50, 7, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad * x, out)


def test_neighbouring_values_fall_independently():
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(1_000_000)) != 0).double() - 0.5
    for lag in (1, 7, 8, 16):
        assert abs((kept[lag:] * kept[:-lag]).mean()) < 1e-3


def test_is_identity_outside_training_and_at_zero():
    x = torch.randn(5, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_follows_torchs_seed():
    x = torch.ones(100, 9)
    torch.manual_seed(3)
    first = Dropout(0.3)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.3)(x), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_normal_with_the_asked_deviation(dtype):
    torch.manual_seed(0)
    noise = add_noise(torch.zeros(1001, 333, dtype=dtype), 0.3).double().flatten() / 0.3
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    for quantile in (0.001, 0.025, 0.16, 0.5, 0.84, 0.975, 0.999):
        expected = torch.special.ndtri(torch.tensor(quantile, dtype=torch.float64)).item()
        assert noise.quantile(quantile).item() == pytest.approx(expected, abs=0.05)


def test_noise_is_independent_between_values_and_its_halves():
    torch.manual_seed(0)
    noise = add_noise(torch.zeros(1_000_001), 1.0)
    for lag in (1, 2, 500_000, 500_001):
        assert abs((noise[lag:] * noise[:-lag]).mean()) < 5e-3
        assert abs((noise[lag:].square() * noise[:-lag].square()).mean() - 1) < 2e-2


def test_noise_follows_torchs_seed():
    x = torch.zeros(7, 5)
    torch.manual_seed(3)
    first = add_noise(x, 1.0)
    torch.manual_seed(3)
    assert torch.equal(add_noise(x, 1.0), first)
    assert not torch.equal(add_noise(x, 1.0), first)
