"""Images as sequences of pixels, row by row: grey value g is the id g + 1, and 0 is padding.

n: images of a split.  P: pixels of an image.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, TaskData, cut
from diffmix.tasks.idx_files import idx_file, read_idx
from diffmix.tasks.rows import one_line
from diffmix.tasks.sources import HubSource, find_folder, split_files
from diffmix.tasks.splits import Cut, Facts, describe_limit, describe_validation, limited_rows

_TEST_FRACTION = 0.2  # of digits
_DIGITS = tuple(str(digit) for digit in range(10))
_IDX = {"train": "train", "test": "t10k"}  # our name of a split, the files'
_COLUMNS = ("img", "image")  # in tables, as the hub has them
_SIXTEEN_BITS = ("PNG", "PPM")  # files of which Pillow may give grey of 16 bits in 32, where 65,535 is white


@dataclass(frozen=True)
class ImageSet:
    """A published set of square images of 256 grey values, or of colours that are made grey."""

    labels: tuple[str, ...]
    side: int  # pixels
    hub: str
    folders: tuple[str, ...]  # under $DIFFMIX_DATA; the first that is there counts


IMAGE_SETS = {
    "mnist": ImageSet(_DIGITS, 28, "ylecun/mnist", ("mnist",)),
    "fashion_mnist": ImageSet(
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        28,
        "zalando-datasets/fashion_mnist",
        ("fashion_mnist",),
    ),
    "cifar10": ImageSet(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        32,
        "uoft-cs/cifar10",
        ("cifar10", "cifar10_jpeg"),
    ),
}
IMAGE_TASKS = ("digits", *IMAGE_SETS)


@dataclass(frozen=True)
class Images:
    """A split of images with labels int64 [n]. `pixels` gives those of some rows: uint8 [rows, P]."""

    labels: np.ndarray
    pixels: Callable[[np.ndarray], np.ndarray]

    def examples(self, rows: np.ndarray) -> Examples:
        """Some rows as sequences of ids."""
        return Examples(labels=self.labels[rows], input_ids=self.pixels(rows).astype(np.int16) + np.int16(1))


def load_images(name: str, *, data: str | Path | None, how: Cut, on_notice: Callable[[str], None] = print) -> TaskData:
    """One of IMAGE_TASKS; validation is cut from train by class with a fixed seed."""
    if name == "digits":
        return load_digits(how)
    image_set = IMAGE_SETS[name]
    folder = find_folder(
        image_set.folders,
        data,
        lambda folder: (
            idx_file(folder, "train-images-idx3-ubyte") is not None
            or bool(split_files(folder, "train"))
            or (name == "cifar10" and cifar_archive(folder) is not None)
        ),
        f"{name}/train.parquet nor {name}/cifar-10-batches-bin/data_batch_1.bin"
        if name == "cifar10"
        else f"{name}/train-images-idx3-ubyte.gz nor {name}/train.parquet",
        on_notice,
    )
    hub = HubSource(image_set.hub, {"train": "train", "test": "test"})

    def read(split: str) -> Images | None:
        if folder is None:
            return table_images(hub.table(split), Path(image_set.hub), image_set)
        if idx_file(folder, f"{_IDX[split]}-images-idx3-ubyte") is not None:
            return idx_images(folder, _IDX[split], image_set)
        if name == "cifar10" and (archive := cifar_archive(folder)) is not None:
            return cifar_images(archive, split, image_set)
        paths = split_files(folder, split)
        return table_images(_tables(paths), paths[0], image_set) if paths else None

    train = read("train")
    assert train is not None
    facts: Facts = {
        "source": hub.name if folder is None else f"files {folder.name}",
        "train_rows": len(train.labels),
    }
    if name == "cifar10":
        jpeg = folder is not None and folder.name == "cifar10_jpeg"
        facts["note"] = f"{'CIFAR-10 (JPEG q75)' if jpeg else 'CIFAR-10'}, made grey"

    def load_test() -> Examples | None:
        test = read("test")
        return None if test is None else test.examples(limited_rows(np.arange(len(test.labels)), how))

    try:
        return _task(name, train, np.arange(len(train.labels)), image_set.labels, 256, load_test, facts, how)
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"{name} train: {len(train.labels)} images are too few to cut a split from: {error}"
        ) from None


def load_digits(how: Cut) -> TaskData:
    """`digits`: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, 17 grey values, as ids 1..17; ten classes.

    The source has one split: a fifth is cut off for test, then validation from the rest, by class with a fixed seed.
    """
    from sklearn.datasets import load_digits as source

    pixels, labels = source(return_X_y=True)  # float [n, 64], int [n]
    everything = Images(np.asarray(labels, dtype=np.int64), lambda rows: pixels[rows].astype(np.uint8))
    rest, test = cut(everything.labels, _TEST_FRACTION, how.seed)
    facts: Facts = {
        "source": "scikit-learn load_digits",
        "train_rows": len(rest),
        "test": f"{len(test)} rows ({_TEST_FRACTION:.0%}), stratified by label, seed {how.seed}",
    }
    return _task(
        "digits", everything, rest, _DIGITS, 17, lambda: everything.examples(limited_rows(test, how)), facts, how
    )


def _task(
    name: str,
    images: Images,
    rows: np.ndarray,
    labels: tuple[str, ...],
    levels: int,
    load_test: Callable[[], Examples | None],
    facts: Facts,
    how: Cut,
) -> TaskData:
    """The task whose train and validation are `rows` of `images`."""
    kept, held = cut(images.labels[rows], how.fraction, how.seed)
    validation = images.examples(limited_rows(rows[held], how))
    describe_validation(facts, validation, how, own=False)
    facts["validation_rows"] = len(held)
    describe_limit(facts, how)
    return TaskData(
        name=name,
        label_names=labels,
        train=images.examples(limited_rows(rows[kept], how)),
        validation=validation,
        load_test=load_test,
        facts=facts,
        vocab_size=levels + 1,
    )


def idx_images(folder: Path, prefix: str, image_set: ImageSet) -> Images:
    """A split of IDX files, such as train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz."""
    images_file, labels_file = (idx_file(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    if images_file is None or labels_file is None:
        raise RequestError(f"{folder}: holds {prefix}-images without {prefix}-labels-idx1-ubyte.gz; put both there")
    pixels, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    side = image_set.side
    if pixels.shape[1:] != (side, side):
        shape = " x ".join(map(str, pixels.shape[1:]))
        raise RequestError(f"{images_file}: holds images of {shape} pixels; give images of {side} x {side}")
    if len(pixels) != len(labels):
        raise RequestError(
            f"{images_file}: holds {len(pixels)} images and {labels_file.name} {len(labels)} labels; give files of one split"
        )
    _check_labels(labels, labels_file, image_set)
    flat = pixels.reshape(len(pixels), -1)
    return Images(labels.astype(np.int64), lambda rows: flat[rows])


def cifar_archive(folder: Path) -> Path | None:
    """Where the binary version of CIFAR-10 lies, unpacked: `folder`/cifar-10-batches-bin or `folder` itself; None: not there."""
    return next(
        (place for place in (folder / "cifar-10-batches-bin", folder) if (place / "data_batch_1.bin").is_file()), None
    )


def cifar_images(folder: Path, split: str, image_set: ImageSet) -> Images:
    """A split of CIFAR-10's binary archive, made grey (ITU-R 601): records of a label and 1,024 bytes of each colour."""
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] if split == "train" else ["test_batch.bin"]
    size, labels, grey = image_set.side**2, [], []
    for path in (folder / name for name in names):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RequestError(f"{path}: {error.strerror}; unpack cifar-10-binary.tar.gz there, all of it") from None
        if not content or len(content) % (1 + 3 * size):
            raise RequestError(
                f"{path}: has {len(content)} bytes, not records of {1 + 3 * size}; unpack cifar-10-binary.tar.gz again"
            )
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + 3 * size)
        labels.append(records[:, 0].astype(np.int64))
        _check_labels(labels[-1], path, image_set)
        red, green, blue = records[:, 1:].astype(np.uint32).reshape(-1, 3, size).swapaxes(0, 1)
        grey.append((19_595 * red + 38_470 * green + 7_471 * blue + 0x8000 >> 16).astype(np.uint8))  # as Pillow rounds
    pixels = np.concatenate(grey)
    return Images(np.concatenate(labels), lambda rows: pixels[rows])


def table_images(table: pa.Table, place: Path, image_set: ImageSet) -> Images:
    """A split of a table with a column `img` or `image` of encoded files, as the hub has them, and a column `label`."""
    column = next((name for name in _COLUMNS if name in table.column_names), None)
    if column is None or "label" not in table.column_names:
        raise RequestError(
            f"{place}: its columns are {', '.join(table.column_names)}; give img (or image) and label, as the hub has them"
        )
    kind = table.schema.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0 or table[column].null_count:
        raise RequestError(
            f"{place}: column {column!r} holds {kind}; give a struct with the bytes of an image in each row"
        )
    if not pa.types.is_integer(table.schema.field("label").type) or table["label"].null_count:
        raise RequestError(f"{place}: column 'label' must hold whole numbers, one a row")
    labels = table["label"].to_numpy().astype(np.int64)
    if not len(labels):
        raise RequestError(f"{place}: has no rows; give some images")
    _check_labels(labels, place, image_set)
    files = table[column]

    def pixels(rows: np.ndarray) -> np.ndarray:
        decoded = np.empty((len(rows), image_set.side**2), dtype=np.uint8)
        for place_in_batch, row in enumerate(rows):
            decoded[place_in_batch] = grey_pixels(
                files[int(row)]["bytes"].as_py(), image_set.side, f"{place}, row {row + 1}"
            )
        return decoded

    return Images(labels, pixels)


def grey_pixels(content: bytes, side: int, place: str) -> np.ndarray:
    """The pixels of an image file, made grey (ITU-R 601): uint8 [P]. Of 16 bits the upper 8 are kept."""
    try:
        from PIL import Image
    except ImportError:
        raise RequestError(f"{place}: images need the package pillow to be decoded; run: pip install pillow") from None
    try:
        with Image.open(io.BytesIO(content)) as image:
            size, mode, grey = image.size, image.mode, _grey(image)
    except Exception as error:  # Pillow raises many types
        raise RequestError(f"{place}: is no image that can be read ({one_line(error)}); get the file again") from None
    if size != (side, side):
        raise RequestError(f"{place}: an image of {size[0]} x {size[1]} pixels; give images of {side} x {side}")
    if grey is None:
        raise RequestError(
            f"{place}: an image of {'floating-point' if mode == 'F' else '32-bit'} numbers, whose white is not known; save it "
            "as grey of 8 or 16 bits"
        )
    return grey.reshape(-1)


def _grey(image: Any) -> np.ndarray | None:
    """The grey values of a Pillow image: uint8 [height, width]; None: which number is white is not known."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        return (np.asarray(image) >> 8).astype(np.uint8)  # convert("L") makes all over 255 white
    return None if image.mode in ("I", "F") else np.asarray(image.convert("L"))


def _check_labels(labels: Any, place: Path, image_set: ImageSet) -> None:
    highest = len(image_set.labels) - 1
    wrong = np.flatnonzero((labels < 0) | (labels > highest))
    if len(wrong):
        raise RequestError(
            f"{place}, row {wrong[0] + 1}: label {labels[wrong[0]]} is not in 0..{highest}; mend the file"
        )


def _tables(paths: list[Path]) -> pa.Table:
    try:
        return pa.concat_tables([pq.read_table(path) for path in paths])
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"{paths[0]}: is not a readable Parquet file ({one_line(error)}); get it again") from None
