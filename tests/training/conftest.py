import pytest

from small_runs import write_names, write_pairs


@pytest.fixture(scope="session")
def names_csv(tmp_path_factory):
    return write_names(tmp_path_factory.mktemp("data") / "names.csv")


@pytest.fixture(scope="session")
def pairs_csv(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.csv")
