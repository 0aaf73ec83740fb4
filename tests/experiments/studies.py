"""Studies for tests: real ones of a few steps, and light ones whose cells are processes that stand for `diffmix train`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

# No key of a model's configuration: checking these recipes imports no torch, so that a study's own process starts quickly.
LIGHT = """
recipe: {recipe}
grid:
  epochs: [1, 2]
  seed: [0, 1, 2]
compare: {{axis: epochs, baseline: 1}}
metrics: [test/accuracy, test/nll]
"""

# Takes a while, fails where a file tells it to, and counts its starts and ends beside the cells' folders; `again` is the start of
# a cell that was finished.
_TRAIN = """
import json, os, pathlib, sys, time, yaml
recipe, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
keys = yaml.safe_load(recipe.read_text())
folder.mkdir(exist_ok=True)
part = folder / "recipe.yaml.tmp"
part.write_text(recipe.read_text())
part.replace(folder / "recipe.yaml")
record = os.open(folder.parent / "record", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
word = "again" if (folder / "metrics.json").exists() else "start"
os.write(record, f"{word} {folder.name}\\n".encode())
if pathlib.Path("broken").exists() and keys["seed"] == 1:
    sys.exit("error: the data are gone: bring them back")
time.sleep(float(os.environ.get("TAKES", "0.05")))
seed, epochs = keys["seed"], keys["epochs"]
os.write(record, f"end {folder.name}\\n".encode())
part = folder / "metrics.json.tmp"
part.write_text(json.dumps({"task": "none", "test/accuracy": 0.5 + 0.1 * epochs + 0.01 * seed, "test/nll": 1.0 + seed}))
part.replace(folder / "metrics.json")
"""

_PATCHED = """
import sys
import diffmix.experiments.study_engines as engines
engines.train_command = lambda recipe, folder, data=None: [sys.executable, TRAIN, recipe, str(folder)]
"""


def write_light(folder: Path) -> Path:
    """A study of six light cells, two of them a pair for each seed."""
    (folder / "base.yaml").write_text("task: text_file\nmodel: tfidf\n")
    (folder / "train.py").write_text(_TRAIN)
    (folder / "light.yaml").write_text(LIGHT.format(recipe="base.yaml"))
    return folder / "light.yaml"


def _hears_interrupts() -> None:
    # Tests that run in the background inherit an interrupt that is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start_light(folder: Path, *arguments: str, takes: float = 0.05) -> subprocess.Popen:
    """`diffmix study light.yaml` in a process and a session of its own, with the light cells."""
    main = "from diffmix.cli.main import main; sys.exit(main(sys.argv[1:]))"
    code = _PATCHED.replace("TRAIN", repr(str(folder / "train.py"))) + main
    return subprocess.Popen(
        [sys.executable, "-c", code, "study", "light.yaml", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TAKES": str(takes)},
        preexec_fn=_hears_interrupts,
    )


def record(folder: Path) -> list[str]:
    """What the light cells of a study did: `start CELL` (or `again CELL`) and `end CELL`."""
    file = folder / "runs" / "study" / "light" / "record"
    return file.read_text().splitlines() if file.is_file() else []
