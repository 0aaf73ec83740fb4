"""Finding files; what `--data`, $DIFFMIX_DATA and the hub give is in `test_data_sets`."""

import pytest

from diffmix.errors import RequestError
from diffmix.tasks.sources import split_files


def test_shards_and_usual_split_names(tmp_path):
    for name in ("train-00001-of-00002.parquet", "train-00000-of-00002.parquet", "dev.csv", "training.csv"):
        (tmp_path / name).touch()
    assert [path.name for path in split_files(tmp_path, "train")] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert [path.name for path in split_files(tmp_path, "validation")] == ["dev.csv"]
    assert split_files(tmp_path, "test") == []
    assert split_files(tmp_path / "none", "train") == []


def test_shards_may_be_counted_from_one(tmp_path):
    for name in ("train-2-of-2.csv", "train-1-of-2.csv"):
        (tmp_path / name).touch()
    assert len(split_files(tmp_path, "train")) == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train-00001-of-00002.csv"], "some are missing"),
        (["train-00000-of-00003.csv", "train-00002-of-00003.csv"], "some are missing"),
        (["train-00000-of-00001.csv", "train-00000-of-00002.csv", "train-00001-of-00002.csv"], "too many"),
        (["train.csv", "train-00000-of-00001.csv"], "train-00000-of-00001.csv and train.csv are both there"),
    ],
)
def test_a_part_of_a_split_is_not_taken_for_the_whole(names, expected, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(RequestError, match=expected):
        split_files(tmp_path, "train")
