import pytest

from diffmix.errors import RequestError, RunError
from diffmix.experiments.demo import MARKER, STRINGS, run_demo


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RequestError, match="not a demo"):
        run_demo(tmp_path, notice=lambda _: None, run=lambda _: 0)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    with pytest.raises(RequestError, match="is a file"):
        run_demo(tmp_path / "mine.txt", notice=lambda _: None, run=lambda _: 0)


def test_an_earlier_demo_is_replaced_and_a_failure_named(tmp_path):
    (tmp_path / MARKER).write_text("")
    (tmp_path / "old").mkdir()
    with pytest.raises(RunError, match="exit code 1"):
        run_demo(tmp_path, notice=lambda _: None, run=lambda _: 1)
    assert not (tmp_path / "old").exists()
    assert (tmp_path / MARKER).is_file()


@pytest.mark.slow
def test_from_nothing_to_a_report(tmp_path):
    said = []
    small = ["limit=96", "epochs=1", "hidden_size=16", "intermediate_size=16", "num_hidden_layers=1", "batch_size=48"]
    report = run_demo(tmp_path / "demo", overrides=small, notice=said.append)
    page = report.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "Reliability" in page
    assert "Live predictions" in page
    told = "\n".join(said)
    assert "mixer=softmax" in told
    assert STRINGS[0] in told
    assert str(report) in told
