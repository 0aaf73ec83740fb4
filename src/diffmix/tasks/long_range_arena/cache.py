"""Generated sets on disk: written once, whole or not at all, and read memory-mapped.

A set's folder holds, for each split it has, SPLIT.ids.npy (uint8, flat), SPLIT.offsets.npy (int64 [n + 1]) and SPLIT.labels.npy
(uint8 [n]), and set.json: what was drawn, the size of each file, and statistics.

n: rows of a split.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples
from diffmix.tasks.token_rows import TokenRows

try:
    import fcntl
except ImportError:  # not on Windows: there two processes may both generate, and the first to finish is kept
    fcntl = None

HEADER = "set.json"
_FORMAT = 1
_ARRAYS = {"ids": np.uint8, "offsets": np.int64, "labels": np.uint8}
_SPLITS = ("train", "validation", "test")


Make = Callable[[Path], dict[str, Any]]  # writes the arrays of its splits into a folder; returns statistics


@dataclass(frozen=True)
class GeneratedSet:
    """A set on disk. Its arrays are opened when a split is asked for."""

    folder: Path
    header: dict[str, Any]

    def split(self, name: str, classes: int, shift: int = 0) -> Examples:
        """The rows of a split; ids are what is stored plus `shift`. Raises RequestError where files are damaged."""
        arrays = {kind: self._array(name, kind) for kind in _ARRAYS}
        try:
            rows = TokenRows(arrays["ids"], np.asarray(arrays["offsets"]), shift=shift)
        except (ValueError, IndexError):
            raise self._damaged(f"{name}.offsets.npy does not fit {name}.ids.npy") from None
        labels = np.asarray(arrays["labels"], dtype=np.int64)
        if len(labels) != len(rows) or labels.max(initial=0) >= classes:
            raise self._damaged(
                f"{name}.labels.npy holds {len(labels)} labels of {len(rows)} rows, or some over {classes - 1}"
            )
        return Examples(labels=labels, input_ids=rows)

    def check_ids(self, lowest: int, highest: int) -> None:
        """Read all ids, of a set from elsewhere. Raises RequestError where one is not in lowest … highest, or a row is empty."""
        for split in _SPLITS:
            ids, offsets = self._array(split, "ids"), self._array(split, "offsets")
            if ids.min() < lowest or ids.max() > highest:
                raise self._damaged(
                    f"{split}.ids.npy holds ids from {ids.min()} to {ids.max()}, not {lowest} to {highest}"
                )
            if (np.diff(offsets) < 1).any():
                raise self._damaged(f"{split}.offsets.npy has rows without an id")

    def check_arrays(self) -> None:
        """Open all arrays. Raises RequestError where one is missing, cannot be read or does not fit the others."""
        for split in sorted({name.partition(".")[0] for name in self.header["files"]}):
            self.split(split, classes=256)  # any byte will do: which labels a task has is not known here

    def _array(self, split: str, kind: str) -> np.ndarray:
        path = self.folder / f"{split}.{kind}.npy"
        try:
            array = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(f"{path.name} cannot be read ({type(error).__name__})") from None
        if array.ndim != 1 or array.dtype != _ARRAYS[kind] or not len(array):
            raise self._damaged(f"{path.name} is no array of {np.dtype(_ARRAYS[kind]).name}")
        return array

    def _damaged(self, problem: str) -> RequestError:
        return RequestError(f"{self.folder}: {problem}; remove the folder and generate the set again")


def cache_folder() -> Path:
    """Where generated sets are kept: $DIFFMIX_CACHE, else `diffmix` in $XDG_CACHE_HOME, else ~/.cache/diffmix."""
    given = os.environ.get("DIFFMIX_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffmix"


def read_set(folder: Path, task: str) -> GeneratedSet | None:
    """The set of `task` in `folder`; None: there is none. Raises RequestError where it is damaged or another task's."""
    path = folder / HEADER
    if not path.is_file():
        return None
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        found, version = header["task"], header["format"]
        sizes = header["files"] = dict(header["files"])
        for facts in ("parameters", "statistics"):
            header[facts] = dict(header.get(facts, {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{path}: is no header of a generated set ({type(error).__name__}); remove the folder and generate the set again"
        ) from None
    if found != task:
        raise RequestError(f"{folder}: holds a generated set of the task {found!r}; give one of {task!r}")
    if version != _FORMAT:
        raise RequestError(f"{path}: has format {version!r}, this version reads {_FORMAT}; generate the set again")
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise RequestError(
                f"{file}: {'holds fewer or more bytes than were written' if file.is_file() else 'is missing'}; remove the folder "
                "and generate the set again"
            )
    return GeneratedSet(folder, header)


def save_array(folder: Path, split: str, kind: str, values: np.ndarray) -> None:
    """Write one array of a split: kind "ids", "offsets" or "labels"."""
    array = np.ascontiguousarray(values, dtype=_ARRAYS[kind])
    with (folder / f"{split}.{kind}.npy").open("wb") as file:  # np.save loses the last bytes on a full disk, silently
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def open_ids(folder: Path, split: str, size: int) -> np.ndarray:
    """The ids of a split as an array on disk, to be filled: uint8 [size]."""
    path = folder / f"{split}.ids.npy"
    ids = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(size,))
    if hasattr(os, "posix_fallocate"):  # else a full disk ends the process in the middle, without a word
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return ids


def write_set(folder: Path, task: str, parameters: Mapping[str, Any], make: Make) -> GeneratedSet:
    """Write the set of `make` into `folder`, which is new or empty: whole or not at all.

    A process that dies leaves a folder behind whose name begins with a dot, which nobody reads.
    """
    folder = folder.resolve()  # "." and links have no place beside them
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        statistics = make(temporary)
        files = sorted(temporary.glob("*.npy"))
        for path in files:  # their sizes are known before what they hold is on the disk
            with path.open("rb") as file:
                os.fsync(file.fileno())
        header = {
            "format": _FORMAT,
            "task": task,
            "parameters": dict(parameters),
            "files": {path.name: path.stat().st_size for path in files},
            "statistics": statistics,
        }
        with (temporary / HEADER).open("w", encoding="utf-8") as file:
            json.dump(header, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o755)  # mkdtemp's folders are for their owner only
        try:
            temporary.rename(folder)  # over an empty folder too
        except OSError:
            finished = read_set(folder, task)  # by another process, where there are no locks
            if finished is None:
                raise
            return finished
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return GeneratedSet(folder, header)


def cached_set(
    name: str, task: str, parameters: Mapping[str, Any], make: Make, on_notice: Callable[[str], None]
) -> GeneratedSet:
    """The set `name` of the cache, generated first where it is not there yet.

    Of several processes one generates and the others wait for it. A damaged set is replaced.
    """
    folder = cache_folder() / name
    try:
        found = _whole(folder, task, on_notice)
        if found is not None:
            return found
        with _locked(folder):
            found = _whole(folder, task, on_notice)  # another process may have made it meanwhile
            if found is not None:
                return found
            if fcntl is not None:  # what processes left that died; none is at work, for we hold the lock
                for left in folder.parent.glob(f".{folder.name}.*"):
                    if left.is_dir():
                        shutil.rmtree(left, ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)
            on_notice(f"{task}: generating {folder} (once)")
            return write_set(folder, task, parameters, make)
    except OSError as error:
        raise RequestError(
            f"{error.filename or folder}: {error.strerror or error}; set DIFFMIX_CACHE to a folder with room that may be written"
        ) from None


def _whole(folder: Path, task: str, on_notice: Callable[[str], None]) -> GeneratedSet | None:
    try:
        found = read_set(folder, task)
        if found is not None:
            found.check_arrays()  # files cut short by a full disk may have the size that was noted
    except RequestError as error:
        on_notice(f"{task}: {error}: it is generated anew")
        return None
    return found


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a set; the system releases it when the process ends, however it ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
