import pytest

STUDY = "recipe: digits\ngrid:\n  seed: [0, 1]\nmetrics: [test/accuracy]\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.yaml").write_text(STUDY)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["study"], ["NAME|FILE"]),
        (["study", "no_such"], ["no_such", "not found"]),
        (["study", "some.yaml", "--engine", "slurm"], ["local or ray"]),
        (["study", "some.yaml", "--engine", "slurm", "--dry-run"], ["local or ray"]),
        (["study", "some.yaml", "--jobs", "0"], ["jobs"]),
        (["study", "some.yaml", "--only", "sed=0"], ["'seed'"]),
        (["study", "some.yaml", "--set", "hiden_size=8"], ["'hidden_size'"]),
        (["study", "some.yaml", "--set", "seed=8"], ["--only"]),
        (["study", "some.yaml", "--output", "some.yaml"], ["some.yaml", "in the way"]),
    ],
)
def test_wrong_requests_end_with_2_and_one_line_and_leave_nothing(arguments, expected, diffmix, place):
    code, out, error = diffmix(*arguments)
    assert (code, out) == (2, "")
    assert error.count("\n") == 1
    for part in expected:
        assert part in error
    assert [path.name for path in place.iterdir()] == ["some.yaml"]


def test_a_dry_run_lists_the_cells_and_writes_nothing(diffmix, place):
    code, out, error = diffmix("study", "some.yaml", "--dry-run", "--only", "seed=1")
    assert (code, error) == (0, "")
    first, last = out.splitlines()
    assert first.split()[:2] == ["new", "seed=1"]
    assert "runs/study/some/seed=1-" in first
    assert last == "1 cells: 1 new"
    assert [path.name for path in place.iterdir()] == ["some.yaml"]
