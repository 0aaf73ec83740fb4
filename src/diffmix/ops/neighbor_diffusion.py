"""Attention-free neighbour diffusion: out_i = Σ_o W_o h_{i+o}.

B batch, N tokens, D channels, O offsets, H heads, L real tokens of a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmix.ops.alignment import align, aligned_positions, unalign
from diffmix.ops.checks import check_neighbor_diffusion


def neighbor_diffusion(
    hidden: Tensor,
    weight: Tensor | None,
    offsets: Sequence[int],
    *,
    padding_mask: Tensor | None = None,
    boundary: str = "zero",
) -> Tensor:
    """Mix each token with the tokens at fixed offsets: out_i = Σ_o W_o h_{i+o}.

    Args:
        hidden: [B, N, D], any floating dtype.
        weight: [O, out, in], one matrix an offset, applied as `h @ weight[o].T`; or [O, H, out, in], where head h acts on
            channels h·D/H … (h+1)·D/H. None: no weights; channels lie in O tracks, cut as by `torch.tensor_split`, and those of
            track o are h_{i+o}'s own: the mixing of ChordMixer (Khalitov et al. 2023), whose MLP then works across the tracks.
        offsets: O different integers in any order; negative ones look to the past.
        padding_mask: [B, N] bool, True at real tokens, in any arrangement. Neighbours are counted among real tokens.
        boundary: beyond the ends stands 0 (`"zero"`), or the sequence closes on its own length (`"wrap"`).

    Returns:
        [B, N, H·out], the dtype of `hidden` (that of autocast, inside autocast); without weights [B, N, D], always the dtype of
        `hidden`. Finite but unspecified at padded positions.

    Raises:
        ValueError: a shape, dtype, offset or boundary that does not fit.

    Source: Banavara (2025), equation 3.
    """
    check_neighbor_diffusion(hidden, weight, offsets, padding_mask, boundary)
    if padding_mask is None:
        return diffuse_aligned(hidden, weight, offsets, boundary=boundary)
    positions = aligned_positions(padding_mask)
    hidden = hidden.masked_fill(~padding_mask.unsqueeze(-1), 0.0)  # what stands at padding may be no number
    mixed = diffuse_aligned(
        align(hidden, positions), weight, offsets, padding_mask=align(padding_mask, positions), boundary=boundary
    )
    return unalign(mixed, positions)


def diffuse_aligned(
    hidden: Tensor,
    weight: Tensor | None,
    offsets: Sequence[int],
    *,
    bias: Tensor | None = None,
    padding_mask: Tensor | None = None,
    boundary: str = "zero",
) -> Tensor:
    """`neighbor_diffusion`, plus `bias` [H·out], for rows whose real tokens stand first (see `alignment`). Nothing is checked.

    With boundary "zero", padding set to 0 is the boundary, and the whole batch is one convolution. Values at padding must be
    finite: a product by the mask sets them to 0, which takes a fifth of the time of `masked_fill` on a CPU.
    """
    if padding_mask is not None and boundary == "zero":
        hidden = hidden * padding_mask.unsqueeze(-1).to(hidden.dtype)
    if weight is None:
        return _tracks(hidden, offsets, padding_mask, boundary)
    if boundary == "zero" and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        # A neighbour beyond the longest row is 0 for every token. A compiled graph keeps it: its length is not known yet.
        tokens = hidden.shape[1]
        near = [index for index, offset in enumerate(offsets) if abs(offset) < tokens]
        if len(near) < len(offsets):
            near = near or [0]
            weight, offsets = weight[near], [max(-tokens, min(tokens, offsets[index])) for index in near]
    if weight.ndim == 3:
        weight = weight.unsqueeze(1)
    if _goes_round(hidden, offsets, boundary):
        neighbours = [_from_round(hidden, offset, padding_mask) for offset in offsets]
        mixed = _concatenation(neighbours, weight)
        return mixed if bias is None else mixed + bias.to(mixed.dtype)
    spacing = _spacing(offsets)
    before, after = _reach(offsets)
    if boundary == "zero" and spacing and before == after and hidden.device.type == "cpu":
        return _convolution(hidden, weight, bias, offsets, spacing, padding=before)  # without a padded copy
    extended = _extended(hidden, before, after, padding_mask, boundary)
    if spacing and hidden.device.type == "cpu":
        first = before + min(offsets)  # what the first token hears first
        return _convolution(extended, weight, bias, offsets, spacing, padding=0).narrow(1, first, hidden.shape[1])
    mixed = _concatenation([extended.narrow(1, before + offset, hidden.shape[1]) for offset in offsets], weight)
    return mixed if bias is None else mixed + bias.to(mixed.dtype)


def _reach(offsets: Sequence[int]) -> tuple[int, int]:
    """How far is heard before a token, and after it."""
    return max(0, -min(offsets)), max(0, max(offsets))


def _extended(hidden: Tensor, before: int, after: int, padding_mask: Tensor | None, boundary: str) -> Tensor:
    """The rows with what stands beyond their ends."""
    if boundary == "wrap":
        return _wrap_ends(hidden, before, after, padding_mask)
    return F.pad(hidden, (0, 0, before, after))


def _tracks(hidden: Tensor, offsets: Sequence[int], padding_mask: Tensor | None, boundary: str) -> Tensor:
    """Each track of channels from the neighbour at its offset, [B, N, D]: nothing is multiplied."""
    fixed = not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # the number of tokens is known
    if fixed and boundary == "zero" and hidden.device.type == "cpu":
        return _MovedTracks.apply(hidden, _Offsets(tuple(offsets)))
    tokens = hidden.shape[1]
    if _goes_round(hidden, offsets, boundary):
        tracks = zip(hidden.tensor_split(len(offsets), dim=-1), offsets, strict=True)
        return torch.cat([_from_round(track, offset, padding_mask) for track, offset in tracks], dim=-1)
    if fixed and boundary == "zero":
        offsets = [max(-tokens, min(tokens, offset)) for offset in offsets]
    before, after = _reach(offsets)
    tracks = _extended(hidden, before, after, padding_mask, boundary).tensor_split(len(offsets), dim=-1)
    moved = [track.narrow(1, before + offset, tokens) for track, offset in zip(tracks, offsets, strict=True)]
    return torch.cat(moved, dim=-1)


@dataclass(frozen=True)
class _Offsets:
    """One argument and not several: torch's transforms of functions take a tuple apart."""

    of_tracks: tuple[int, ...]


class _MovedTracks(torch.autograd.Function):
    """out_i = h_{i+o} in track o, 0 beyond the ends. Each number is copied once, and once for the gradient, which moves back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(hidden: Tensor, offsets: _Offsets) -> Tensor:
        tokens, moved, count = hidden.shape[1], torch.empty_like(hidden), len(offsets.of_tracks)
        tracks = zip(hidden.tensor_split(count, -1), moved.tensor_split(count, -1), strict=True)
        for offset, (source, target) in zip(offsets.of_tracks, tracks, strict=True):
            first, last = min(tokens, max(0, -offset)), max(0, tokens - max(0, offset))  # tokens that hear one
            if first < last:
                target[:, first:last] = source[:, first + offset : last + offset]
            target[:, :first] = 0
            target[:, last:] = 0
        return moved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Offsets], output: Tensor) -> None:
        ctx.offsets = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        back = _Offsets(tuple(-offset for offset in ctx.offsets.of_tracks))
        return _MovedTracks.apply(gradients[0], back), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _MovedTracks.apply(tangents[0], ctx.offsets)


def _spacing(offsets: Sequence[int]) -> int | None:
    """The distance between neighbouring offsets if it is always the same, as a dilated convolution needs it."""
    ordered = sorted(offsets)
    steps = {right - left for left, right in itertools.pairwise(ordered)}
    return steps.pop() if len(steps) == 1 else None


def _convolution(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, offsets: Sequence[int], spacing: int, *, padding: int
) -> Tensor:
    """A dilated convolution. As 2-d with height 1, the transposed view of [B, N, D] is already in channels-last layout,
    which oneDNN reads in place. `diffmix bench operators` compares it with shifted and concatenated products."""
    order = sorted(range(len(offsets)), key=lambda index: offsets[index])
    if order != list(range(len(offsets))):
        weight = weight[order]
    heads = weight.shape[1]
    kernel = weight.flatten(1, 2).permute(1, 2, 0).unsqueeze(2).contiguous()  # [H·out, in, 1, O]
    image = hidden.transpose(1, 2).unsqueeze(2)  # [B, D, 1, N]
    mixed = F.conv2d(image, kernel, bias, padding=(0, padding), dilation=(1, spacing), groups=heads)
    return mixed.squeeze(2).transpose(1, 2)


def _concatenation(shifted: Sequence[Tensor], weight: Tensor) -> Tensor:
    """One product over the neighbours side by side, for offsets of any kind and for devices other than CPUs."""
    heads = weight.shape[1]
    neighbours = torch.cat([states.unflatten(-1, (heads, -1)) for states in shifted], dim=-1)  # [B, N, H, O·in]
    matrix = weight.permute(1, 0, 3, 2).flatten(1, 2)  # [H, O·in, out]
    if heads == 1:
        return neighbours.squeeze(2) @ matrix.squeeze(0)
    return torch.einsum("bnhi,hio->bnho", neighbours, matrix).flatten(2)


def _goes_round(hidden: Tensor, offsets: Sequence[int], boundary: str) -> bool:
    """Whether a row of fixed length closes on itself within one offset, so that its ends would be continued by whole rows."""
    fixed = not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    return boundary == "wrap" and fixed and max(map(abs, offsets)) >= hidden.shape[1] > 0


def _from_round(hidden: Tensor, offset: int, padding_mask: Tensor | None) -> Tensor:
    """h_{(i + o) mod L} of rows that close on their own length L."""
    rows, tokens, _ = hidden.shape
    lengths = [tokens] * rows if padding_mask is None else padding_mask.sum(dim=1).clamp(min=1).tolist()
    shift = torch.tensor(
        [offset % length for length in lengths], device=hidden.device
    )  # in Python, for offsets of any size
    place = torch.arange(tokens, device=hidden.device) + shift[:, None]
    return unalign(hidden, place.remainder(torch.tensor(lengths, device=hidden.device)[:, None]))


def _wrap_ends(hidden: Tensor, before: int, after: int, padding_mask: Tensor | None) -> Tensor:
    """Continue each row by its own other end: position p of the result holds token (p - before) mod L, up to L + after."""
    rows, tokens, channels = hidden.shape
    outside = torch.cat(
        [torch.arange(-before, 0, device=hidden.device), torch.arange(after, device=hidden.device)]
    )  # positions before the first token, and behind the last, counted from there
    if padding_mask is None:
        length = torch.full((rows, 1), tokens, device=hidden.device)
    else:
        length = padding_mask.sum(dim=1, keepdim=True)
    ends = unalign(hidden, outside.remainder(length.clamp(min=1)))
    target = outside + before + torch.where(outside < 0, 0, length)
    return F.pad(hidden, (0, 0, before, after)).scatter(1, target.unsqueeze(-1).expand(-1, -1, channels), ends)
