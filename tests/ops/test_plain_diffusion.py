"""What an ONNX graph holds of attention diffusion is the definition, at every length."""

import pytest
import torch

from diffmix.ops import heat, reference
from diffmix.ops.plain_diffusion import plain_diffusion
from diffmix.patterns import SparsePattern

PATTERNS = (
    SparsePattern(0),
    SparsePattern(3, 2, 2),
    SparsePattern(3, [0, 5, 40], 2, seed=1),
    SparsePattern(0, 0, 2),
    SparsePattern(20, 3, 1),
    SparsePattern(3, 200),
    SparsePattern(400),
)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_the_definition(pattern, is_causal, padded):
    pattern = SparsePattern.from_dict(pattern.to_dict() | {"causal": is_causal})
    for tokens in (1, 2, 7, 16, 33, 161):
        query, key, value = torch.randn(3, 2, 3, tokens, 4, dtype=torch.float64)
        lengths = torch.tensor([tokens // 3, tokens]) if padded else None
        mask = torch.arange(tokens) < lengths[:, None] if padded else None
        options = {"coefficients": heat(2.0, 3), "scale": 2.0}
        got = plain_diffusion(query, key, value, pattern, lengths=lengths, longest=170, **options)
        expected = reference.attention_diffusion(query, key, value, pattern, padding_mask=mask, **options)
        if mask is not None:
            got, expected = (states.masked_fill(~mask[:, None, :, None], 0.0) for states in (got, expected))
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


def test_scores_of_any_size_stay_finite():
    query, key, value = torch.randn(3, 1, 1, 40, 4) * 1e4
    pattern = SparsePattern(2, 1, 3)
    got = plain_diffusion(query, key, value, pattern, coefficients=(0.5, 0.5), scale=1.0, longest=40)
    expected = reference.attention_diffusion(query, key, value, pattern, coefficients=(0.5, 0.5), scale=1.0)
    torch.testing.assert_close(got, expected)
