"""The parts of a training step beside its products, each as one writes it at first and as the library has it.

B batch, N tokens, D channels. Each part maps hidden [B, N, D] and a mask [B, N] to a tensor, which may be a loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmix.benchmarks.operators import DTYPES, median_seconds
from diffmix.models import DiffmixConfig
from diffmix.models.blocks import MaskedBatchNorm
from diffmix.models.mixers import NeighborMixer
from diffmix.models.perturbation import Dropout, add_noise
from diffmix.models.token_loss import token_loss
from diffmix.ops.neighbor_diffusion import neighbor_diffusion
from diffmix.training.hardware import peak_memory

Part = Callable[[Tensor, Tensor], Tensor]
SIDES = ("plain", "ours")
TRACKS = (-32, -16, -8, -4, -3, -2, -1, 0, 1, 2, 3, 4, 8, 16, 32)  # offsets of `tracks` in the study listops_short
VOCABULARY, SCORED = 50_257, 4_096  # of a language model: GPT-2's tokens, and at most so many targets


def build_parts(width: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, dict[str, Part]]:
    """part → side → function."""
    mixer = NeighborMixer(DiffmixConfig(hidden_size=width, neighbor_offsets=[-1, 0, 1])).to(device, dtype)
    assert mixer.weight is not None
    nn.init.normal_(mixer.weight, std=(3 * width) ** -0.5)
    layer = nn.Linear(width, width).to(device, dtype)
    norm = MaskedBatchNorm(width).to(device)
    plain_dropout, dropout = nn.Dropout(0.3), Dropout(0.3)
    vocabulary = nn.Parameter(torch.randn(VOCABULARY, width, device=device).to(dtype) * width**-0.5)
    labels = torch.arange(SCORED, device=device) * 12_347 % VOCABULARY

    def scored(hidden: Tensor) -> tuple[Tensor, Tensor]:
        tokens = hidden.flatten(0, 1)[:SCORED]
        return tokens, labels[: len(tokens)]

    def plain_loss(hidden: Tensor, mask: Tensor) -> Tensor:
        tokens, targets = scored(hidden)
        return F.cross_entropy(F.linear(tokens, vocabulary).float(), targets, reduction="sum")

    def loss(hidden: Tensor, mask: Tensor) -> Tensor:
        tokens, targets = scored(hidden)
        return token_loss(tokens, vocabulary, targets)

    def plain_tracks(hidden: Tensor, mask: Tensor) -> Tensor:
        tokens, reach = hidden.shape[1], max(TRACKS)
        tracks = F.pad(hidden, (0, 0, reach, reach)).tensor_split(len(TRACKS), dim=-1)
        return torch.cat(
            [track[:, reach + o : reach + o + tokens] for track, o in zip(tracks, TRACKS, strict=True)], -1
        )

    return {
        "dropout": {
            "plain": lambda hidden, mask: plain_dropout(hidden),
            "ours": lambda hidden, mask: dropout(hidden),
        },
        "noise": {
            "plain": lambda hidden, mask: hidden + 0.1 * torch.randn_like(hidden),
            "ours": lambda hidden, mask: add_noise(hidden, 0.1),
        },
        "padding set to 0": {
            "plain": lambda hidden, mask: hidden.masked_fill(~mask.unsqueeze(-1), 0.0),
            "ours": lambda hidden, mask: hidden * mask.unsqueeze(-1).to(hidden.dtype),
        },
        "max over tokens": {
            "plain": lambda hidden, mask: hidden.amax(dim=1),
            "ours": lambda hidden, mask: hidden.max(dim=1).values,
        },
        "batch norm without padding": {
            "plain": lambda hidden, mask: norm(hidden, torch.ones_like(mask)),
            "ours": lambda hidden, mask: norm(hidden),
        },
        f"{len(TRACKS)} tracks that move": {
            "plain": plain_tracks,
            "ours": lambda hidden, mask: neighbor_diffusion(hidden, None, TRACKS),
        },
        "mixture and first layer": {
            "plain": lambda hidden, mask: layer(mixer(hidden)),
            "ours": lambda hidden, mask: mixer(hidden, then=layer),
        },
        f"loss of {SCORED:,} tokens among {VOCABULARY:,}": {"plain": plain_loss, "ours": loss},
    }


def measure_parts(
    *,
    side: str,
    dtypes: list[str],
    batch: int,
    tokens: int,
    width: int,
    device: str,
    steps: int,
    baseline: int,
) -> dict[str, float]:
    """Seconds of each part, forward with backward (medians over `steps`): `PART/DTYPE`, and peak_memory_bytes."""
    measured: dict[str, float] = {}
    mask = torch.arange(tokens, device=device) < torch.linspace(1, tokens, batch, device=device)[:, None]
    for dtype in dtypes:
        torch.manual_seed(0)
        hidden = torch.randn(batch, tokens, width, device=device, dtype=DTYPES[dtype], requires_grad=True)
        for name, sides in build_parts(width, DTYPES[dtype], device).items():

            def both(part: Part = sides[side], hidden: Tensor = hidden) -> None:
                hidden.grad = None
                result = part(hidden, mask)
                result.backward(torch.ones_like(result))

            measured[f"{name}/{dtype}"] = median_seconds(both, steps, device)
    return {**measured, "peak_memory_bytes": peak_memory(device, baseline)}
