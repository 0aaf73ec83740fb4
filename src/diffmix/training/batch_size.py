"""How many rows fit in memory at once on a CPU, found before training.

Linux ends a process that runs out of memory without an exception to catch, so the step is measured small and scaled up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffmix.training.hardware import free_memory, peak_resident_memory, reset_peak_memory, resident_memory

PROBE_ROWS = 4
SAFETY = 0.7  # share of the free memory that training may plan for


def fitting_micro_batch(
    step: Callable[[torch.nn.Module, dict[str, torch.Tensor]], torch.Tensor],
    model: torch.nn.Module,
    dataset: Any,
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    *,
    rows: int,
    processes: int = 1,
) -> int:
    """The largest number of rows up to `rows` whose training step fits in the memory that is free now.

    One forward and backward step on the longest rows of `dataset` is measured, on a copy of the model, so that neither
    weights nor random state change. Where the system does not tell its memory, `rows` itself.

    Args:
        step: (model, batch) → loss.
        model: on a CPU.
        dataset: encoded rows with `lengths`.
        collate: rows to a batch.
        rows: what a process would take at once with memory enough.
        processes: that share the machine's memory.
    """
    reset_peak_memory()  # what this process holds but does not use is free, too
    free = free_memory()
    if free is None or rows <= 1:
        return rows
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    # Gradients and AdamW's two moments are as large as the weights; they are not there yet.
    free = free * SAFETY / processes - 3 * parameters
    probe_rows = min(rows, PROBE_ROWS, len(dataset))
    longest = np.argsort(-np.asarray(dataset.lengths), kind="stable")[:probe_rows]
    batch = collate([dataset[int(row)] for row in longest])
    with torch.random.fork_rng(devices=[]):
        used = _peak_of(lambda: step(copy.deepcopy(model).train(), batch).backward())
    if used is None:
        return rows
    # The gradients are counted with the rows, which errs on the side of smaller batches.
    fitting = int(free // max(used / probe_rows, 1))
    return max(1, min(rows, fitting))


def halvings(rows: int, fitting: int) -> int:
    """`rows` halved, rounding up, until it is at most `fitting`."""
    while rows > max(1, fitting):
        rows = -(-rows // 2)
    return rows


def _peak_of(work: Callable[[], Any]) -> int | None:
    """Bytes that `work` adds to the resident memory at its peak; None where the system cannot tell."""
    if not reset_peak_memory():
        return None
    before = resident_memory()
    work()
    return max(peak_resident_memory() - before, 0)
