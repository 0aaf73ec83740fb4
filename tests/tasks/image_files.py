"""Small files of images on disk, in the formats that the image tasks read."""

import gzip
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def idx_bytes(array):
    """An IDX file of unsigned bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_idx(folder, train=100, test=20, side=28):
    """Train and test images of random pixels, and labels that go round."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = draw.integers(0, 256, (count, side, side))
        for kind, array in (("images-idx3", pixels), ("labels-idx1", np.arange(count) % 10)):
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return folder


def encoded(pixels, kind="PNG"):
    """An image file of uint8 [H, W] or [H, W, 3]."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_table(path, files, labels, column="img"):
    """A Parquet file as the hub's, of encoded images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = pa.array(
        [{"bytes": file, "path": None} for file in files], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    pq.write_table(pa.table({column: structs, "label": pa.array(labels, pa.int64())}), path)
