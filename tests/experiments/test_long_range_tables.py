from diffmix.experiments.long_range_tables import long_range_arena_table


def cell(task, attention, accuracy, steps, seed="0"):
    return {
        "axes": {"recipe": task, "attention": attention, "seed": seed},
        "state": "finished",
        "metrics": {"test/accuracy": accuracy, "train/steps": steps},
    }


def test_what_was_reached_stands_below_what_is_published():
    result = {
        "command": "diffmix study lra",
        "environment": {"device": "a CPU"},
        "axes": {"recipe": ["listops", "newsgroups_retrieval", "pathfinder"], "attention": ["neighbor", "softmax"]},
        "cells": [
            cell("listops", "neighbor", 0.5, 20_000),
            cell("listops", "neighbor", 0.52, 30_000, seed="1"),
            cell("newsgroups_retrieval", "softmax", 0.6, 300),
            {**cell("pathfinder", "neighbor", 0, 0), "state": "missing"},
        ],
    }
    lines = long_range_arena_table(result).splitlines()
    rows = {
        cells[1].strip(): [text.strip() for text in cells[2:-1]] for cells in (line.split("|") for line in lines[:-2])
    }
    assert rows[""] == ["listops", "newsgroups_retrieval"]
    assert rows["S4, published"] == ["59.60", ""]
    assert rows["`neighbor`"] == ["51.00 ± 12.71 (20 k to 30 k)", "not run"]
    assert rows["`softmax`"] == ["not run", "60.00 (300)"]
