"""What holds for every task, and the tasks whose data are embedded in a dependency."""

from __future__ import annotations

import numpy as np
import pytest
from toy_tables import refusal

from diffmix.tasks import TASKS, Examples, load_task


def test_unknown_task_and_arguments_out_of_place():
    assert "did you mean 'ag_news'" in refusal("agnews")
    assert "validation_fraction: got 0" in refusal("digits", validation_fraction=0)
    assert "limit: got 0" in refusal("digits", limit=0)
    assert "data: task 'digits' takes none" in refusal("digits", data="x")
    assert "text_column: task 'imdb' takes none" in refusal("imdb", text_column="x")
    assert "extra_train: task 'text_file' takes none" in refusal("text_file", extra_train=["x"])


@pytest.mark.parametrize("name", ["digits", "language_id", "distant_symbol-7"])
def test_embedded_tasks_have_three_splits_and_repeat(name):
    assert name in TASKS or name.startswith("distant_symbol")
    task, again = load_task(name), load_task(name)
    test, test_again = task.load_test(), again.load_test()
    assert test is not None
    assert test_again is not None
    classes = len(task.label_names)
    for a, b in [(task.train, again.train), (task.validation, again.validation), (test, test_again)]:
        assert isinstance(a, Examples)
        assert isinstance(b, Examples)
        assert np.array_equal(a.labels, b.labels)
        assert (a.label_counts(classes) > 0).all()
        assert a.texts is None or list(a.texts) == list(b.texts or ())
    assert len(load_task(name, limit=10).train) == 10


def test_digits_are_pixels_above_padding():
    task = load_task("digits")
    assert isinstance(task.train, Examples)
    pixels = task.train.input_ids
    assert pixels is not None
    assert pixels.shape[1] == 64
    assert (pixels.min(), pixels.max()) == (1, 17)
    assert task.vocab_size == 18


def test_language_id_passes_over_names_that_repeat_another(monkeypatch):
    """Since Babel 2.19 some units are aliases of others."""
    from babel import localedata

    before = len(load_task("language_id").train)
    load = localedata.load

    def with_alias(code):
        data = load(code)
        alias = localedata.Alias(("unit_display_names", "duration-year"))
        return {**data, "unit_display_names": {**data["unit_display_names"], "a-second-year": alias}}

    monkeypatch.setattr(localedata, "load", with_alias)
    assert len(load_task("language_id").train) == before


def test_language_id_leaks_nothing():
    task = load_task("language_id")
    assert len(task.label_names) >= 30
    test = task.load_test()
    assert test is not None
    assert isinstance(task.train, Examples)
    folded = [{text.casefold() for text in part.texts or ()} for part in (task.train, task.validation, test)]
    assert sum(len(part) for part in folded) == len(set.union(*folded))  # each name once, in one language, in one split
    assert sum(len(part) for part in folded) == len(task.train) + len(task.validation) + len(test)
    # Switzerland's names in French, Italian and Portuguese lie in one split.
    assert sum({"suisse", "svizzera", "suíça"} <= part for part in folded) == 1
    # 日本 and the like are shared by Chinese and Japanese, "Angola" by most.
    assert not any("angola" in part or "日本" in part for part in folded)


def test_a_distant_symbol_stands_at_its_distance_and_nowhere_else():
    task = load_task("distant_symbol-40")
    assert not task.pixels
    test = task.load_test()
    assert test is not None
    for examples in (task.train, task.validation, test):
        assert isinstance(examples, Examples)
        ids = examples.input_ids
        assert ids is not None
        answers = ids <= len(task.label_names)
        assert (answers.sum(axis=1) == 1).all()
        assert (answers.argmax(axis=1) == 40).all()
        assert np.array_equal(ids[:, 40] - 1, examples.labels)
    assert "from 1 to 127" in refusal("distant_symbol-128")
    assert "from 1 to 127" in refusal("distant_symbol-0")
    assert "unknown task" in refusal("distant_symbol-x")
