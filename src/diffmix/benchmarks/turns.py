"""How a process that measures waits for its turn, so that of several only one works at a time."""

from __future__ import annotations

import sys

TURN = "diffmix: my turn?"
_taking = False


def take_turns() -> None:
    """From now on `wait_for_turn` waits: somebody reads standard output and answers each TURN with an empty line."""
    global _taking
    _taking = True


def wait_for_turn() -> None:
    """Wait until this process may work; at once where none takes turns with it."""
    if _taking:
        print(TURN, flush=True)
        sys.stdin.readline()
