"""Small tables of texts and labels on disk, and the one line that refuses what cannot be loaded."""

import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffmix.errors import RequestError
from diffmix.tasks import load_task


def write(path, rows, header=("text", "label")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def parquet(path, texts, labels, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts, "label": pa.array(labels, pa.int64())}), path)
    return path


def refusal(name, **arguments):
    with pytest.raises(RequestError) as caught:
        load_task(name, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
