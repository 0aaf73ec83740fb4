"""The official Pathfinder files: curv_contour_length_14/metadata/*.npy, which are text, and the PNG images that they name.

n: images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, TaskData
from diffmix.tasks.images import grey_pixels
from diffmix.tasks.splits import Cut, Facts, describe_limit, limited_rows
from diffmix.tasks.token_rows import TokenRows

FOLDERS = {"pathfinder": ("pathfinder", "pathfinder32"), "pathfinder_x": ("pathfinder_x", "pathfinder128")}
LEVEL = "curv_contour_length_14"
_SHARES = (0.8, 0.9)  # train up to the first, validation up to the second, as the benchmark splits


class Entry(NamedTuple):
    """An image that the metadata name."""

    path: Path
    label: int


def has_files(folder: Path) -> bool:
    """Whether `folder`, or its folder of contours of 14 strokes, holds metadata."""
    return (folder / LEVEL / "metadata").is_dir() or (folder / "metadata").is_dir()


def read_metadata(folder: Path) -> list[Entry]:
    """What the metadata of `folder` name, in the order of their numbers.

    Raises RequestError, with the line, where they are malformed.
    """
    root = folder / LEVEL if (folder / LEVEL / "metadata").is_dir() else folder
    files = sorted((root / "metadata").glob("*.npy"), key=lambda path: (len(path.stem), path.stem))
    if not files:
        raise RequestError(f"{root / 'metadata'}: holds no .npy files; put those of the benchmark there")
    entries = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{file}: cannot be read as text ({type(error).__name__}); get it again") from None
        for number, line in enumerate(lines, start=1):
            fields = line.split()
            if len(fields) < 4:
                raise RequestError(
                    f"{file}, line {number}: has {len(fields)} fields; a folder, a file, a number and a label belong there"
                )
            if fields[3] not in ("0", "1"):
                raise RequestError(f"{file}, line {number}: label {fields[3][:20]!r} is not 0 or 1; mend the file")
            entries.append(Entry(root / fields[0] / fields[1], int(fields[3])))
    return entries


def load_files(name: str, folder: Path, side: int, labels: tuple[str, ...], how: Cut) -> TaskData:
    """The official images as TaskData: 80 % train, 10 % validation, 10 % test, drawn with the fixed seed.

    Test is read when asked for.
    """
    everything = read_metadata(folder)
    entries = [entry for entry in everything if not entry.path.is_file() or entry.path.stat().st_size]
    order = np.random.default_rng(how.seed).permutation(len(entries))
    train, validation, test = np.split(order, [int(share * len(entries)) for share in _SHARES])
    if not min(len(train), len(validation), len(test)):
        raise RequestError(f"{folder}: {len(entries)} images are too few to cut splits from; give 10 or more")
    facts: Facts = {
        "source": f"files {folder.name}",
        "train_rows": len(train),
        "validation_rows": len(validation),
        "validation": f"10% of the images, seed {how.seed}",
        "test": f"{len(test)} rows: 10% of the images, seed {how.seed}",
    }
    if len(entries) < len(everything):
        facts["note"] = f"{len(everything) - len(entries)} empty image files left out, as the benchmark does"
    describe_limit(facts, how)

    def examples(rows: np.ndarray) -> Examples:
        return read_images([entries[row] for row in limited_rows(np.sort(rows), how)], side)

    return TaskData(
        name=name,
        label_names=labels,
        train=examples(train),
        validation=examples(validation),
        load_test=lambda: examples(test),
        facts=facts,
        vocab_size=257,
    )


def read_images(entries: Sequence[Entry], side: int) -> Examples:
    """The images as rows of side² ids, grey value g being g + 1. Raises RequestError, with the file, where one cannot be used."""
    pixels = np.empty((len(entries), side**2), dtype=np.uint8)
    for row, entry in enumerate(entries):
        try:
            content = entry.path.read_bytes()
        except OSError as error:
            raise RequestError(
                f"{entry.path}: cannot be read ({error.strerror}); the metadata name it: get it again"
            ) from None
        pixels[row] = grey_pixels(content, side, str(entry.path))
    ids = TokenRows(pixels.reshape(-1), np.arange(len(entries) + 1) * side**2, shift=1)
    return Examples(np.array([entry.label for entry in entries], dtype=np.int64), input_ids=ids)
