"""Generated tasks with few rows, in a cache of the test's own."""

import pytest

from diffmix.tasks.long_range_arena import generated
from diffmix.tasks.long_range_arena.generated import GENERATED, GeneratedTask
from diffmix.tasks.long_range_arena.listops import Grammar


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The folder of the cache."""
    monkeypatch.setenv("DIFFMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(GENERATED, "listops", GeneratedTask((60, 20, 20), Grammar(40, 60)))
    monkeypatch.setitem(GENERATED, "listops_short", GeneratedTask((60, 20, 20), Grammar(10, 20)))
    for name in ("pathfinder", "pathfinder_x"):
        monkeypatch.setitem(GENERATED, name, GeneratedTask((8, 4, 6), GENERATED[name].content))
    monkeypatch.setattr(generated, "_IMAGES_AT_ONCE", 8)
    return tmp_path / "cache"
