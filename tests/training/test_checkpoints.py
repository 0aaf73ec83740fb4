import pytest

from diffmix.training.checkpoints import COMPLETE, damage, find_checkpoints, mark_complete, write_atomically


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-12"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "optimizer.pt").write_bytes(b"y" * 50)
    mark_complete(folder)
    return folder


def test_a_marked_checkpoint_is_whole(checkpoint):
    assert damage(checkpoint) is None


def test_a_truncated_file_shows(checkpoint):
    (checkpoint / "optimizer.pt").write_bytes(b"y" * 49)
    assert damage(checkpoint) == "has a truncated optimizer.pt (49 of 50 bytes)"


def test_a_missing_file_shows(checkpoint):
    (checkpoint / "optimizer.pt").unlink()
    assert damage(checkpoint) == "lacks optimizer.pt"


def test_an_unmarked_checkpoint_was_not_finished(checkpoint):
    (checkpoint / COMPLETE).unlink()
    assert damage(checkpoint) == "was not finished"


def test_a_torn_mark_shows(checkpoint):
    (checkpoint / COMPLETE).write_text('{"model')
    assert damage(checkpoint) == f"has an unreadable {COMPLETE}"


def test_checkpoints_come_latest_first_by_number(tmp_path):
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-x", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-9"]


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    file = tmp_path / "metrics.json"
    file.write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
