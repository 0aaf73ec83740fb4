"""The two ways in which a command can end badly, and their exit codes."""

from __future__ import annotations


class RequestError(ValueError):
    """The request was wrong (exit code 2). The message names what, where and the mend, on one line."""


class RunError(RuntimeError):
    """The request was right but the run failed (exit code 1): no space, NaN loss, a truncated checkpoint."""
