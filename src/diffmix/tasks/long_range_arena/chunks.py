"""Pieces of work that are numbered, computed on several threads, and handed out in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from typing import TypeVar

Result = TypeVar("Result")


def in_order(work: Callable[[int], Result], workers: int, pieces: int | None = None) -> Generator[Result, None, None]:
    """work(0), work(1), … without end or `pieces` of them, computed ahead on `workers` threads; close it when enough was had.

    numpy works outside the interpreter's lock, so threads share the cores; the results do not depend on their number.
    """
    if workers <= 1:
        yield from map(work, islice(count(), pieces))
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for number in islice(count(), pieces):
                ahead.append(pool.submit(work, number))
                if len(ahead) == 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
