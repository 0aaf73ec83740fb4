import pytest

from diffmix.cli.main import main
from small_runs import SMALL, write_names


@pytest.fixture(scope="session")
def names_csv(tmp_path_factory):
    return write_names(tmp_path_factory.mktemp("data") / "names.csv")


@pytest.fixture(scope="session")
def run_folder(names_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "names"
    sets = [part for override in SMALL for part in ("--set", override)]
    assert main(["train", "text_file", "--data", str(names_csv), "--output", str(folder), *sets]) == 0
    return folder


@pytest.fixture
def diffmix(capfd):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run
