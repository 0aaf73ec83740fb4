import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

pytest.importorskip("ray", reason="needs the extra diffmix[ray], which make acceptance installs")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def start(folder, *arguments):
    command = [sys.executable, "-m", "diffmix", "study", "small.yaml", "--engine", "ray", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_cells_run_on_a_local_cluster_and_an_interrupted_study_goes_on(tmp_path):
    tiny = {"limit": 120, "epochs": 2, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    grid = {"data": {"good": {}, "bad": {"task": "text_file", "tokenizer": "bytes"}}, "seed": [0, 1]}
    content = {"recipe": "digits", "set": tiny, "grid": grid, "metrics": ["test/accuracy"]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    cells = tmp_path / "runs" / "study" / "small"

    process = start(tmp_path, "--only", "data=good")
    deadline = time.monotonic() + 300
    while not list(cells.glob("*seed=0*/recipe.yaml")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the same command goes on from there" in error.splitlines()[-1]

    process = start(tmp_path, "--jobs", "2")
    out, error = process.communicate(timeout=500)
    assert process.returncode == 1, error
    assert "2 cells failed (data=bad, seed=0: " in error.splitlines()[-1]
    assert "| good | 2 of 2 |" in out
    result = json.loads((tmp_path / "results" / "study-small.json").read_text())
    assert [cell["state"] for cell in result["cells"]] == ["finished"] * 2 + ["missing"] * 2
    logs = {log.name: log.read_text() for log in cells.glob("data=good*.log")}
    assert [text.count("--resume") for name, text in sorted(logs.items())] == [1, 0]
