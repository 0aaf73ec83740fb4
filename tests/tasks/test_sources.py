"""Finding files; what `--data`, $DIFFMIX_DATA and the hub give is in `test_data_sets`."""

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
