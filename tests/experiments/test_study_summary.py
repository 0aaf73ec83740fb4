import math

import pytest

from diffmix.experiments.study_file import Cell, Study
from diffmix.experiments.study_summary import good_side, study_result, study_table, verdict
from diffmix.training.recipe import recipe_from_mapping

ENVIRONMENT = {"device": "some CPU", "device_type": "cpu", "threads": 2, "revision": "a" * 40}


def make_study(seeds=3, **changes):
    cells = tuple(
        Cell(
            {"model": model, "epochs": epochs, "seed": str(seed)},
            recipe_from_mapping({"model": model, "epochs": int(epochs), "seed": seed}, name="some"),
        )
        for model in ("tfidf", "diffmix")
        for epochs in ("1", "2")
        for seed in range(seeds)
    )
    keys = {
        "name": "some",
        "source": "/elsewhere/some.yaml",
        "content": {"recipe": "some"},
        "overrides": ("max_length=8",),
        "axes": {"model": ("tfidf", "diffmix"), "epochs": ("1", "2"), "seed": tuple(map(str, range(seeds)))},
        "compared": ("model", "tfidf"),
        "metrics": ("test/nll", "test/accuracy", "test/entropy_mean"),
        "cells": cells,
    }
    return Study(**{**keys, **changes})


def measured(study, metrics):
    """Every cell finished, with `metrics(cell)`."""
    return {cell.label: {"metrics": metrics(cell), "history": [], "environment": ENVIRONMENT} for cell in study.cells}


def values(cell):
    seed, ours = int(cell.values["seed"]), cell.values["model"] == "diffmix"
    # What the seed does is large and the same for both; what the model does is small.
    return {
        "test/nll": 1 + seed - 0.1 * ours + 0.001 * seed * ours,
        "test/accuracy": 0.5 + 0.1 * seed - 0.05 * ours,
        "test/entropy_mean": 2.0 + 0.5 * ours,
    }


def test_pairing_over_seeds_sees_what_the_means_do_not():
    study = make_study()
    result = study_result(study, measured(study, values))
    assert len(result["means"]) == 4
    assert len(result["differences"]) == 2
    assert [row["axes"] for row in result["differences"]] == [
        {"model": "diffmix", "epochs": "1"},
        {"model": "diffmix", "epochs": "2"},
    ]
    first, second = result["means"][0]["metrics"]["test/nll"], result["means"][2]["metrics"]["test/nll"]
    assert first["low"] < second["mean"] < first["high"]  # by themselves they cannot be told apart
    metrics = result["differences"][0]["metrics"]
    assert metrics["test/nll"]["mean"] == pytest.approx(-0.099)
    assert metrics["test/nll"]["n"] == 3
    assert [metrics[metric]["verdict"] for metric in study.metrics] == ["better", "worse", "higher"]
    assert result["resolved"]["name"] == "some"
    assert "seed" not in result["resolved"]
    assert result["cells"][0]["environment"] == {}
    assert result["command"] == "diffmix study some.yaml --set max_length=8"
    table = study_table(result)
    assert "−0.0990 ± 0.0025 better" in table
    assert "some CPU" in table
    assert "Missing" not in table


def test_facts_of_the_data_are_not_compared():
    study = make_study(metrics=("test/nll", "data/yardstick_majority"))
    table = study_table(
        study_result(study, measured(study, lambda cell: values(cell) | {"data/yardstick_majority": 0.2}))
    )
    means, differences = table.split("Mean ±")
    assert "data/yardstick_majority" in means
    assert "data/yardstick_majority" not in differences
    assert "test/nll" in differences


def test_one_seed_has_no_interval_and_decides_nothing():
    study = make_study(seeds=1)
    result = study_result(study, measured(study, values))
    assert result["means"][0]["metrics"]["test/nll"] == {"mean": 1.0, "low": None, "high": None, "n": 1}
    assert {row["metrics"]["test/nll"]["verdict"] for row in result["differences"]} == {"undecided"}
    assert "±" not in study_table(result).split("Mean ±")[0]


def test_what_is_missing_is_marked_and_pairs_are_of_seeds_that_both_have():
    study = make_study()
    finished = measured(study, values)
    for label in ("model=tfidf, epochs=1, seed=0", *(f"model=diffmix, epochs=2, seed={seed}" for seed in range(3))):
        del finished[label]
    result = study_result(study, finished)
    assert len(result["missing"]) == 4
    assert [cell["state"] for cell in result["cells"]].count("missing") == 4
    ours, gone = result["differences"]
    assert ours["metrics"]["test/nll"]["n"] == 2
    assert gone["metrics"]["test/nll"] == {"mean": None, "low": None, "high": None, "n": 0, "verdict": "undecided"}
    table = study_table(result)
    assert "2 of 3" in table
    assert "0 of 3" not in table  # what has not begun fills no row
    assert "–" not in table
    assert "Missing: 4 of 12 cells." in table
    nothing = study_result(study, {})
    assert len(nothing["missing"]) == 12
    assert "0 of 3" in study_table(nothing)


def test_a_diverged_run_is_left_out_and_said_so():
    study = make_study()
    finished = measured(study, values)
    finished["model=tfidf, epochs=1, seed=2"]["metrics"] |= {"test/nll": math.inf}
    result = study_result(study, finished)
    assert result["means"][0]["metrics"]["test/nll"]["n"] == 2
    assert "(n = 2)" in study_table(result)


def test_cells_of_another_revision_are_named():
    study = make_study()
    finished = measured(study, values)
    last = list(finished)[-1]
    finished[last] = {**finished[last], "environment": {**ENVIRONMENT, "revision": "b" * 40}}
    result = study_result(study, finished)
    assert result["cells"][-1]["environment"] == {"revision": "b" * 40}
    assert "revisions aaaaaaaa, bbbbbbbb" in study_table(result)


def test_without_seeds_or_comparison_there_is_one_table():
    study = make_study(seeds=1, compared=None, axes={"model": ("tfidf", "diffmix"), "epochs": ("1", "2")})
    cells = tuple(Cell({k: v for k, v in cell.values.items() if k != "seed"}, cell.recipe) for cell in study.cells)
    study = Study(**{**vars(study), "cells": cells})
    result = study_result(study, measured(study, lambda cell: {"test/nll": 1.0}))
    assert result["differences"] == []
    assert study_table(result).count("\n| ---") == 1
    assert "1 of 1" in study_table(result)


@pytest.mark.parametrize(
    ("metric", "side"),
    [
        ("test/accuracy", 1),
        ("train/tokens_per_second", 1),
        ("test/macro_f1", 1),
        ("test/nll", -1),
        ("test/ece_equal_mass", -1),
        ("test/word_perplexity", -1),
        ("test/bits_per_byte", -1),
        ("train/seconds_per_epoch", -1),
        ("train/peak_memory_bytes", -1),
        ("test/ece_noise_floor", 0),
        ("test/overconfidence", 0),
        ("parameters", 0),
    ],
)
def test_which_way_is_better(metric, side):
    assert good_side(metric) == side
    assert verdict(metric, 0.1, 0.2) == {1: "better", -1: "worse", 0: "higher"}[side]
    assert verdict(metric, -0.2, -0.1) == {1: "worse", -1: "better", 0: "lower"}[side]
    assert verdict(metric, -0.1, 0.1) == verdict(metric, math.nan, math.nan) == "undecided"


def test_costs_are_compared_on_one_device_only():
    study = make_study(metrics=("test/nll", "train/seconds"))
    finished = measured(
        study, lambda cell: {**values(cell), "train/seconds": 5.0 + ("diffmix" in cell.values.values())}
    )
    alike = study_result(study, finished)
    assert "Devices differ" not in study_table(alike)
    for seed in ("1", "2"):
        elsewhere = {**ENVIRONMENT, "device": "a GPU", "device_type": "cuda"}
        finished[f"model=diffmix, epochs=1, seed={seed}"]["environment"] = elsewhere
    result = study_result(study, finished)
    first, second = (row["metrics"] for row in result["differences"])
    assert (first["train/seconds"]["n"], second["train/seconds"]["n"]) == (1, 3)
    assert first["test/nll"] == alike["differences"][0]["metrics"]["test/nll"]
    assert "Devices differ (a GPU; some CPU, 2 threads): compare no times" in study_table(result)
