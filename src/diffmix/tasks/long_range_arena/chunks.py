"""Pieces of work that are numbered, computed on several threads, and handed out in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import TypeVar

Result = TypeVar("Result")


def in_order(work: Callable[[int], Result], workers: int) -> Generator[Result, None, None]:
    """work(0), work(1), … without end, computed ahead on `workers` threads; close it when enough was had.

    numpy works outside the interpreter's lock, so threads share the cores; the results do not depend on their number.
    """
    if workers <= 1:
        yield from map(work, count())
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for number in count():
                ahead.append(pool.submit(work, number))
                if len(ahead) == 2 * workers:
                    yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
