"""Easier rows that join train."""

import numpy as np
import pytest
from refusals import refusal

from diffmix.errors import RequestError
from diffmix.tasks import load_task
from diffmix.tasks.long_range_arena import curriculum
from diffmix.tasks.long_range_arena.expressions import evaluate, to_text
from diffmix.tasks.long_range_arena.listops import generate

pytestmark = pytest.mark.usefixtures("small")


def test_easier_sets_join_train_and_nothing_else():
    plain = load_task("listops", on_notice=lambda _: None)
    task = load_task("listops", extra_train=("one_operator", "two_levels"), on_notice=lambda _: None)
    assert len(task.train) == 180
    lengths = task.train.input_ids.lengths
    assert (lengths[:60] >= 40).all()
    assert (lengths[60:120] <= 12).all()
    assert (lengths[120:] <= 31).all()
    assert all(np.array_equal(task.train.input_ids[row], plain.train.input_ids[row]) for row in range(60))
    assert np.array_equal(evaluate(np.concatenate(list(task.train.input_ids)).astype(np.uint8)), task.train.labels)
    for part, other in ((task.validation, plain.validation), (task.load_test(), plain.load_test())):
        assert all(np.array_equal(mine, own) for mine, own in zip(part.input_ids, other.input_ids, strict=True))
    assert task.facts["train_rows"] == 180
    assert task.facts["extra_train"] == "one_operator, two_levels: 60 rows of shorter expressions each"


def test_of_the_shortest_there_are_few_and_each_comes_again(monkeypatch):
    monkeypatch.setitem(curriculum._DISTINCT, "few_arguments", 25)
    task = load_task("listops", extra_train=("few_arguments",), on_notice=lambda _: None)
    rows = [task.train.input_ids[row].tobytes() for row in range(60, 120)]
    assert len(rows) == 60
    assert len(set(rows)) == 25
    assert rows[:25] == rows[25:50]
    assert np.array_equal(task.train.labels[60:85], task.train.labels[85:110])


def test_so_many_expressions_of_few_arguments_there_are():
    distinct = curriculum._DISTINCT["few_arguments"]
    assert len(generate(distinct, 1, 4, 5, max_depth=2).labels) == distinct
    with pytest.raises(ValueError, match="different expressions"):
        generate(distinct + 1, 1, 4, 5, max_depth=2)


def test_a_limit_holds_for_each_set():
    task = load_task("listops", extra_train=("one_operator",), limit=7, on_notice=lambda _: None)
    assert len(task.train) == 14
    assert (task.train.input_ids.lengths[7:] <= 12).all()


def test_an_easier_set_is_drawn_once_and_is_the_start_of_the_stream_of_its_seed(monkeypatch):
    drawn = generate(60, 1, 4, 12, max_depth=2)
    for _ in range(2):
        task = load_task("listops", extra_train=("one_operator",), on_notice=lambda _: None)
        assert np.array_equal(np.concatenate([task.train.input_ids[row] for row in range(60, 120)]), drawn.ids)
        assert np.array_equal(task.train.labels[60:], drawn.labels)
        monkeypatch.setattr(curriculum, "generate", None)  # the second time it is read


def test_what_the_test_split_tells_of_official_files_joins_the_facts(tmp_path):
    files = {"train": (0, 100), "val": (100, 120), "test": (120, 140)}
    drawn = generate(140, 0, 40, 60)
    for name, rows in files.items():
        lines = [
            f"{to_text(drawn.ids[drawn.offsets[row] : drawn.offsets[row + 1]])}\t{drawn.labels[row]}"
            for row in range(*rows)
        ]
        (tmp_path / f"basic_{name}.tsv").write_text("\n".join(["Source\tTarget", *lines, ""]))
    task = load_task("listops", data=tmp_path, extra_train=("one_operator",), on_notice=lambda _: None)
    assert len(task.load_test()) == 20
    assert "yardstick_majority" in task.facts
    assert task.facts["train_rows"] == 200


@pytest.mark.parametrize("held", ["val", "test"])
def test_given_files_with_short_expressions_take_no_easier_ones(tmp_path, held):
    long, short = f"[SM {'1 ' * 40}]\t0", "[MAX 2 9 ]\t9"
    for split in ("train", "val", "test"):
        (tmp_path / f"basic_{split}.tsv").write_text(f"Source\tTarget\n{short if split == held else long}\n")
    with pytest.raises(RequestError, match="one of 4, which could be the same: leave few_arguments out"):
        load_task("listops", data=tmp_path, extra_train=("few_arguments",), on_notice=lambda _: None).load_test()


def test_a_set_that_is_given_twice_is_refused():
    twice = ("one_operator", "two_levels", "one_operator")
    assert "'one_operator' is given twice" in refusal("listops", extra_train=twice, on_notice=lambda _: None)


@pytest.mark.parametrize("name", ["pathfinder", "pathfinder_x"])
def test_a_quarter_as_many_images_of_shorter_contours_join_train(name, monkeypatch):
    plain = load_task(name, on_notice=lambda _: None)
    for _ in range(2):
        task = load_task(name, extra_train=("contours_3", "contours_9"), on_notice=lambda _: None)
        rows = np.stack(list(task.train.input_ids))
        assert len(rows) == 8 + 2 + 2
        assert np.array_equal(rows[:8], np.stack(list(plain.train.input_ids)))
        # Less of an image is drawn on where contours are shorter.
        inked = (rows > 1).mean(axis=1)
        assert inked[8:10].mean() < inked[10:].mean() < inked[:8].mean()
        assert task.train.labels[8:10].sum() == task.train.labels[10:].sum() == 1
        assert task.facts["extra_train"] == "contours_3, contours_9: 2 rows of shorter contours each"
        # In the length warm-up own images join when those of 9 strokes are there.
        growth = task.train.growth
        assert growth[8:10].tolist() == [3, 3]
        assert ((growth[10:] > 3) & (growth[10:] <= 9)).all()
        assert ((growth[:8] > 9) & (growth[:8] <= 14)).all()
        for part, other in ((task.validation, plain.validation), (task.load_test(), plain.load_test())):
            assert all(np.array_equal(mine, own) for mine, own in zip(part.input_ids, other.input_ids, strict=True))
        monkeypatch.setattr(curriculum, "write_images", None)  # the second time they are read


@pytest.mark.parametrize(
    ("task", "name", "words"),
    [
        (
            "listops",
            "middle",
            "takes few_arguments, one_operator, nested, two_levels",
        ),  # its expressions could stand in the test set
        ("listops_short", "short", "takes few_arguments, whose"),
        ("listops", "easy", "got 'easy'"),
        (
            "pathfinder",
            "one_operator",
            "takes contours_3, contours_4, contours_6, contours_9, whose contours are shorter than its own, got",
        ),
        ("pathfinder", "contours_14", "got 'contours_14'"),
    ],
)
def test_others_are_refused(task, name, words):
    assert words in refusal(task, extra_train=(name,), on_notice=lambda _: None)
