"""Pieces of work that are numbered, computed in several processes, and handed out in their order."""

from __future__ import annotations

import functools
import os
import threading
import time
import warnings
from collections.abc import Callable, Generator
from itertools import count
from typing import Any, TypeVar

from joblib import Parallel, delayed

Result = TypeVar("Result")


def in_order(work: Callable[[int], Result], workers: int, pieces: int | None = None) -> Generator[Result, None, None]:
    """work(0), work(1), … without end or `pieces` of them, computed ahead by `workers` processes; close it when enough was had.

    Processes, since threads that draw images wait for the interpreter's lock more than they work. The results do not depend on
    their number. Workers end within seconds of a process that was killed: they hold what it held open, such as a study's lock.
    """
    work = functools.partial(_worked, work, os.getpid())
    numbers = count() if pieces is None else range(pieces)
    results: Any = Parallel(n_jobs=workers, return_as="generator")(delayed(work)(number) for number in numbers)
    try:
        for result in results:  # noqa: UP028 (`yield from` would close them itself, with a warning)
            yield result
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # pieces that were computed ahead are thrown away, as is meant
            results.close()


def _worked(work: Callable[[int], Result], parent: int, number: int) -> Result:
    if os.getpid() != parent:
        _end_with(parent)
    return work(number)


@functools.cache
def _end_with(parent: int) -> None:
    """Have this process end when its parent does."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
