"""The README's commands and examples work as they are written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"^    (diffmix [^#\n]*)", README, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A folder with the README's reviews.csv and the run that its first command makes, on few steps."""
    folder = tmp_path_factory.mktemp("readme")
    lines = [f'"a {word} film, number {row}",{word}' for row in range(60) for word in ("good", "bad")]
    (folder / "reviews.csv").write_text("\n".join(["review,label", *lines]))
    train = [*shlex.split(COMMANDS[0]), "--set", "text_column=review", "--set", "max_steps=4"]
    done = subprocess.run([sys.executable, "-m", *train], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_first_block_trains_and_predicts(reviews):
    assert [shlex.split(command)[1] for command in COMMANDS] == ["train", "predict"]
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(COMMANDS[1])], cwd=reviews, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout or "bad" in done.stdout


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_examples_run(number, reviews, monkeypatch):
    monkeypatch.chdir(reviews)
    exec(compile(PYTHON[number], f"README example {number}", "exec"), {})


def test_there_are_examples():
    assert len(PYTHON) >= 3
