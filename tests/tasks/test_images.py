"""Images as sequences of pixels: IDX files, tables of encoded images, splits, and what is refused."""

import gzip
import sys
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, idx_bytes, write_idx, write_table
from toy_tables import refusal

from diffmix.errors import RequestError
from diffmix.tasks import Examples, load_task
from diffmix.tasks.idx_files import read_idx
from diffmix.tasks.images import grey_pixels

COLOURS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_become_pixels_above_padding_in_their_order(tmp_path, name):
    folder = write_idx(tmp_path / name)
    task = load_task(name, data=tmp_path)
    assert isinstance(task.train, Examples)
    test = task.load_test()
    assert test is not None
    raw = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    assert np.array_equal(test.input_ids, raw.reshape(20, 784).astype(int) + 1)
    assert test.labels.tolist() == [*range(10)] * 2
    assert task.vocab_size == 257
    assert (len(task.train), len(task.validation)) == (90, 10)  # one of each class is held out
    assert task.validation.label_counts(10).tolist() == [1] * 10
    rows = {row.tobytes() for part in (task.train, task.validation) for row in part.input_ids}
    assert len(rows) == 100
    again = load_task(name, data=folder)
    assert np.array_equal(again.validation.input_ids, task.validation.input_ids)
    few = load_task(name, data=tmp_path, limit=3)
    assert (len(few.train), len(few.validation), len(few.load_test() or ())) == (3, 3, 3)


def test_test_images_are_read_only_when_asked_for(tmp_path, monkeypatch):
    folder = write_idx(tmp_path / "mnist")
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"damaged")
    monkeypatch.setenv("DIFFMIX_DATA", str(tmp_path))
    task = load_task("mnist")
    with pytest.raises(RequestError, match=r"t10k-images-idx3-ubyte\.gz: cannot be read as gzip"):
        task.load_test()


IMAGES = idx_bytes(np.zeros((100, 28, 28)))
WRONG = {
    "wrong magic": (
        gzip.compress(b"\0\0\x09\x03" + IMAGES[4:]),
        "begins with 00 00 09 03; an IDX file of 3-dimensional",
    ),
    "labels for images": (gzip.compress(idx_bytes(np.zeros(100))), "begins with 00 00 08 01"),
    "nothing": (gzip.compress(b""), "begins with nothing"),
    "header cut": (gzip.compress(IMAGES[:9]), "holds fewer bytes"),
    "payload cut": (gzip.compress(IMAGES[:-1]), "holds fewer bytes than the 100 x 28 x 28 that it announces"),
    "payload long": (gzip.compress(IMAGES + b"x"), "holds more bytes"),
    "gzip cut": (gzip.compress(IMAGES)[:-9], "cannot be read as gzip"),
    "no gzip": (IMAGES, "cannot be read as gzip"),
    "no images": (gzip.compress(idx_bytes(np.zeros((0, 28, 28)))), "is empty"),
    "other size": (
        gzip.compress(idx_bytes(np.zeros((100, 27, 28)))),
        "holds images of 27 x 28 pixels; give images of 28 x 28",
    ),
    "other number": (
        gzip.compress(idx_bytes(np.zeros((99, 28, 28)))),
        "holds 99 images and train-labels-idx1-ubyte.gz 100",
    ),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_damaged_idx_files_are_refused_on_one_line(tmp_path, content, message):
    folder = write_idx(tmp_path / "mnist")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    assert message in refusal("mnist", data=tmp_path)


def test_wrong_or_missing_labels_are_refused(tmp_path):
    folder = write_idx(tmp_path / "mnist")
    labels = folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(np.arange(100) % 11)))
    assert "row 11: label 10 is not in 0..9" in refusal("mnist", data=tmp_path)
    labels.unlink()
    assert "train-images without train-labels" in refusal("mnist", data=tmp_path)
    assert "--data" in refusal("mnist", data=tmp_path / "none")
    assert "holds no fashion_mnist/train-images-idx3-ubyte.gz" in refusal("fashion_mnist", data=tmp_path)


@given(st.binary(max_size=200), st.booleans(), st.integers(1, 3))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, packed, dimensions):
    path = tmp_path_factory.getbasetemp() / ("any.gz" if packed else "any")
    path.write_bytes(content)
    problem = ""
    try:
        assert read_idx(path, dimensions).ndim == dimensions
    except RequestError as error:
        problem = str(error)
    assert "\n" not in problem


def test_unpacked_idx_files_are_read_too(tmp_path):
    folder = write_idx(tmp_path / "mnist")
    for file in list(folder.iterdir()):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert load_task("mnist", data=tmp_path).train.input_ids.shape == (90, 784)


def cifar(folder, kind="PNG"):
    files = [encoded(image, kind) for image in COLOURS]
    write_table(folder / "train.parquet", files, [i % 10 for i in range(20)])
    write_table(folder / "test.parquet", files[:5], range(5))


def test_cifar10_is_grey_and_says_whether_it_is_the_lossy_copy(tmp_path):
    cifar(tmp_path / "cifar10_jpeg", "JPEG")
    lossy = load_task("cifar10", data=tmp_path)
    assert "CIFAR-10 (JPEG q75)" in str(lossy.facts["note"])
    assert lossy.facts["source"] == "files cifar10_jpeg"
    cifar(tmp_path / "cifar10")  # the lossless one goes first
    task = load_task("cifar10", data=tmp_path)
    assert "JPEG" not in str(task.facts["note"])
    test = task.load_test()
    assert test is not None
    luma = COLOURS[:5].reshape(5, 1024, 3) @ [0.299, 0.587, 0.114]
    assert np.abs(test.input_ids - 1 - luma).max() <= 1
    assert task.label_names[test.labels[0]] == "airplane"
    assert (len(task.train), len(task.validation)) == (19, 1)


def write_archive(folder, images=COLOURS):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        records = [
            bytes([(row + number) % 10]) + image.transpose(2, 0, 1).tobytes() for row, image in enumerate(images)
        ]
        (folder / f"{name}.bin").write_bytes(b"".join(records))


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_the_archive_of_cifar10_is_what_the_hub_serves(tmp_path, inside):
    from PIL import Image

    write_archive(tmp_path / "cifar10" / inside)
    task = load_task("cifar10", data=tmp_path)
    test = task.load_test()
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")).ravel() for image in COLOURS])
    np.testing.assert_array_equal(test.input_ids - 1, expected)
    np.testing.assert_array_equal(test.labels, (np.arange(20) + 5) % 10)
    assert len(task.train) + len(task.validation) == 100


def test_a_damaged_archive_is_refused(tmp_path):
    folder = tmp_path / "cifar10"
    write_archive(folder)
    (folder / "data_batch_3.bin").unlink()
    assert "data_batch_3.bin: No such file or directory; unpack" in refusal("cifar10", data=tmp_path)
    (folder / "data_batch_3.bin").write_bytes(b"x" * 3072)
    assert "has 3072 bytes, not records of 3073; unpack" in refusal("cifar10", data=tmp_path)
    (folder / "data_batch_3.bin").write_bytes(b"x" * 3073)
    assert "label 120 is not in 0..9" in refusal("cifar10", data=tmp_path)
    (tmp_path / "empty").mkdir()
    assert "nor cifar10/cifar-10-batches-bin/data_batch_1.bin" in refusal("cifar10", data=tmp_path / "empty")


def test_damaged_images_and_tables_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "cifar10/train.parquet"
    files = [encoded(image) for image in COLOURS]
    labels = [i % 10 for i in range(20)]
    write_table(path, [b"no image", *files[1:]], labels)
    assert "row 1: is no image that can be read" in refusal("cifar10", data=tmp_path)
    write_table(path, [encoded(COLOURS[0, :16]), *files[1:]], labels)
    assert "row 1: an image of 32 x 16 pixels; give images of 32 x 32" in refusal("cifar10", data=tmp_path)
    write_table(path, files, [-1, *labels[1:]])
    assert "row 1: label -1 is not in 0..9" in refusal("cifar10", data=tmp_path)
    write_table(path, files, labels, column="picture")
    assert "give img (or image) and label" in refusal("cifar10", data=tmp_path)
    write_table(path, files[:2], [0, 1])
    assert "2 images are too few" in refusal("cifar10", data=tmp_path)
    path.write_bytes(b"damaged")
    assert "is not a readable Parquet file" in refusal("cifar10", data=tmp_path)
    write_table(path, files, labels)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install pillow" in refusal("cifar10", data=tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
@pytest.mark.parametrize("white", [256 * 255, 257 * 255])  # both ways in which 8 bits are made 16
def test_grey_of_16_bits_keeps_its_shades(kind, white):
    ramp = np.arange(256).reshape(16, 16)
    wide = (ramp * (white // 255)).astype(np.uint16)
    assert np.array_equal(grey_pixels(encoded(wide, kind), 16, "ramp"), ramp.ravel())


@pytest.mark.parametrize(("dtype", "words"), [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_grey_whose_white_is_not_known_is_refused(tmp_path, dtype, words):
    files = [encoded(image[:, :, 0].astype(dtype), "TIFF") for image in COLOURS]
    write_table(tmp_path / "cifar10/train.parquet", files, [i % 10 for i in range(20)])
    message = refusal("cifar10", data=tmp_path)
    assert f"an image of {words} numbers, whose white is not known; save it as grey of 8 or 16 bits" in message


def test_the_hub_serves_what_no_folder_holds(monkeypatch):
    files = [encoded(image[:28, :28, 0]) for image in COLOURS]
    structs = pa.array([{"bytes": file} for file in files], pa.struct({"bytes": pa.binary()}))
    table = pa.table({"image": structs, "label": pa.array([i % 10 for i in range(20)], pa.int64())})
    asked = []

    class Hub(ModuleType):
        def load_dataset(self, name, split):
            asked.append((name, split))
            return self

        def with_format(self, kind):
            assert kind == "arrow"
            return Rows()

    class Rows:
        def __getitem__(self, rows):
            return table

    monkeypatch.setitem(sys.modules, "datasets", Hub("datasets"))
    task = load_task("mnist")
    assert asked == [("ylecun/mnist", "train")]
    assert task.facts["source"] == "hub ylecun/mnist"
    test = task.load_test()
    assert test is not None
    assert np.array_equal(test.input_ids[3], COLOURS[3, :28, :28, 0].reshape(-1).astype(int) + 1)  # grey stays as it is
