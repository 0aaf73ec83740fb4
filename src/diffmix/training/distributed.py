"""Several processes as torchrun starts them; everything here also works in a single one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from diffmix.errors import RequestError, RunError


def is_first_process() -> bool:
    """Whether this is the process that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def process_count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: str) -> None:
    """Join the other processes of torchrun, if there are any."""
    if process_count() > 1:
        PartialState(cpu=device == "cpu", backend="gloo" if device == "cpu" else "nccl")


def on_first_process(work: Callable[[], Any]) -> Any:
    """Run `work` on the first process; its result, or its error, on all of them."""
    if process_count() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if is_first_process():
        try:
            outcome[0] = work()
        except (RequestError, RunError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
