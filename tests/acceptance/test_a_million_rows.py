"""A file of a million rows is trained on from disk, in little memory. The small version is in tests/training."""

import json
import subprocess
import sys

import pytest

ROWS = 1_000_000

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    path = tmp_path_factory.mktemp("million") / "rows.csv"
    with path.open("w") as file:
        file.write("text,label\n")
        for row in range(ROWS):
            word = "good" if row % 2 else "bad"
            file.write(f"number {row} is a {word} number and {row * 7919 % ROWS} is another,{word}\n")
    return path


def test_trains_in_the_memory_of_its_buffer(million, tmp_path):
    command = [
        sys.executable,
        "-m",
        "diffmix",
        "train",
        "text_file",
        "--data",
        str(million),
        "--output",
        str(tmp_path / "run"),
    ]
    for override in (
        "stream=true",
        "max_steps=400",
        "hidden_size=32",
        "num_hidden_layers=2",
        "tokenizer=wordpiece-2000",
    ):
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["train/examples"] > 0.9 * ROWS
    assert metrics["test/accuracy"] > 0.99
    assert metrics["train/peak_memory_bytes"] < 1.5e9  # the file alone, as Python strings, is more than a tenth of that
