"""The sparse attention matrix of a pattern in the memory layout of `sparse_layout`, and its products with states.

Shapes as there; K hops. All functions work in place where they can: fresh memory costs a CPU as much as a product.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffmix.ops.sparse_layout import Layout, Links

_PART = 1024  # tokens


class Weights(NamedTuple):
    """A matrix on the edges of a pattern: attention weights, or gradients of scores."""

    table: Tensor  # [R·N', W]: of band and columns side by side; the last column is the sum over links, or nothing
    rows: Tensor  # [R, G, N']: of what global tokens hear; their rows of the table are 0
    links: Tensor | None  # [E]


class Matrix(NamedTuple):
    """A matrix on the edges of a pattern, or its transpose, as `multiply` takes it."""

    band: Tensor  # [T, b, S]
    columns: Tensor  # [R, N', G]
    rows: Tensor  # [R, G, N']
    links: Tensor | None  # [E], in the order of the matrix or of its transpose
    transposed: bool


def matrix(layout: Layout, weights: Weights) -> Matrix:
    """The weights as a matrix: views."""
    band = weights.table.view(-1, layout.block, layout.width)[..., : layout.span]
    columns = weights.table.view(layout.sequences, layout.stride, -1)[..., layout.span : -1]
    return Matrix(band, columns, weights.rows, weights.links, False)


def transpose(layout: Layout, plain: Matrix) -> Matrix:
    """The transpose. Its band is a copy, block by block, and is made once for all hops; so are its links."""
    block, count = layout.block, len(plain.band)
    band = torch.zeros_like(plain.band, memory_format=torch.contiguous_format)
    for shift in range(-layout.after, layout.before + 1):  # a block is heard by the block `shift` behind it
        target = slice(max(0, -shift), count - max(0, shift))
        source = slice(max(0, shift), count - max(0, -shift))
        to, of = (shift + layout.after) * block, (layout.before - shift) * block
        band[target, :, to : to + block] = plain.band[source, :, of : of + block].transpose(1, 2)
    links = plain.links
    if links is not None:
        assert layout.links is not None
        links = links.index_select(0, layout.links.transposed)
    return Matrix(band, plain.rows.transpose(1, 2), plain.columns.transpose(1, 2), links, True)


def multiply(layout: Layout, weights: Matrix, buffer: Tensor) -> Tensor:
    """A Z for a buffer of states Z, 0 in the gaps: a new buffer [buffer, D].

    Blocks of both its sequences meet a gap. By weights of 0, times which NaN is NaN, it would carry that from one to the other.
    """
    if weights.links is None:
        product = torch.zeros_like(buffer)
    else:
        links = layout.links
        assert links is not None
        heard, offsets = (
            (links.transposed_heard, links.transposed_offsets) if weights.transposed else (links.heard, links.offsets)
        )
        product = torch.embedding_bag(
            buffer, heard, offsets, mode=0, per_sample_weights=weights.links, include_last_offset=True
        )[0]
    layout.blocks(product).baddbmm_(weights.band, layout.spans(buffer, transposed=weights.transposed))
    if len(layout.global_positions):
        states, mixed = layout.heads(buffer), layout.heads(product)
        mixed.baddbmm_(weights.columns, states[:, layout.global_positions])
        mixed.index_add_(1, layout.global_positions, torch.bmm(weights.rows, states))
    layout.heads(product)[:, layout.tokens :] = 0.0
    return product


def attend(layout: Layout, query: Tensor, key: Tensor, lengths: Tensor, scale: float) -> Weights:
    """A = softmax of scale·q·k over the edges, from buffers of queries and keys.

    Args:
        layout: of the pattern.
        query, key: buffers.
        lengths: int64 [R] or [1], at least 1: keys beyond are not heard. What stands there hears something finite.
        scale: of the products.
    """
    table = query.new_empty(layout.sequences * layout.stride, layout.width)
    attention = matrix(layout, Weights(table, table, None))
    attention.band.copy_(layout.band)
    attention.band.baddbmm_(layout.blocks(query), layout.spans(key).transpose(1, 2), alpha=scale)
    _mask_band(layout, attention.band, lengths)
    position = torch.arange(layout.stride, device=key.device)
    chosen = layout.global_positions
    if len(chosen):
        attention.columns.copy_(_bias(chosen < lengths[:, None], layout.causal, position, chosen))
        attention.columns.baddbmm_(layout.heads(query), layout.heads(key)[:, chosen].transpose(1, 2), alpha=scale)
    links, total = _link_softmax(layout, query, key, lengths, scale)
    table[:, -1] = total
    torch.softmax(table, dim=-1, out=table)
    if links is not None:
        assert layout.links is not None
        mass = table[:, -1].to(links.dtype).index_select(0, layout.links.hears - layout.pad)
        links = (links * mass).to(query.dtype)
    table.view(layout.sequences, layout.stride, -1)[:, chosen] = 0
    rows = _bias(position < lengths[:, None], layout.causal, chosen, position).to(query.dtype)
    rows = torch.baddbmm(rows, layout.heads(query)[:, chosen], layout.heads(key).transpose(1, 2), alpha=scale)
    return Weights(table, torch.softmax(rows, dim=-1), links)


def outer(layout: Layout, lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> Weights:
    """Σ_k L_k R_kᵀ on the edges, for buffers L_k and R_k: the gradient of Σ_k ⟨L_k, A R_k⟩ with respect to A.

    But for the links, channels of all k are multiplied at once: the sum is rounded once, and written once. Links are in fp32,
    or fp64 for fp64.
    """
    left, right = (buffers[0] if len(buffers) == 1 else torch.cat(list(buffers), dim=1) for buffers in (lefts, rights))
    table = left.new_empty(layout.sequences * layout.stride, layout.width)
    rows = left.new_empty(layout.sequences, len(layout.global_positions), layout.stride)
    plain = matrix(layout, Weights(table, rows, None))
    blocks, spans = layout.blocks(left), layout.spans(right).transpose(1, 2)
    # A CPU's bf16 products copy the spans, which overlap, and what they are written to: in parts these copies are small.
    count = len(blocks) if left.device.type != "cpu" else max(1, _PART // layout.block)
    for part, ours, theirs in zip(plain.band.split(count), blocks.split(count), spans.split(count), strict=True):
        part.baddbmm_(ours, theirs, beta=0)
    if len(layout.global_positions):
        ours, theirs = layout.heads(left), layout.heads(right)
        plain.columns.baddbmm_(ours, theirs[:, layout.global_positions].transpose(1, 2), beta=0)
        torch.bmm(ours[:, layout.global_positions], theirs.transpose(1, 2), out=rows)
    links = None
    if layout.links is not None:
        for ours, theirs in zip(lefts, rights, strict=True):
            products = _link_products(layout.links, ours, theirs)
            links = products if links is None else links.add_(products)
    return Weights(table, rows, links)


def _mask_band(layout: Layout, band: Tensor, lengths: Tensor) -> None:
    """Set scores of keys that are global, or beyond the ends of their sequence, to -inf; padding hears itself."""
    place = torch.arange(-layout.pad, layout.stride + layout.pad, device=band.device)
    heard = (place >= 0) & (place < lengths[:, None])
    heard[:, layout.pad + layout.global_positions] = False
    bias = torch.zeros(heard.shape, dtype=band.dtype, device=band.device).masked_fill_(~heard, -torch.inf)
    blocks = layout.stride // layout.block
    first = layout.pad - layout.block * layout.before
    bias = bias.as_strided((len(bias), blocks, 1, layout.span), (bias.shape[1], layout.block, 0, 1), first)
    sequences = band.unflatten(0, (layout.sequences, blocks))
    sequences.add_(bias)
    itself = sequences.diagonal(layout.block * layout.before, -2, -1)  # [R, blocks, b]
    beyond = (place[layout.pad : layout.pad + layout.stride] >= lengths[:, None]).view(-1, blocks, layout.block)
    itself.masked_fill_(beyond, 0.0)


def _bias(heard: Tensor, causal: bool, query: Tensor, key: Tensor) -> Tensor:
    """0 where queries at some positions hear keys at others, else -inf. `heard` [R, keys] → [R, queries, keys]."""
    allowed = heard[:, None, :].expand(-1, len(query), -1)
    if causal:
        allowed = allowed & (key <= query[:, None])
    return torch.zeros(allowed.shape, device=heard.device).masked_fill_(~allowed, -torch.inf)


def _link_softmax(
    layout: Layout, query: Tensor, key: Tensor, lengths: Tensor, scale: float
) -> tuple[Tensor | None, Tensor | float]:
    """The softmax over the links of each token alone [E], and the logarithm of their sum of exponentials [R·N']."""
    links = layout.links
    if links is None:
        return None, -torch.inf
    scores = _link_products(links, query, key).mul_(scale)
    place = links.heard - layout.pad
    sequence = torch.div(place, layout.stride, rounding_mode="floor")
    limit = lengths.expand(layout.sequences).index_select(0, sequence)
    scores.masked_fill_(place - sequence * layout.stride >= limit, -torch.inf)
    row = (links.hears - layout.pad).long()
    count = layout.sequences * layout.stride
    highest = scores.new_full((count,), -torch.inf).scatter_reduce_(0, row, scores, "amax")
    highest.masked_fill_(highest == -torch.inf, 0.0)
    weights = scores.sub_(highest.index_select(0, row)).exp_()
    total = scores.new_zeros(count).index_add_(0, row, weights)
    weights /= total.clamp(min=torch.finfo(total.dtype).tiny).index_select(0, row)
    return weights, total.log_().add_(highest)


def _link_products(links: Links, left: Tensor, right: Tensor) -> Tensor:
    """left_i · right_j for each link (i, j): [E], in fp32, or fp64 for fp64."""
    precision = torch.promote_types(left.dtype, torch.float32)
    left, right = left.to(precision), right.to(precision)
    # torch says once each that its sparse tensors are young and, on CUDA, that it does not check them.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support|Sparse invariant checks")
        edges = torch.sparse_csr_tensor(
            links.offsets,
            links.heard,
            left.new_zeros(len(links.heard)),
            (len(left), len(right)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(edges, left, right.T, beta=0.0).values()
