"""Triton kernels of the sparse attention matrix A = softmax(scale·QKᵀ) over the edges of a pattern, which is never stored.

Each kernel makes the scores that it needs from queries, keys and the logarithm of each row's sum of exponentials. A program takes
some rows of A, or with the roles of queries and keys exchanged of Aᵀ, and goes through the blocks of columns that they meet: the
window, then the global tokens outside of it, then the random links one by one. A global token meets all columns: its rows are
computed by programs of their own (`EVERY`), a stretch of columns each, whose partial sums the caller adds up.

R sequences of N tokens, D channels of queries and keys, C channels of values, K hops, G global tokens, E random links. States
are [R, N, D] or [R, N, C], contiguous. All sums are in fp32.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

jit: Any = triton.jit  # what it makes is no function to a type checker


@jit
def _start(
    limits, chosen, tokens, count, before, after, splits, blocks,
    EVERY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    """What a program computes: its sequence and how many tokens that has, its rows, where their results go and whether they do,
    the first column, and how many blocks of columns lie side by side from there."""
    program = tl.program_id(0)
    split = program % splits
    sequence = (program // (splits * blocks)).to(tl.int64)
    limit = tl.load(limits + sequence)
    lane = (program // splits) % blocks * ROWS + tl.arange(0, ROWS)
    if EVERY:
        there = lane < count
        row = tl.load(chosen + lane, mask=there, other=tokens)
        target = (sequence * splits + split) * count + lane
        first = split * STRETCH
        last = tl.minimum(first + STRETCH, limit)
    else:
        there = lane < tokens
        row = lane
        target = sequence * tokens + lane
        begin = (program // splits) % blocks * ROWS
        first = tl.maximum(begin - before, 0)
        last = tl.minimum(begin + ROWS + after, limit)
    near = tl.maximum((last - first + COLUMNS - 1) // COLUMNS, 0)
    return sequence, limit, row, target, there, first, near


@jit
def _meet(step, near, first, row, limit, chosen, count, before, after, CAUSAL: tl.constexpr, COLUMNS: tl.constexpr):
    """One block of columns, and which rows have an edge there: the window first, then global tokens outside of it.

    CAUSAL: 1 where a row meets no later column, -1 where it meets no earlier one, 0 where it meets both.
    """
    lane = tl.arange(0, COLUMNS)
    index = (step - near) * COLUMNS + lane
    listed = tl.load(chosen + index, mask=(index >= 0) & (index < count), other=limit)
    column = tl.where(step < near, first + step * COLUMNS + lane, listed)
    distance = row[:, None] - column[None, :]
    within = (distance <= before) & (distance >= -after)
    beyond = within == 0
    if CAUSAL == 1:
        beyond = beyond & (distance >= 0)
    if CAUSAL == -1:
        beyond = beyond & (distance <= 0)
    edge = tl.where(step < near, within, beyond)
    return column, edge & (row < limit)[:, None] & (column < limit)[None, :]


@jit
def _links(offsets, row, limit):
    """Where the links of each row begin, and how many there are."""
    begin = tl.load(offsets + row, mask=row < limit, other=0)
    return begin, tl.load(offsets + row + 1, mask=row < limit, other=0) - begin


@jit
def _linked(slot, heard, begin, degree, limit):
    """For each row the column of one of its links, and whether there is one."""
    edge = slot < degree
    column = tl.load(heard + begin + slot, mask=edge, other=0)
    return column, edge & (column < limit)


@jit
def _states(states, sequence, tokens, place, there, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """The states of some places: [places, WIDTH], 0 beyond CHANNELS and where there is none."""
    channel = tl.arange(0, WIDTH)
    address = (sequence * tokens + place)[:, None] * CHANNELS + channel[None, :]
    return tl.load(states + address, mask=there[:, None] & (channel < CHANNELS)[None, :], other=0.0)


@jit
def _store(target, states, place, there, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    channel = tl.arange(0, WIDTH)
    address = place[:, None] * CHANNELS + channel[None, :]
    mask = there[:, None] & (channel < CHANNELS)[None, :]
    tl.store(target + address, states.to(target.dtype.element_ty), mask=mask)


@jit
def _product(left, right):
    """left rightᵀ, in fp32 also where that is slower than TF32."""
    return tl.dot(left, tl.trans(right), input_precision="ieee")


@jit
def log_sum_exp(
    result, query, key, limits, chosen, offsets, heard, scale, tokens, count, others, before, after, splits, blocks,
    D: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, LINKS: tl.constexpr, EVERY: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    """result_i = ln Σ_j exp(scale·q_i·k_j), -inf where a row hears nothing. Names as in `multiply`."""
    sequence, limit, row, target, there, first, near = _start(
        limits, chosen, tokens, count, before, after, splits, blocks, EVERY, ROWS, COLUMNS, STRETCH
    )
    ours = _states(query, sequence, tokens, row, row < limit, D, WIDTH)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for step in range(near + (others + COLUMNS - 1) // COLUMNS):
        column, edge = _meet(step, near, first, row, limit, chosen, others, before, after, CAUSAL, COLUMNS)
        theirs = _states(key, sequence, tokens, column, column < limit, D, WIDTH)
        score = tl.where(edge, _product(ours, theirs) * scale, float("-inf"))
        new = tl.maximum(highest, tl.max(score, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(highest - safe) + tl.sum(tl.exp(score - safe[:, None]), 1)
        highest = new
    if LINKS:
        begin, degree = _links(offsets, row, limit)
        for slot in range(tl.max(degree, 0)):
            column, linked = _linked(slot, heard, begin, degree, limit)
            theirs = _states(key, sequence, tokens, column, linked, D, WIDTH)
            score = tl.sum(ours.to(tl.float32) * theirs.to(tl.float32), 1) * scale
            score = tl.where(linked, score, float("-inf"))
            new = tl.maximum(highest, score)
            safe = tl.where(new == float("-inf"), 0.0, new)
            total = total * tl.exp(highest - safe) + tl.exp(score - safe)
            highest = new
    heard_any = total > 0
    tl.store(
        result + target, tl.where(heard_any, highest + tl.log(tl.where(heard_any, total, 1.0)), highest), mask=there
    )


@jit
def multiply(
    result, left, right, total, states, value, theta,
    limits, chosen, offsets, heard, scale, tokens, count, others, before, after, splits, blocks,
    D: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, WIDTH_C: tl.constexpr,
    CAUSAL: tl.constexpr, TRANSPOSED: tl.constexpr, LINKS: tl.constexpr, EVERY: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    """result = A Z + θ V for states Z, or with TRANSPOSED Aᵀ Z + θ V; with EVERY partial sums of A Z alone.

    Args:
        result: [R, N, C]; EVERY: fp32 [R, splits, G, C].
        left, right: queries and keys; TRANSPOSED: keys and queries. The first belong to rows, the second to columns.
        total: fp32 [R, N], what `log_sum_exp` gave for each query.
        states, value, theta: Z, V and θ.
        limits: int32 [R], how many tokens of a sequence are real.
        chosen: int32 [count], the global tokens.
        offsets, heard: int32 [N + 1] and [E], the columns that each row is linked to.
        scale: of the products.
        tokens, count: N and G.
        others: how many of `chosen` are met as columns: G, or 0 with EVERY.
        before, after: how far the window reaches from a row, on both sides.
        splits, blocks: the grid is R·blocks·splits programs, of ROWS rows and, with EVERY, STRETCH columns each.
    """
    sequence, limit, row, target, there, first, near = _start(
        limits, chosen, tokens, count, before, after, splits, blocks, EVERY, ROWS, COLUMNS, STRETCH
    )
    total += sequence * tokens
    ours = _states(left, sequence, tokens, row, row < limit, D, WIDTH)
    if not TRANSPOSED:
        norm = tl.load(total + row, mask=row < limit, other=0.0)[:, None]
    mixed = tl.zeros([ROWS, WIDTH_C], tl.float32)
    for step in range(near + (others + COLUMNS - 1) // COLUMNS):
        column, edge = _meet(step, near, first, row, limit, chosen, others, before, after, CAUSAL, COLUMNS)
        theirs = _states(right, sequence, tokens, column, column < limit, D, WIDTH)
        if TRANSPOSED:
            norm = tl.load(total + column, mask=column < limit, other=0.0)[None, :]
        weight = tl.exp(tl.where(edge, _product(ours, theirs) * scale - norm, float("-inf")))
        state = _states(states, sequence, tokens, column, column < limit, C, WIDTH_C)
        mixed += tl.dot(weight.to(state.dtype), state, input_precision="ieee")
    if LINKS:
        begin, degree = _links(offsets, row, limit)
        if not TRANSPOSED:
            single = tl.load(total + row, mask=row < limit, other=0.0)
        for slot in range(tl.max(degree, 0)):
            column, linked = _linked(slot, heard, begin, degree, limit)
            theirs = _states(right, sequence, tokens, column, linked, D, WIDTH)
            if TRANSPOSED:
                single = tl.load(total + column, mask=linked, other=0.0)
            score = tl.sum(ours.to(tl.float32) * theirs.to(tl.float32), 1) * scale
            weight = tl.exp(tl.where(linked, score - single, float("-inf")))
            state = _states(states, sequence, tokens, column, linked, C, WIDTH_C)
            mixed += weight[:, None] * state.to(tl.float32)
    if not EVERY:
        mixed += theta * _states(value, sequence, tokens, row, there, C, WIDTH_C).to(tl.float32)
    _store(result, mixed, target, there, C, WIDTH_C)


@jit
def differentiate_scores(
    result, left, right, total, carried, ours_of_hops, theirs_of_hops, hops, size,
    limits, chosen, offsets, heard, scale, tokens, count, others, before, after, splits, blocks,
    D: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, WIDTH_C: tl.constexpr,
    CAUSAL: tl.constexpr, TRANSPOSED: tl.constexpr, LINKS: tl.constexpr, EVERY: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    """The gradient of queries, scale·dS K, or with TRANSPOSED that of keys, scale·dSᵀ Q, where dS = A ∘ (Σ_k P_k Y_{k+1}ᵀ - c).

    Args:
        result: [R, N, D]; EVERY: fp32 [R, splits, G, D], partial sums.
        carried: fp32 [R, N], c = Σ_j A_ij dA_ij of each query.
        ours_of_hops, theirs_of_hops: [K, R, N, C], P and Y; TRANSPOSED: Y and P.
        hops, size: K and R·N·C.
        others: as in `multiply`.
    """
    sequence, limit, row, target, there, first, near = _start(
        limits, chosen, tokens, count, before, after, splits, blocks, EVERY, ROWS, COLUMNS, STRETCH
    )
    total += sequence * tokens
    carried += sequence * tokens
    size = tl.cast(size, tl.int64)
    ours = _states(left, sequence, tokens, row, row < limit, D, WIDTH)
    if not TRANSPOSED:
        norm = tl.load(total + row, mask=row < limit, other=0.0)[:, None]
        carry = tl.load(carried + row, mask=row < limit, other=0.0)[:, None]
    grad = tl.zeros([ROWS, WIDTH], tl.float32)
    for step in range(near + (others + COLUMNS - 1) // COLUMNS):
        column, edge = _meet(step, near, first, row, limit, chosen, others, before, after, CAUSAL, COLUMNS)
        theirs = _states(right, sequence, tokens, column, column < limit, D, WIDTH)
        if TRANSPOSED:
            norm = tl.load(total + column, mask=column < limit, other=0.0)[None, :]
            carry = tl.load(carried + column, mask=column < limit, other=0.0)[None, :]
        weight = tl.exp(tl.where(edge, _product(ours, theirs) * scale - norm, float("-inf")))
        change = tl.zeros([ROWS, COLUMNS], tl.float32)
        for hop in range(hops):
            mine = _states(ours_of_hops + hop * size, sequence, tokens, row, row < limit, C, WIDTH_C)
            other = _states(theirs_of_hops + hop * size, sequence, tokens, column, column < limit, C, WIDTH_C)
            change += _product(mine, other)
        weight = weight * (change - carry)
        grad += tl.dot(weight.to(theirs.dtype), theirs, input_precision="ieee")
    if LINKS:
        begin, degree = _links(offsets, row, limit)
        if not TRANSPOSED:
            single = tl.load(total + row, mask=row < limit, other=0.0)
            alone = tl.load(carried + row, mask=row < limit, other=0.0)
        for slot in range(tl.max(degree, 0)):
            column, linked = _linked(slot, heard, begin, degree, limit)
            theirs = _states(right, sequence, tokens, column, linked, D, WIDTH).to(tl.float32)
            if TRANSPOSED:
                single = tl.load(total + column, mask=linked, other=0.0)
                alone = tl.load(carried + column, mask=linked, other=0.0)
            score = tl.sum(ours.to(tl.float32) * theirs, 1) * scale
            weight = tl.exp(tl.where(linked, score - single, float("-inf")))
            change = tl.zeros([ROWS], tl.float32)
            for hop in range(hops):
                mine = _states(ours_of_hops + hop * size, sequence, tokens, row, row < limit, C, WIDTH_C)
                other = _states(theirs_of_hops + hop * size, sequence, tokens, column, linked, C, WIDTH_C)
                change += tl.sum(mine.to(tl.float32) * other.to(tl.float32), 1)
            grad += (weight * (change - alone))[:, None] * theirs
    _store(result, grad * scale, target, there, D, WIDTH)
