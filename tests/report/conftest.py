import pytest
from run_folders import write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "ag_news")
