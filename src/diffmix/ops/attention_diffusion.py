"""Attention diffusion: Σ_k θ_k A^k V, A the softmax attention over the edges of a sparse pattern.

B batch, H heads, N tokens, D channels, K hops.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from diffmix.ops.alignment import align, aligned_positions, unalign
from diffmix.ops.checks import check_attention_diffusion, check_finite_scores
from diffmix.ops.coefficients import personalized_pagerank
from diffmix.ops.diffusion_passes import HopOptions, Kept, diffuse, diffuse_backward
from diffmix.ops.kernels import BACKENDS, by_kernels
from diffmix.ops.plain_diffusion import plain_diffusion
from diffmix.ops.sparse_hops import Weights
from diffmix.ops.sparse_layout import Layout, make_layout
from diffmix.patterns import SparsePattern

_P = ParamSpec("_P")
_R = TypeVar("_R")
_ONCE = "attention_diffusion has first derivatives, backward, alone; take diffmix.ops.reference.attention_diffusion for others"
_GROUP = 16_384  # tokens, over sequences, that are computed at a time
_GROUP_ON_CPU = 8_000  # what is made for them stays near the processor, and long rows go one head at a time


def attention_diffusion(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: SparsePattern,
    *,
    coefficients: Sequence[float] = personalized_pagerank(0.1, hops=5),
    padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    hop_dropout_p: float = 0.0,
    scale: float | None = None,
    recompute: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Attention whose reach grows by diffusion: Σ_k θ_k A^k V with A = softmax of scale·q·k over the edges of `pattern`.

    A is computed once, for all hops, from Y_K = θ_K V and Y_k = θ_k V + A Y_{k+1} to Y_0, which is the result. Time and memory
    grow with the number of edges: no N × N matrix is made. The window is computed as products of blocks, what global tokens
    hear and say as dense products, and random links as sparse ones. On CUDA Triton kernels, where they can run, make A anew in
    every hop and never store it.

    For the backward pass the blocks keep A and Y_1 … Y_{K-1}, or with `recompute` compute them again, which takes about a third
    longer and leaves nothing but the arguments in memory. A compiled graph always computes them again.

    Args:
        query, key: [B, H, N, D], any floating dtype.
        value: [B, H, N, D]; its D may be another.
        pattern: who hears whom.
        coefficients: θ_0 … θ_K, which sum to 1: `personalized_pagerank(α, K)`, `heat(t, K)` or any others. (1.0,) returns V.
        padding_mask: [B, N] bool, True at real tokens, in any arrangement. Positions of the pattern are counted among them.
        dropout_p: of the edges: weights of A, the same ones for all hops.
        hop_dropout_p: of the states Y_{k+1} that a hop hears, anew in each. Both are rounded to multiples of 2^-16.
        scale: of the scores; None: 1/√D.
        recompute: see above. The kernels keep Y_0 … Y_K and a number for each row of A.
        backend: `"blocked"`, `"triton"`, or `"auto"`: what `diffmix.ops.kernels.CUDA_BACKEND` says on CUDA, where it
            can run, elsewhere `"blocked"`. The kernels have no dropout: calls with it take `"blocked"`, whatever is asked for.

    Returns:
        [B, H, N, D], the dtype of `query` (that of autocast, inside autocast). 0 at padding.

    Raises:
        ValueError: an argument that does not fit, scores that are not finite (looked at on CPUs, outside of compiled graphs),
            `"triton"` asked for where it cannot run.
        RuntimeError: a second derivative, or one of forward mode, is asked for.

    Source: Feng et al. (2023).
    """
    check_attention_diffusion(query, key, value, pattern, coefficients, padding_mask, dropout_p, hop_dropout_p, scale)
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; give one of {', '.join(BACKENDS)}")
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    positions = lengths = None
    if padding_mask is not None and not _known(padding_mask.all):
        lengths, positions = padding_mask.sum(dim=1), aligned_positions(padding_mask)
        padding = ~padding_mask[:, None, :, None]  # what stands at padding may be no number
        query, key, value = (states.masked_fill(padding, 0.0) for states in (query, key, value))
        if _known((positions == torch.arange(query.shape[2], device=query.device)).all):
            positions = None
        else:
            query, key, value = (align(states, positions) for states in (query, key, value))
    factor: float = query.shape[-1] ** -0.5 if scale is None else float(scale)
    check_finite_scores(query, key, factor)
    mixed = diffuse_attention_aligned(
        query,
        key,
        value,
        pattern,
        coefficients=coefficients,
        lengths=lengths,
        dropout_p=dropout_p,
        hop_dropout_p=hop_dropout_p,
        scale=factor,
        recompute=recompute,
        backend=backend,
    )
    return mixed if positions is None else unalign(mixed, positions)


def diffuse_attention_aligned(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: SparsePattern,
    *,
    coefficients: Sequence[float],
    scale: float,
    lengths: Tensor | None = None,
    dropout_p: float = 0.0,
    hop_dropout_p: float = 0.0,
    recompute: bool = False,
    backend: str = "auto",
    longest: int | None = None,
) -> Tensor:
    """`attention_diffusion` for rows whose real tokens stand first, `lengths` [B] of them (None: all). Nothing is checked.

    What stands at padding must be finite. `longest`: of the rows that an ONNX graph takes, see `plain_diffusion`.
    """
    if len(coefficients) == 1:
        return value * coefficients[0]
    if torch.onnx.is_in_onnx_export():
        if dropout_p > 0 or hop_dropout_p > 0:
            raise ValueError(
                f"dropout_p is {dropout_p} and hop_dropout_p {hop_dropout_p}, which an ONNX graph does not hold; "
                "call model.eval() before the export"
            )
        return plain_diffusion(
            query, key, value, pattern, coefficients=coefficients, scale=scale, lengths=lengths, longest=longest
        )
    if not torch.compiler.is_compiling() and any(
        unpack_dual(states).tangent is not None for states in (query, key, value)
    ):
        raise RuntimeError(f"an argument has a tangent of forward-mode differentiation, but {_ONCE}")
    seed = None
    if dropout_p > 0 or hop_dropout_p > 0:
        seed = torch.randint(2**62, (1,), dtype=torch.int64)
    differentiable = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
    keep = differentiable and not recompute and not torch.compiler.is_compiling()
    theta = [float(coefficient) for coefficient in coefficients]
    return torch.ops.diffmix.attention_diffusion(
        query, key, value, lengths, seed, pattern.spec, theta, dropout_p, hop_dropout_p, scale, backend, keep
    )[0]


def diffused_states(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: SparsePattern,
    *,
    coefficients: Sequence[float],
    scale: float,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`diffuse_attention_aligned` with the states of all hops, for K ≥ 1: Y_0 [B, H, N, D], and Y_1 … Y_K side by side,
    [B, H, N, K·D]. Nothing is differentiable."""
    channels, hops = value.shape[-1], len(coefficients) - 1
    mixed = _empty_result(query, value)
    states = value.new_empty(*value.shape[:3], hops * channels)
    states[..., -channels:] = value * coefficients[-1]
    options = HopOptions(coefficients, 0.0, 0.0, scale, 0)
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        for rows, heads, layout, needed in _diffused(query, key, value, lengths, pattern.spec, options, mixed):
            for hop, buffer in enumerate(needed.hops):
                target = states[rows, heads, :, hop * channels : (hop + 1) * channels]
                target.copy_(layout.heads(buffer)[:, : layout.tokens].unflatten(0, target.shape[:2]))
    return mixed, states


def _as_they_are(passes: Callable[_P, _R]) -> Callable[_P, _R]:
    """`passes` without autocast, whose dtype was settled before, and which may still be on in a backward pass."""

    @functools.wraps(passes)
    def settled(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        device = next(argument.device.type for argument in args if isinstance(argument, Tensor))
        with torch.autocast(device, enabled=False):
            return passes(*args, **kwargs)

    return settled


def _known(fact: Callable[[], Tensor]) -> bool:
    """Whether something about values is true, where a graph may rest on it: False says nothing."""
    return not torch.compiler.is_compiling() and not torch.jit.is_tracing() and bool(fact())


@_as_they_are
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    coefficients: list[float],
    dropout_p: float,
    hop_dropout_p: float,
    scale: float,
    backend: str,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The result, and what the backward pass needs if `keep`."""
    if by_kernels(backend, query, value, dropout_p, hop_dropout_p):
        from diffmix.ops.kernels import diffusion

        result, kept = diffusion.forward(query, key, value, lengths, _pattern(pattern), coefficients, scale, keep)
        return _empty_result(query, value).copy_(result), kept
    options = HopOptions(coefficients, dropout_p, hop_dropout_p, scale, 0 if seed is None else int(seed))
    mixed = _empty_result(query, value)
    kept: list[Tensor] = []
    for *_, needed in _diffused(query, key, value, lengths, pattern, options, mixed):
        if keep:
            table, global_rows, links = needed.weights
            kept += [table, global_rows, table.new_empty(0) if links is None else links, *needed.hops]
    return mixed, kept


def _diffused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    pattern: str,
    options: HopOptions,
    mixed: Tensor,
) -> Iterator[tuple[slice, slice, Layout, Kept]]:
    """Write the result into `mixed`, a group at a time: rows and heads of each group, its layout, and what it kept."""
    for number, (rows, heads) in enumerate(_groups(query)):
        part = (query[rows, heads], key[rows, heads], value[rows, heads])
        layout, limit = _group_layout(pattern, part[0], lengths, rows)
        result, needed = diffuse(layout, part, limit, options, number)
        target = mixed[rows, heads]
        target.copy_(layout.heads(result)[:, : layout.tokens].unflatten(0, target.shape[:2]))
        if limit is not None:
            beyond = torch.arange(layout.tokens, device=query.device) >= limit[:, None]
            target.masked_fill_(beyond.view(*target.shape[:3], 1), 0.0)
        yield rows, heads, layout, needed


@_as_they_are
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kept: list[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    coefficients: list[float],
    dropout_p: float,
    hop_dropout_p: float,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    if by_kernels(backend, query, value, dropout_p, hop_dropout_p):
        from diffmix.ops.kernels import diffusion

        known = (kept, lengths, _pattern(pattern), coefficients, scale)
        for target, found in zip(grads, diffusion.backward(grad, query, key, value, *known), strict=True):
            target.copy_(found)
        return grads
    options = HopOptions(coefficients, dropout_p, hop_dropout_p, scale, 0 if seed is None else int(seed))
    count = 3 + len(coefficients) - 2
    for number, (rows, heads) in enumerate(_groups(query)):
        part = (query[rows, heads], key[rows, heads], value[rows, heads])
        layout, limit = _group_layout(pattern, part[0], lengths, rows)
        if kept:
            table, global_rows, links, *hops = kept[number * count : (number + 1) * count]
            needed = Kept(Weights(table, global_rows, links if layout.links else None), hops)
        else:
            needed = diffuse(layout, part, limit, options, number)[1]
        found = diffuse_backward(layout, grad[rows, heads], part, needed, limit, options, number)
        for target, buffer in zip(grads, found, strict=True):
            target = target[rows, heads]
            target.copy_(layout.heads(buffer)[:, : layout.tokens].unflatten(0, target.shape[:2]))
    return grads


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    query, key, value, lengths, seed, *ctx.options, _ = inputs
    kept = output[1]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(query, key, value, lengths, seed, *kept)


def _differentiate(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(f"create_graph is True, but {_ONCE}")
    query, key, value, lengths, seed, *kept = ctx.saved_tensors
    found = (None, None, None)
    if grad is not None:
        found = torch.ops.diffmix.attention_diffusion_backward(
            grad, query, key, value, kept, lengths, seed, *ctx.options
        )
    return *found, *[None] * (2 + len(ctx.options) + 1)


def _empty_result(query: Tensor, value: Tensor) -> Tensor:
    """[B, H, N, D] that lies in memory as [B, N, H, D], which is how the heads are joined again."""
    batch, heads, tokens = query.shape[:3]
    return value.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)


def _groups(query: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of batch rows and heads, of _GROUP or _GROUP_ON_CPU tokens or so: heads of a row, or all heads of rows."""
    batch, heads, tokens = query.shape[:3]
    sequences = max(1, (_GROUP_ON_CPU if query.device.type == "cpu" else _GROUP) // tokens)
    if sequences < heads:
        for row in range(batch):
            for head in range(0, heads, sequences):
                yield slice(row, row + 1), slice(head, min(head + sequences, heads))
    else:
        rows = sequences // heads
        for row in range(0, batch, rows):
            yield slice(row, min(row + rows, batch)), slice(None)


def _group_layout(pattern: str, query: Tensor, lengths: Tensor | None, rows: slice) -> tuple[Layout, Tensor | None]:
    """The layout of a group [B, H, N, D], and the length of each of its sequences, at least 1."""
    batch, heads, tokens = query.shape[:3]
    layout = make_layout(_pattern(pattern), tokens, batch * heads, query.device)
    if lengths is None:
        return layout, None
    return layout, lengths[rows].clamp(min=1).repeat_interleave(heads)


@functools.lru_cache(maxsize=64)
def _pattern(spec: str) -> SparsePattern:
    return SparsePattern.from_dict(json.loads(spec))


def _define() -> torch.library.Library:
    """Both passes as operators of torch, so that compiled graphs can hold them. (`torch.library.custom_op` would do it in fewer
    lines, but loads the compiler, seconds and 90 MB, at its first call.)"""
    library = torch.library.Library("diffmix", "FRAGMENT")
    options = "str pattern, float[] coefficients, float dropout_p, float hop_dropout_p, float scale, str backend"
    rest = f"Tensor? lengths, Tensor? seed, {options}"
    states = "Tensor query, Tensor key, Tensor value"
    library.define(f"attention_diffusion({states}, {rest}, bool keep) -> (Tensor, Tensor[])")
    library.define(
        f"attention_diffusion_backward(Tensor grad, {states}, Tensor[] kept, {rest}) -> (Tensor, Tensor, Tensor)"
    )
    name = "attention_diffusion"
    library.impl(name, _forward, "CompositeExplicitAutograd")
    library.impl(f"{name}_backward", _backward, "CompositeExplicitAutograd")

    @torch.library.register_fake(f"diffmix::{name}", lib=library)
    def _(query: Tensor, key: Tensor, value: Tensor, *args: Any) -> tuple[Tensor, list[Tensor]]:
        return _empty_result(query, value), []

    @torch.library.register_fake(f"diffmix::{name}_backward", lib=library)
    def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    torch.library.register_autograd(f"diffmix::{name}", _differentiate, setup_context=_setup, lib=library)
    return library


_LIBRARY = _define()  # what it defines lives as long as this
