"""IDX files, the format of MNIST: a magic number, the sizes as big-endian 32-bit numbers, and bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from diffmix.errors import RequestError

_UNSIGNED_BYTE = 8


def idx_file(folder: Path, name: str) -> Path | None:
    """`folder`/`name`.gz or `folder`/`name`, whichever is there."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of an IDX file of unsigned bytes: uint8, with so many dimensions.

    Raises RequestError, with the file and the mend, where it is damaged or holds something else.
    """
    mend = f"; get {path.name} again"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            expected = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
            if header[:4] != expected:
                raise RequestError(
                    f"{path}: begins with {header[:4].hex(' ') or 'nothing'}; an IDX file of {dimensions}-dimensional bytes "
                    f"begins with {expected.hex(' ')}{mend}"
                )
            sizes = [int.from_bytes(header[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
            whole = len(header) == 4 + 4 * dimensions
            payload = file.read(math.prod(sizes) + 1) if whole else b""
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(f"{path}: cannot be read as gzip ({reason[:120]}){mend}") from None
    if not whole or len(payload) != math.prod(sizes):
        more = "more" if len(payload) > math.prod(sizes) else "fewer"
        raise RequestError(f"{path}: holds {more} bytes than the {' x '.join(map(str, sizes))} that it announces{mend}")
    if 0 in sizes:
        raise RequestError(f"{path}: is empty ({' x '.join(map(str, sizes))}){mend}")
    return np.frombuffer(payload, dtype=np.uint8).reshape(sizes)
