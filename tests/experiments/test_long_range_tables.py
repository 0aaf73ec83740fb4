from diffmix.experiments.long_range_tables import long_range_arena_table


def cell(task, attention, accuracy, steps, seed="0", **metrics):
    measured = {"test/accuracy": accuracy, "test/accuracy_low": accuracy - 0.02, "train/steps": steps}
    return {
        "axes": {"recipe": task, "attention": attention, "seed": seed},
        "state": "finished",
        "environment": {},
        "metrics": measured | metrics,
    }


def rows_of(table):
    lines = table.splitlines()[:-2]
    return {cells[1].strip(): [text.strip() for text in cells[2:-1]] for cells in (line.split("|") for line in lines)}


def test_what_was_reached_stands_below_what_is_published():
    result = {
        "command": "diffmix study lra",
        "environment": {"device": "a CPU"},
        "axes": {"recipe": ["listops", "newsgroups_retrieval", "pathfinder"], "attention": ["neighbor", "softmax"]},
        "cells": [
            cell("listops", "neighbor", 0.5, 20_000, **{"data/yardstick_majority": 0.175}),
            cell("listops", "neighbor", 0.52, 30_000, seed="1", **{"data/yardstick_majority": 0.175}),
            cell("newsgroups_retrieval", "softmax", 0.6, 300),
            {**cell("pathfinder", "neighbor", 0, 0), "state": "missing"},
        ],
    }
    rows = rows_of(long_range_arena_table(result))
    assert rows[""] == ["listops", "newsgroups_retrieval"]
    assert rows["S4, published"] == ["59.60", ""]
    assert rows["the most frequent class"] == ["17.50", "50.00"]
    assert rows["`neighbor`"] == ["51.00 ± 12.71 (20 k to 30 k)", "not run"]
    assert rows["`softmax`"] == ["not run", "60.00 (300)"]


def test_what_is_not_above_the_most_frequent_class_is_marked():
    result = {
        "command": "diffmix study lra",
        "environment": {"device": "a CPU"},
        "axes": {"recipe": ["lra_image", "pathfinder"], "attention": ["neighbor", "softmax"]},
        "cells": [
            cell("lra_image", "neighbor", 0.13, 150),
            cell("lra_image", "softmax", 0.119, 150),
            cell("pathfinder", "neighbor", 0.51, 150),
            cell("pathfinder", "neighbor", 0.53, 150, seed="1"),
            cell("pathfinder", "softmax", 0.53, 150),
            cell("pathfinder", "softmax", 0.54, 150, seed="1"),
        ],
    }
    rows = rows_of(long_range_arena_table(result))
    assert rows["`neighbor`"] == ["13.00 (150)", "52.00 ± 12.71° (150)"]
    assert rows["`softmax`"] == ["11.90° (150)", "53.50 ± 6.35° (150)"]


def test_what_goes_on_from_short_expressions_has_a_row_of_its_own_and_what_was_not_run_has_none():
    result = {
        "command": "diffmix study lra",
        "environment": {"device": "a CPU"},
        "axes": {"recipe": ["listops", "pathfinder"], "attention": ["neighbor", "softmax"]},
        "cells": [cell("pathfinder", "neighbor", 0.7, 150)],
    }
    continued = {
        "command": "diffmix study listops",
        "environment": {"device": "another CPU"},
        "cells": [
            {**cell("", "", 0.52, 4500, **{"data/yardstick_majority": 0.175}), "axes": {"model": "neighbor"}},
            {**cell("", "", 0.17, 750, **{"data/yardstick_majority": 0.175}), "axes": {"model": "paper"}},
        ],
    }
    table = long_range_arena_table(result, continued)
    rows = rows_of(table)
    assert rows[""] == ["listops", "pathfinder"]
    assert rows["`neighbor`"] == ["not run", "70.00 (150)"]
    assert rows["`neighbor`, after `listops_short`"] == ["52.00 (4.5 k)", "not run"]
    assert rows["the most frequent class"] == ["17.50", "50.00"]
    assert "`softmax`" not in rows
    assert "Not run on any task: `softmax`." in table
    assert "`diffmix study lra` on a CPU. `diffmix study listops` on another CPU." in table
