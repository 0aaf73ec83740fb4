"""Which checkpoints of a run are whole.

transformers writes a checkpoint file by file, so a process that dies leaves a part of one behind. A checkpoint counts as
whole once `complete.json`, written last and in one piece, lists the size of each of its files and all of them agree.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

COMPLETE = "complete.json"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it holds either its old content or all of the new one, whatever happens meanwhile."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write the same file
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def mark_complete(checkpoint: Path) -> None:
    """Declare a checkpoint whole. Everything in it must have been written."""
    sizes = {file.name: file.stat().st_size for file in sorted(checkpoint.iterdir()) if file.name != COMPLETE}
    write_atomically(checkpoint / COMPLETE, json.dumps(sizes, indent=1))


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None: nothing."""
    try:
        sizes = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "was not finished"
    except (OSError, ValueError):
        return f"has an unreadable {COMPLETE}"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"lacks {name}"
        if file.stat().st_size != size:
            return f"has a truncated {name} ({file.stat().st_size} of {size} bytes)"
    return None


def checkpoint_step(checkpoint: Path) -> int:
    """The optimiser step that a folder called `checkpoint-STEP` was written at."""
    return int(checkpoint.name.rpartition("-")[2])


def find_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in a folder, whole or not, the latest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=checkpoint_step, reverse=True)
