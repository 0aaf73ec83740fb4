"""Generated tasks: splits, the cache, and what happens to it when processes die, meet or find it damaged."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from refusals import refusal

from diffmix.errors import RequestError, RunError
from diffmix.tasks import load_task
from diffmix.tasks.encoding import PaddingCollator, encode
from diffmix.tasks.long_range_arena import GENERATED_TASKS, generated
from diffmix.tasks.long_range_arena.cache import read_set
from diffmix.tasks.long_range_arena.expressions import evaluate
from diffmix.tasks.token_rows import TokenRows

pytestmark = pytest.mark.usefixtures("small")


def load(name, **arguments):
    notices = []
    return load_task(name, on_notice=notices.append, **arguments), notices


def folder_of(cache, name="listops"):
    return next(path for path in cache.iterdir() if path.name.startswith(f"{name}-"))


def test_listops_has_its_splits_symbols_and_yardsticks():
    task, notices = load("listops")
    assert len(notices) == 1
    assert "generating" in notices[0]
    test = task.load_test()
    assert [len(part) for part in (task.train, task.validation, test)] == [60, 20, 20]
    assert (task.vocab_size, task.label_names, task.pixels) == (16, tuple("0123456789"), False)
    rows = [row for part in (task.train, task.validation, test) for row in part.input_ids]
    assert len({row.tobytes() for row in rows}) == 100  # none is in two splits
    assert all(40 <= len(row) <= 60 and row.min() >= 1 and row.max() <= 15 for row in rows)
    labels = np.concatenate([part.labels for part in (task.train, task.validation, test)])
    assert np.array_equal(evaluate(np.concatenate(rows).astype(np.uint8)), labels)
    assert 40 <= task.facts["length_median"] <= 60
    assert 0 <= task.facts["yardstick_root_operator"] <= task.facts["yardstick_three_levels"] <= 1
    again, notices = load("listops", limit=7)
    assert notices == []  # from the cache
    assert (len(again.train), len(again.validation), len(again.load_test())) == (7, 7, 7)


@pytest.mark.parametrize("name", ["pathfinder", "pathfinder_x"])
def test_pathfinder_has_balanced_splits_of_pixels_above_padding(name):
    task, _ = load(name)
    test = task.load_test()
    side = {"pathfinder": 32, "pathfinder_x": 128}[name]
    for part, rows in ((task.train, 8), (task.validation, 4), (test, 6)):
        assert part.label_counts(2).tolist() == [rows // 2] * 2
        assert (part.input_ids.lengths == side**2).all()
        assert (part.input_ids[0].min(), part.input_ids[0].max()) == (1, 256)
    assert (task.vocab_size, task.pixels) == (257, True)


def test_rows_stay_on_disk_and_make_batches():
    task, _ = load("listops_short")
    assert isinstance(task.train.input_ids, TokenRows)
    assert isinstance(task.train.input_ids.flat, np.memmap)
    rows = encode(task.train, None, 15)
    assert (rows.lengths <= 15).all()
    assert len(rows) == 60
    batch = PaddingCollator(0, 15)([rows[index] for index in (0, 1, 59)])
    assert batch["attention_mask"].sum(dim=1).tolist() == rows.lengths[[0, 1, 59]].tolist()
    assert (batch["input_ids"][batch["attention_mask"] == 1] > 0).all()
    few = task.train.take(np.array([5, 3]))
    assert np.array_equal(few.input_ids[1], task.train.input_ids[3])
    assert few.labels.tolist() == task.train.labels[[5, 3]].tolist()


def test_a_generation_that_dies_leaves_nothing_that_is_read(small, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(generated, "rounded_yardsticks", dies)
    with pytest.raises(KeyboardInterrupt):
        load("listops")
    assert [path.suffix for path in small.iterdir()] == [".lock"]


def test_what_a_killed_process_left_is_removed(small):
    load("listops")
    folder = folder_of(small)
    left = small / f".{folder.name}.abc.partial"
    folder.rename(left)  # as if killed just before the end
    _, notices = load("listops")
    assert len(notices) == 1
    assert not left.exists()
    assert read_set(folder_of(small), "listops") is not None


def _rewrite_header(folder, **changes):
    path = folder / "set.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def _cut_as_noted(folder, name):
    """As a full disk may have left it: set.json says the size of a file that was cut short."""
    os.truncate(folder / name, (folder / name).stat().st_size - 3)
    _rewrite_header(folder, files={path.name: path.stat().st_size for path in folder.glob("*.npy")})


DAMAGE = {
    "cut": lambda folder: os.truncate(folder / "train.ids.npy", 200),
    "ids cut as noted": lambda folder: _cut_as_noted(folder, "train.ids.npy"),
    "labels cut as noted": lambda folder: _cut_as_noted(folder, "test.labels.npy"),
    "missing": lambda folder: (folder / "test.labels.npy").unlink(),
    "header": lambda folder: (folder / "set.json").write_text("{", encoding="utf-8"),
    "facts": lambda folder: _rewrite_header(folder, statistics=None),
    "parameters": lambda folder: _rewrite_header(folder, parameters=[1]),
    "list": lambda folder: (folder / "set.json").write_text("[]", encoding="utf-8"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_set_is_made_anew_in_the_cache_and_refused_elsewhere(small, tmp_path, damage):
    generated.write_generated("listops", tmp_path / "own")
    damage(tmp_path / "own")
    assert "generate" in refusal("listops", data=tmp_path / "own")
    before, _ = load("listops")
    row = before.train.input_ids[59]
    del before  # which reads from the file
    damage(folder_of(small))
    after, notices = load("listops")
    assert "generated anew" in notices[0]
    assert np.array_equal(after.train.input_ids[59], row)


def test_sets_are_read_from_data_and_others_are_refused(tmp_path):
    made = generated.write_generated("listops", tmp_path / "sets/listops")
    for data in (tmp_path / "sets", tmp_path / "sets/listops"):
        task, notices = load("listops", data=data)
        assert (len(task.train), notices) == (60, [])
    assert "holds a generated set of the task 'listops'" in refusal("listops_short", data=made.folder)
    assert "holds no set.json" in refusal("pathfinder", data=tmp_path)
    assert "does not exist" in refusal("listops", data=tmp_path / "none")
    labels = np.load(made.folder / "validation.labels.npy")
    np.save(made.folder / "validation.labels.npy", (labels + (np.arange(20) == 7)) % 10)
    assert "of row 8, which has another value; generate" in refusal("listops", data=made.folder)
    np.save(made.folder / "train.labels.npy", np.full(60, 10, dtype=np.uint8))
    assert "over 9" in refusal("listops", data=made.folder)
    header = json.loads((made.folder / "set.json").read_text())
    (made.folder / "set.json").write_text(json.dumps({**header, "format": 99}))
    assert "format 99" in refusal("listops", data=made.folder)


@contextlib.contextmanager
def room_for(size):
    """Files may grow to so many bytes: more ends as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits the size of files as Unix does")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["listops", "pathfinder"])
def test_a_full_disk_leaves_no_set_in_the_cache(small, name):
    with room_for(2000), pytest.raises(RequestError, match="; set DIFFMIX_CACHE to a folder with room"):
        load(name)  # train.ids.npy is over 2,000 bytes, of listops by less than a buffer
    assert [path.suffix for path in small.iterdir()] == [".lock"]
    task, notices = load(name)
    assert len(notices) == 1
    assert len(task.train) == generated.GENERATED[name].rows[0]


@pytest.mark.parametrize("name", ["listops", "pathfinder"])
def test_a_full_disk_leaves_no_set_in_a_given_folder_and_is_named(tmp_path, name):
    with room_for(2000), pytest.raises(RunError, match="own: File too large; free some room or give another folder"):
        generated.write_generated(name, tmp_path / "own")
    assert [path for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_a_place_that_is_none_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="give a new or empty folder"):
        generated.write_generated("listops", tmp_path / "file/x")


TWO = """
import sys
from diffmix.tasks.long_range_arena import generated, load_long_range_arena
from diffmix.tasks.long_range_arena.listops import Grammar
from diffmix.tasks.splits import Cut
generated.GENERATED["listops"] = generated.GeneratedTask((1500, 20, 20), Grammar(40, 60))
task = load_long_range_arena("listops", data=None, how=Cut(0.1, 0), on_notice=print)
print(int(task.train.input_ids.flat.sum()))
"""


def test_of_two_processes_one_generates_and_both_read_the_same(small):
    running = [subprocess.Popen([sys.executable, "-c", TWO], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(len(lines) for lines in outputs) == [1, 2]  # one said that it generates
    assert outputs[0][-1] == outputs[1][-1]
    assert sum(path.is_dir() for path in small.iterdir()) == 1


def test_a_cache_that_may_not_be_written_is_named(small, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied", str(small))

    monkeypatch.setattr("diffmix.tasks.long_range_arena.cache.write_set", refused)
    with pytest.raises(RequestError, match="DIFFMIX_CACHE"):
        load("listops")


def test_all_generated_tasks_are_known():
    assert tuple(generated.GENERATED) == GENERATED_TASKS


def test_a_set_from_elsewhere_holds_whole_expressions_only(tmp_path):
    for name, change in {
        "open": lambda ids: np.concatenate([ids[:-1], [11]]),
        "operators": lambda ids: np.full_like(ids, 11),
        "closed": lambda ids: np.full_like(ids, 15),
        "digits": lambda ids: np.ones_like(ids),
    }.items():
        generated.write_generated("listops", tmp_path / name)
        file = tmp_path / name / "train.ids.npy"
        np.save(file, change(np.load(file)).astype(np.uint8))
        assert "train" in refusal("listops", data=tmp_path / name)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [("ids", np.uint8, "ids from .* to 99"), ("offsets", np.int64, "rows without an id")],
)
def test_a_set_from_elsewhere_holds_ids_of_its_task_only(tmp_path, name, array, words):
    generated.write_generated("listops", tmp_path / "own")
    file = tmp_path / "own" / f"train.{name}.npy"
    values = np.load(file)
    values[3] = 99 if name == "ids" else values[2]
    np.save(file, values.astype(array))
    with pytest.raises(RequestError, match=words):
        load("listops", data=tmp_path / "own")


@pytest.mark.parametrize(
    ("name", "pixels"), [("pathfinder", "1024 of 32 x 32"), ("pathfinder_x", "16384 of 128 x 128")]
)
def test_a_set_from_elsewhere_holds_whole_images_only(tmp_path, name, pixels):
    generated.write_generated(name, tmp_path / "own")
    file = tmp_path / "own/validation.offsets.npy"
    offsets = np.load(file)
    offsets[3] = offsets[2] + 17
    np.save(file, offsets)
    assert f"validation row 3 has 17 ids, not the {pixels} pixels; generate" in refusal(name, data=tmp_path / "own")


def test_a_set_is_written_into_the_folder_one_is_in(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    generated.write_generated("listops", Path())
    assert read_set(here, "listops") is not None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


MANY = """
import os, time
from diffmix.tasks.long_range_arena.chunks import in_order

def work(number):
    time.sleep(0.2)
    return os.getpid()

for worker in in_order(work, 2):
    print(worker, flush=True)
"""


def runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes run")
def test_workers_end_with_a_process_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", MANY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = {int(process.stdout.readline()) for _ in range(6)}
        process.kill()
    assert process.pid not in workers
    deadline = time.monotonic() + 30
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, workers))
