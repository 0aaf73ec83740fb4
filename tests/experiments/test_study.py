import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from studies import record, start_light, write_light

from diffmix.cli.main import main
from diffmix.errors import RequestError
from diffmix.experiments.study import cell_folder, cell_state, collect, list_cells, run_study, unknown_metrics
from diffmix.experiments.study_engines import is_held
from diffmix.experiments.study_file import load_study
from diffmix.experiments.tables import make_table


def finish(process, timeout=60):
    out, error = process.communicate(timeout=timeout)
    return process.returncode, out, error


def wait_for(condition, timeout=120):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def light(tmp_path):
    write_light(tmp_path)
    return tmp_path


def result_of(folder):
    return json.loads((folder / "results" / "study-light.json").read_text())


def test_trains_every_cell_once_and_summarises_over_seeds(light):
    code, out, error = finish(start_light(light))
    assert code == 0, error
    assert "| 1      | 3 of 3 |" in out
    assert "better" in out  # 0.1 more accuracy with every seed
    result = result_of(light)
    assert result["missing"] == []
    assert [row["axes"] for row in result["means"]] == [{"epochs": "1"}, {"epochs": "2"}]
    first = result["means"][0]["metrics"]["test/accuracy"]
    # mean of .60 .61 .62, and t(2) = 4.303 times .01 / √3 beside it
    assert first["mean"] == pytest.approx(0.61)
    assert first["high"] - first["mean"] == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-5)
    (difference,) = result["differences"]
    assert difference["baseline"] == "1"
    assert difference["metrics"]["test/accuracy"]["mean"] == pytest.approx(0.1)
    assert difference["metrics"]["test/accuracy"]["verdict"] == "better"
    assert difference["metrics"]["test/nll"]["verdict"] == "undecided"  # exactly equal
    assert result["resolved"]["model"] == "tfidf"
    assert result["cells"][4]["resolved"] == {"seed": 1, "epochs": 2.0}
    assert result["command"] == "diffmix study light.yaml"
    assert str(light) not in json.dumps(result)
    # A second start trains nothing and says the same.
    before, trained = (light / "results" / "study-light.json").read_bytes(), record(light)
    again = finish(start_light(light))
    assert again[:2] == (0, out)
    assert (light / "results" / "study-light.json").read_bytes() == before
    assert record(light) == trained
    assert len(trained) == 12
    assert make_table("study-light", light / "results") in out


@pytest.mark.parametrize("everything", [True, False], ids=["with its cell", "alone"])
def test_killed_at_any_moment_it_repeats_nothing_and_ends_the_same(light, tmp_path_factory, everything):
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    write_light(undisturbed)
    _, out, _ = finish(start_light(undisturbed))
    for kills in range(4):
        process = start_light(light, takes=0.3)
        wait_for(lambda some=2 * kills, study=process: len(record(light)) > some or study.poll() is not None)
        (os.killpg if everything else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
    code, last, error = finish(start_light(light, takes=0.3))
    assert code == 0, error
    assert last == out
    assert result_of(light) == result_of(undisturbed)
    assert len({line for line in record(light) if line.startswith("end")}) == 6
    assert not [line for line in record(light) if line.startswith("again")]
    if not everything:  # the cell that was left behind was waited for
        assert len(record(light)) == 12


def test_two_starts_at_once_share_the_cells(light):
    both = [start_light(light, "--jobs", "2", takes=0.3) for _ in range(2)]
    ended = [finish(process) for process in both]
    assert [code for code, *_ in ended] == [0, 0], ended
    assert ended[0][1] == ended[1][1]
    assert len(record(light)) == 12


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_so_and_leaves_nothing_running(light, sent):
    process = start_light(light, takes=30)
    wait_for(lambda: record(light))
    process.send_signal(sent)
    code, out, error = finish(process)
    assert (code, out) == (1, "")
    assert error.splitlines()[-1] == (
        "error: interrupted: 0 of 6 cells are finished; the same command goes on from there"
    )
    assert not any(is_held(log) for log in (light / "runs" / "study" / "light").glob("*.log"))
    assert finish(start_light(light))[0] == 0


def test_a_failing_cell_is_named_and_the_others_go_on(light):
    (light / "broken").touch()
    code, out, error = finish(start_light(light))
    assert code == 1
    last = error.splitlines()[-1]
    assert last.startswith("error: 2 cells failed (epochs=1, seed=1: the data are gone: bring them back; epochs=2")
    assert "2 of 3" in out
    assert "Missing: 2 of 6 cells" in out
    assert result_of(light)["missing"] == ["epochs=1, seed=1", "epochs=2, seed=1"]
    (light / "broken").unlink()
    before = len(record(light))
    assert finish(start_light(light))[0] == 0
    assert len(record(light)) == before + 4  # the two that failed
    assert result_of(light)["missing"] == []


def test_only_some_cells_and_a_list_of_all(light):
    code, out, _ = finish(start_light(light, "--only", "seed=0", "--only", "seed=2", "--only", "epochs=2"))
    assert code == 0
    assert [line.split("-")[0] for line in record(light) if line.startswith("end")] == ["end epochs=2"] * 2
    assert "Missing: 4 of 6" in out
    code, out, _ = finish(start_light(light, "--dry-run"))
    assert code == 0
    assert "6 cells: 2 finished, 4 new" in out
    assert "2 of 3" in out
    assert len(record(light)) == 4


def test_a_metric_that_no_cell_has_is_named_when_the_cells_are_there(light):
    study = light / "light.yaml"
    study.write_text(study.read_text().replace("test/accuracy", "test/acuracy"))
    code, out, error = finish(start_light(light))
    assert code == 2
    assert "'test/acuracy' (did you mean 'test/accuracy'?)" in error.splitlines()[-1]
    assert "test/nll" in out
    study.write_text(study.read_text().replace("test/acuracy", "test/accuracy"))
    assert finish(start_light(light))[0] == 0
    assert len(record(light)) == 12


def test_results_of_something_else_are_not_replaced(light):
    assert finish(start_light(light, "--only", "seed=0"))[0] == 0
    code, _, error = finish(start_light(light, "--set", "max_length=9"))
    assert code == 2
    assert "holds the study with no --set" in error
    (light / "results" / "study-light.json").write_text('{"comparison": "mine"}')
    code, _, error = finish(start_light(light))
    assert code == 2
    assert "no result of the study light" in error
    assert len(record(light)) == 4


def test_goes_on_from_a_result_without_the_folders(light):
    assert finish(start_light(light, "--only", "seed=0"))[0] == 0
    shutil.rmtree(light / "runs")
    file = light / "results" / "study-light.json"
    before = result_of(light)
    before["cells"][0]["environment"]["device"] = "elsewhere"
    file.write_text(json.dumps(before))
    code, out, _ = finish(start_light(light, "--dry-run"))
    assert code == 0
    assert "6 cells: 2 recorded, 4 new" in out
    assert finish(start_light(light))[0] == 0
    assert len(record(light)) == 8  # start and end of the four that were missing
    after = result_of(light)
    assert after["missing"] == []
    first = after["cells"][0]
    assert first["metrics"] == before["cells"][0]["metrics"]
    assert {**after["environment"], **first["environment"]} == {"device": "elsewhere"}
    # A cell whose recipe has changed since is trained anew.
    study = light / "light.yaml"
    study.write_text(study.read_text().replace("epochs: [1, 2]", "epochs: [1, 3]"))
    shutil.rmtree(light / "runs")
    out = finish(start_light(light, "--dry-run"))[1]
    assert "3 recorded, 3 new" in out
    code, _, error = finish(start_light(light, "--data", str(light)))
    assert code == 2
    assert "holds the study without --data" in error
    file.write_text(json.dumps({"study": "light", "overrides": [], "cells": [{"axes": {}}, "none"]}))
    code, _, error = finish(start_light(light))
    assert code == 2
    assert error.splitlines()[-1].endswith("study-light.json is damaged: move it away, or give another --output")


def test_a_folder_that_was_only_just_begun_is_taken(light):
    study = load_study(light / "light.yaml")
    folder = cell_folder(study, study.cells[0], light / "runs" / "study", None)
    folder.mkdir(parents=True)
    (folder / "data.json").write_text("{}")  # killed between the two files that claim a folder
    assert finish(start_light(light, "--only", "seed=0"))[0] == 0


def test_a_folder_of_another_recipe_is_refused(light):
    study = load_study(light / "light.yaml")
    cell, runs = study.cells[0], light / "runs" / "study"
    folder = cell_folder(study, cell, runs, None)
    folder.mkdir(parents=True)
    assert cell_state(cell.recipe, folder) == "new"
    (folder / "recipe.yaml").write_text(cell.recipe.replace(epochs=7).to_yaml())
    with pytest.raises(RequestError, match=r"epochs=7\.0.*the study has epochs=1\.0.*--runs"):
        list_cells(study, runs=runs)
    (folder / "recipe.yaml").write_text(cell.recipe.to_yaml())
    assert list_cells(study, runs=runs)[0][0] == "unfinished"
    (folder / "recipe.yaml").write_text("a key of tomorrow: 3\n")
    with pytest.raises(RequestError, match="another version"):
        collect(study, runs)


def test_what_changes_a_result_changes_the_folder_and_a_new_key_does_not(light):
    study = load_study(light / "light.yaml")
    names = {cell_folder(study, cell, light, None) for cell in study.cells}
    assert len(names) == 6
    other = load_study(light / "light.yaml", ["max_length=9"])
    assert names.isdisjoint({cell_folder(other, cell, light, None) for cell in other.cells})
    assert names.isdisjoint({cell_folder(study, cell, light, "data.csv") for cell in study.cells})
    usual = load_study(light / "light.yaml", ["max_length=512"])  # the default, written out
    assert names == {cell_folder(usual, cell, light, None) for cell in usual.cells}


def test_engines_and_jobs_are_checked_before_anything_runs(light, monkeypatch):
    monkeypatch.chdir(light)
    study = load_study("light.yaml")
    with pytest.raises(RequestError, match="local or ray"):
        run_study(study, engine="slurm")
    with pytest.raises(RequestError, match="--jobs is 0"):
        run_study(study, jobs=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"pip install 'diffmix\[ray\]'"):
        run_study(study, engine="ray")
    assert not (light / "runs").exists()


def test_metrics_are_not_missed_before_a_cell_is_finished(light):
    study = load_study(light / "light.yaml")
    assert unknown_metrics(study, collect(study, light / "runs")) is None


@pytest.mark.slow
def test_real_cells_survive_kill_9(tmp_path, monkeypatch, capfd):
    """Two runs on digits; the study and its cell are killed in the second one."""
    monkeypatch.chdir(tmp_path)
    tiny = {
        "limit": 120,
        "epochs": 40,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "dtype": "fp32",
    }
    content = {"recipe": "digits", "set": tiny, "grid": {"seed": [0, 1]}, "metrics": ["test/accuracy", "test/ece"]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    study = load_study("small.yaml")
    first, second = (cell_folder(study, cell, tmp_path / "runs" / "study", None) for cell in study.cells)
    command = [sys.executable, "-m", "diffmix", "study", "small.yaml"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for(lambda: (second / "metrics.jsonl").is_file() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (first / "metrics.json").is_file()
    assert not (second / "metrics.json").exists()
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert main(["study", "small.yaml"]) == 0
    out = capfd.readouterr().out
    assert "| small | 2 of 2 |" in out
    assert before == {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    starts = [
        [line for line in folder.with_name(folder.name + ".log").read_text().splitlines() if line.startswith("$")]
        for folder in (first, second)
    ]
    assert [len(lines) for lines in starts] == [1, 2]
    assert starts[1][1].endswith("--resume")
    assert main(["study", "small.yaml"]) == 0
    assert capfd.readouterr().out == out
