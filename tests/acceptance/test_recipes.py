"""The recipes on embedded data at full size: what they reach must not fall behind what was measured when they were made."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(("recipe", "accuracy"), [("digits", 0.93), ("language_id", 0.75)])
def test_reaches_its_accuracy(recipe, accuracy, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "diffmix", "train", recipe, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((output / "metrics.json").read_text())["test/accuracy"] >= accuracy
