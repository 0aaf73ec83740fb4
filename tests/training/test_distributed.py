"""Runs in processes of their own: torchrun, and a run that is killed."""

import json
import signal
import subprocess
import sys
import time

import pytest
from test_trainer import reproducible

from small_runs import SMALL

pytestmark = pytest.mark.slow


def arguments(data, output, *overrides):
    sets = [part for override in [*SMALL, *overrides] for part in ("--set", override)]
    return ["-m", "diffmix", "train", "text_file", "--data", str(data), "--output", str(output), *sets]


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_losses_of_one(names_csv, tmp_path):
    still = ["hidden_dropout=0", "classifier_dropout=0", "class_balance=loss", "evaluations_per_epoch=3"]
    run([sys.executable, *arguments(names_csv, tmp_path / "one", *still)])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run([*torchrun, *arguments(names_csv, tmp_path / "two", *still)])
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) > 3
    for left, right in zip(one, two, strict=True):
        for key in ("step", "train/loss", "train/accuracy", "validation/loss", "validation/accuracy"):
            assert right[key] == pytest.approx(left[key], abs=1e-4), key
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert metrics[1]["test/nll"] == pytest.approx(metrics[0]["test/nll"], abs=1e-4)
    assert metrics[1]["train/tokens"] == metrics[0]["train/tokens"]


def test_a_killed_run_resumes_to_the_same_metrics(names_csv, tmp_path):
    recipe = ["epochs=15", "noise_std=0.05", "hidden_dropout=0.1"]
    run([sys.executable, *arguments(names_csv, tmp_path / "whole", *recipe)])
    command = [sys.executable, *arguments(names_csv, tmp_path / "killed", *recipe)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    lines = tmp_path / "killed/metrics.jsonl"
    while (not lines.is_file() or lines.read_text().count("\n") < 8) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/metrics.json").exists()
    run([*command, "--resume"])
    whole, killed = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "killed"))
    assert reproducible(killed) == reproducible(whole)
    assert [row["train/loss"] for row in log(tmp_path / "killed")] == [
        row["train/loss"] for row in log(tmp_path / "whole")
    ]
