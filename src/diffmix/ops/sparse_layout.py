"""How the edges of a pattern lie in memory for n tokens, so that few large products compute them.

A pattern has four parts that share no edge: the window, as a *band* of blocks; *columns*, the global tokens as heard by the
others; *rows*, what the global tokens hear; *links*, the random ones, as a compressed list.

R sequences (a batch row and a head each) lie one behind the other in one buffer, with gaps that are as long as the window, so
that a block of the band never reaches into the next sequence:

    pad │ sequence 0 │ gap │ sequence 1 │ gap │ … │ pad          `body` is all of it but the pads

N tokens, D channels, b block size, T = R·N'/b blocks where N' = `stride` is the length of a sequence with its gap, S = `span`
keys of a block, G global tokens, E random links of all R sequences.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from diffmix.patterns import SparsePattern


@dataclasses.dataclass(frozen=True)
class Links:
    """The random links among R sequences, as rows of a sparse matrix on buffer positions, and of its transpose."""

    heard: Tensor  # int32 [E], sorted by who hears
    hears: Tensor  # int32 [E]
    offsets: Tensor  # int32 [buffer + 1]: where the links of a buffer position begin
    transposed: Tensor  # int32 [E]: the order of the links sorted by who is heard
    transposed_offsets: Tensor  # int32 [buffer + 1]

    @functools.cached_property
    def transposed_heard(self) -> Tensor:
        """What stands in `heard` for the transpose."""
        return self.hears.index_select(0, self.transposed)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything lies. See the module."""

    tokens: int
    sequences: int
    causal: bool
    block: int
    before: int  # blocks of keys before a block of queries
    after: int
    band: Tensor  # float32 [b, S]: 0 where a query hears a key within the window, else -inf
    global_positions: Tensor  # int64 [G]
    links: Links | None

    @property
    def pad(self) -> int:
        """Tokens before the first and behind the last sequence."""
        return self.block * max(self.before, self.after)

    @property
    def stride(self) -> int:
        """N': from the first token of a sequence to that of the next."""
        return -(-(self.tokens + self.pad) // self.block) * self.block

    @property
    def span(self) -> int:
        """S: how many keys a block of queries meets."""
        return self.block * (1 + self.before + self.after)

    @property
    def width(self) -> int:
        """How many weights of a query lie side by side: those of band and columns, and the sum of those of its links."""
        return self.span + len(self.global_positions) + 1

    @property
    def buffer(self) -> int:
        """Positions of the whole buffer."""
        return 2 * self.pad + self.sequences * self.stride

    def place(self, states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, H, N, D] with B·H = R → a new buffer [buffer, D], 0 between the sequences and beyond `lengths` [R]."""
        placed = states.new_zeros(self.buffer, states.shape[-1])
        tokens = self.heads(placed)[:, : self.tokens]
        tokens.unflatten(0, states.shape[:2]).copy_(states)
        if lengths is not None:
            beyond = torch.arange(self.tokens, device=states.device) >= lengths[:, None]
            tokens.masked_fill_(beyond.unsqueeze(-1), 0.0)
        return placed

    def heads(self, buffer: Tensor) -> Tensor:
        """[buffer, D] → its body as [R, N', D], a view; the tokens of a sequence come first."""
        return self.body(buffer).view(self.sequences, self.stride, -1)

    def body(self, buffer: Tensor) -> Tensor:
        """[buffer, D] → [R·N', D], a view."""
        return buffer[self.pad : self.pad + self.sequences * self.stride]

    def blocks(self, buffer: Tensor) -> Tensor:
        """[buffer, D] → [T, b, D], a view."""
        return self.body(buffer).view(-1, self.block, buffer.shape[-1])

    def spans(self, buffer: Tensor, *, transposed: bool = False) -> Tensor:
        """[buffer, D] → [T, S, D]: for each block the tokens that its band meets. A view, in which spans overlap."""
        channels = buffer.shape[-1]
        first = self.pad - self.block * (self.after if transposed else self.before)
        shape = (self.sequences * self.stride // self.block, self.span, channels)
        return buffer.as_strided(
            shape, (self.block * channels, channels, 1), buffer.storage_offset() + first * channels
        )


def make_layout(pattern: SparsePattern, tokens: int, sequences: int, device: torch.device) -> Layout:
    """The layout of `sequences` sequences of `tokens` tokens; those used last are remembered."""
    return _layout(pattern, tokens, sequences, str(device))


def band_blocks(pattern: SparsePattern) -> tuple[int, int, int]:
    """The tokens of a block of the band, and how many blocks of keys stand before and after a block of queries."""
    block = 64 if pattern.window >= 64 else 32 if pattern.window >= 16 else 16
    before = -(-pattern.window // block)
    return block, before, 0 if pattern.causal else before


@functools.lru_cache(maxsize=8)
def _layout(pattern: SparsePattern, tokens: int, sequences: int, device: str) -> Layout:
    block, before, after = band_blocks(pattern)
    if tokens <= block * (1 + before + after):  # no more keys than one span: all of them, for all queries at once
        block, before, after = tokens, 0, 0
    distance = torch.arange(block)[:, None] + before * block - torch.arange(block * (1 + before + after))
    near = distance.abs() <= pattern.window
    if pattern.causal:
        near &= distance >= 0
    plain = Layout(
        tokens=tokens,
        sequences=sequences,
        causal=pattern.causal,
        block=block,
        before=before,
        after=after,
        band=torch.zeros(near.shape).masked_fill_(~near, -torch.inf).to(device),
        global_positions=pattern.global_positions(tokens).to(device),
        links=None,
    )
    hears, heard = pattern.links(tokens)
    return dataclasses.replace(plain, links=_flat_links(hears, heard, plain, device)) if len(hears) else plain


def _flat_links(hears: Tensor, heard: Tensor, layout: Layout, device: str) -> Links:
    shift = layout.pad + torch.arange(layout.sequences)[:, None] * layout.stride
    transposed = torch.argsort(heard * layout.tokens + hears) + torch.arange(layout.sequences)[:, None] * len(hears)
    hears, heard = (hears + shift).flatten(), (heard + shift).flatten()

    def offsets(rows: Tensor) -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.int64), rows.bincount(minlength=layout.buffer).cumsum(0)])

    arrays = (heard, hears, offsets(hears), transposed.flatten(), offsets(heard))
    return Links(*(array.to(device, torch.int32) for array in arrays))
