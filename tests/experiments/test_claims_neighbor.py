import json

import pytest

from diffmix.experiments.claims import claims_table, judge_claims
from diffmix.experiments.claims_neighbor import CLAIMS


def ratio(low, high):
    return {"median": (low + high) / 2, "low": low, "high": high}


def bench(**keys):
    settings = {"batch": 32, "tokens": 512}
    return {
        "recipe": "ag_news_paper",
        "dtype": "bf16",
        "settings": settings,
        "environment": {"device": "a CPU"},
        **keys,
    }


def row(recipe, accuracy, half=0.005, *, model="diffmix", rows=16_000, per_seed=None, history=(), dtype="bf16"):
    metrics = {"test/accuracy": accuracy, "test/accuracy_low": accuracy - half, "test/accuracy_high": accuracy + half}
    return {
        "recipe": recipe,
        "model": model,
        "seeds": 3,
        "metrics": {**metrics, "train/examples": rows},
        "per_seed": [{"test/accuracy": each} for each in per_seed or [accuracy] * 3],
        "history": [list(history)] * 3,
        "resolved": {"dtype": dtype},
    }


def verdicts(folder, **results):
    for name, content in results.items():
        (folder / f"{name.replace('__', '-')}.json").write_text(json.dumps(content))
    return {claim.statement: finding for claim, finding in judge_claims(CLAIMS, folder)}


def test_without_results_every_claim_names_the_command_that_would_measure_it(tmp_path):
    found = judge_claims(CLAIMS, tmp_path)
    assert len(found) == len(CLAIMS)
    assert {finding.verdict for _, finding in found} == {"not measured yet"}
    assert all("diffmix " in finding.numbers for _, finding in found)
    assert "not measured yet" in claims_table(CLAIMS, tmp_path)


def listops(*accuracies, model="paper"):
    cells = [
        {
            "state": "finished",
            "axes": {"model": model, "seed": str(seed)},
            "metrics": {
                "test/accuracy": accuracy,
                "test/accuracy_low": accuracy - 0.015,
                "test/accuracy_high": accuracy + 0.015,
                "data/yardstick_majority": 0.1765,
                "train/steps": 750,
                "train/epochs": 0.25,
            },
        }
        for seed, accuracy in enumerate(accuracies)
    ]
    return {"cells": [*cells, {"state": "missing", "axes": {"model": "paper", "seed": "9"}}]}


def test_what_listops_reaches_stands_beside_the_most_frequent_class(tmp_path):
    name = "Long Range Arena, ListOps: 17.8 %"
    found = verdicts(tmp_path, study__listops=listops(0.1765))[name]
    assert found.verdict == "holds"
    assert (
        "always answering the most frequent class reaches 17.65 %, so nothing of the task was learned" in found.numbers
    )
    assert "750 steps, 0.25 epochs" in found.numbers
    found = verdicts(tmp_path, study__listops=listops(0.3, 0.32, 0.31))[name]
    assert found.verdict == "holds"
    assert "3 seeds" in found.numbers
    assert "nothing of the task" not in found.numbers
    assert verdicts(tmp_path, study__listops=listops(0.1, 0.11))[name].verdict == "does not hold"
    assert verdicts(tmp_path, study__listops=listops(0.5, model="neighbor"))[name].verdict == "not measured yet"


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(30, 35, "holds"), (10, 29.9, "does not hold"), (29, 31, "undecided")]
)
def test_ratios_need_every_pair_on_one_side(tmp_path, low, high, verdict):
    ratios = {"less_memory": ratio(low, high), "more_tokens_per_second": ratio(6, 7)}
    fused = {"less_memory_fused": ratio(5, 5), "more_tokens_per_second_fused": ratio(5, 5)}
    result = bench(ratios={"paper": ratios | fused})
    found = verdicts(tmp_path, bench__distilbert=result)
    assert found["30x less memory than DistilBERT"].verdict == verdict
    assert found["6x faster than DistilBERT"].verdict == "holds"
    assert f"{(low + high) / 2:.3g}x" in found["30x less memory than DistilBERT"].numbers


@pytest.mark.parametrize(
    ("training", "inference", "verdict"),
    [(0.1e9, 0.05e9, "holds"), (3e9, 0.1e9, "undecided"), (3e9, 0.5e9, "does not hold")],
)
def test_paper_memory(tmp_path, training, inference, verdict):
    sides = {"training/fp32": {"peak_memory_bytes": training}, "inference/fp32": {"peak_memory_bytes": inference}}
    found = verdicts(tmp_path, bench__paper_memory=bench(sides=sides))
    assert found["0.14 GB for a batch of 16 x 4,096 tokens"].verdict == verdict


@pytest.mark.parametrize(
    ("accuracy", "rows", "verdict"),
    [
        (0.91, 16_000, "holds"),
        (0.90, 16_000, "undecided"),
        (0.88, 16_000, "undecided"),
        (0.88, 108_000, "does not hold"),
    ],
)
def test_missing_an_accuracy_on_fewer_rows_decides_nothing(tmp_path, accuracy, rows, verdict):
    history = [{"validation/loss": 0.3, "validation/accuracy": 0.9, "train/accuracy": 0.9, "epoch": 1}] * 2
    result = {
        "comparison": "ag_news",
        "rows": [
            row("ag_news", 0.92),
            row("ag_news_paper", accuracy, rows=rows, history=history),
            row("ag_news:model=distilbert", 0.9, model="distilbert"),
        ],
    }
    found = verdicts(tmp_path, compare__ag_news=result)
    assert found["AG News: 90.07 % test accuracy"].verdict == verdict
    assert f"{rows:,} train rows" in found["AG News: 90.07 % test accuracy"].numbers
    assert found["AG News: DistilBERT reaches 98.63 %"].verdict == "does not hold"


@pytest.mark.parametrize(
    ("paper", "scratch", "verdict"),
    [(0.945, 0.9, "holds"), (0.86, 0.9, "does not hold"), (0.90, 0.9, "undecided")],
)
def test_competitive_depends_on_both_distilberts(tmp_path, paper, scratch, verdict):
    history = [{"validation/loss": 0.3, "validation/accuracy": 0.9, "train/accuracy": 0.9, "epoch": 1}] * 2
    rows = [row("ag_news_paper", paper, history=history), row("ag_news:model=distilbert", scratch, model="distilbert")]
    found = verdicts(tmp_path, compare__ag_news={"comparison": "ag_news", "rows": rows})
    assert found["Competitive with DistilBERT"].verdict == verdict


def test_how_classes_weigh_is_told_where_rows_differ_in_it(tmp_path):
    history = [{"validation/loss": 0.3, "validation/accuracy": 0.9, "train/accuracy": 0.9, "epoch": 1}] * 2
    rows = [row("ag_news_paper", 0.9, history=history), row("ag_news:model=distilbert", 0.9, model="distilbert")]
    result = {"comparison": "ag_news", "rows": rows}
    judged = ("AG News: 90.07 % test accuracy", "Competitive with DistilBERT", "Minimal overfitting")
    found = verdicts(tmp_path, compare__ag_news=result)
    assert not any("weighted" in found[claim].numbers for claim in judged)
    rows[0]["resolved"]["class_balance"], rows[1]["resolved"]["class_balance"] = "none", "loss"
    found = verdicts(tmp_path, compare__ag_news=result)
    assert all("classes not weighted" in found[claim].numbers for claim in judged)
    assert "classes weighted equally" in found["Competitive with DistilBERT"].numbers


def test_the_command_beside_a_claim_is_the_results_own(tmp_path):
    step = {"low": 0.1, "median": 0.2, "high": 0.3, "accuracy": 0.9}
    command = "diffmix bench convergence --run elsewhere"
    result = {
        "recipe": "ag_news_paper",
        "trained_steps": 2,
        "sequences": 512,
        "steps": [step, step],
        "command": command,
    }
    (tmp_path / "convergence.json").write_text(json.dumps(result))
    text = claims_table(CLAIMS, tmp_path)
    assert f"written by `{command}`" in text


@pytest.mark.parametrize(
    ("last_losses", "train_accuracies", "rows", "verdict"),
    [
        ([0.300, 0.300, 0.303], [0.91, 0.91, 0.91], 108_000, "holds"),
        ([0.300, 0.300, 0.303], [0.91, 0.91, 0.91], 16_000, "holds"),
        ([0.60, 0.60, 0.61], [0.91, 0.91, 0.91], 108_000, "does not hold"),
        ([0.30, 0.30, 0.30], [0.99, 0.99, 0.98], 108_000, "does not hold"),
        ([0.60, 0.60, 0.61], [0.99, 0.99, 0.99], 16_000, "undecided"),  # fewer rows are learned by heart
        ([0.30, 0.30, 0.35], [0.91, 0.91, 0.91], 108_000, "undecided"),  # one seed of three
    ],
)
def test_overfitting_is_read_from_the_last_evaluation_by_intervals(
    tmp_path, last_losses, train_accuracies, rows, verdict
):
    histories = [
        [
            {"validation/loss": 0.30, "validation/accuracy": 0.8, "train/accuracy": 0.8, "epoch": 1},
            {"validation/loss": loss, "validation/accuracy": 0.90, "train/accuracy": accuracy, "epoch": 2},
        ]
        for loss, accuracy in zip(last_losses, train_accuracies, strict=True)
    ]
    paper = row("ag_news_paper", 0.90, rows=rows)
    paper["history"] = histories
    result = {"comparison": "ag_news", "rows": [paper, row("ag_news:model=distilbert", 0.9, model="distilbert")]}
    assert verdicts(tmp_path, compare__ag_news=result)["Minimal overfitting"].verdict == verdict


@pytest.mark.parametrize(
    ("dtype", "narrow", "verdict"),
    [
        ("fp16", [0.80, 0.81, 0.80], "holds"),
        ("fp16", [0.900, 0.901, 0.899], "does not hold"),
        ("fp16", [0.90, 0.80, 0.89], "undecided"),
        ("bf16", [0.900, 0.901, 0.899], "undecided"),
    ],
)
def test_precision_is_paired_over_seeds_and_bf16_is_not_fp16(tmp_path, dtype, narrow, verdict):
    rows = [
        row("ag_news_paper:dtype=fp32", 0.9, per_seed=[0.9, 0.9, 0.9], dtype="fp32"),
        row(f"ag_news_paper:dtype={dtype}", 0.9, per_seed=narrow, dtype=dtype),
    ]
    found = verdicts(tmp_path, compare__precision={"comparison": "precision", "rows": rows})
    assert found["Accuracy drops dramatically in fp16 against fp32"].verdict == verdict


def test_convergence_and_scaling(tmp_path):
    step = {"low": 0.1, "median": 0.2, "high": 0.3, "accuracy": 0.9}
    settled = {"low": 1e-4, "median": 1e-3, "high": 5e-3, "accuracy": 0.8}
    convergence = {"recipe": "ag_news_paper", "trained_steps": 2, "sequences": 512, "steps": [step, step, settled]}
    scaling = bench(ratios={"time": ratio(4, 4.2), "memory": ratio(3.9, 4)})
    found = verdicts(tmp_path, convergence=convergence, bench__scaling=scaling)
    assert found["The output is read after convergence"].verdict == "does not hold"
    assert found["Cost is linear in the length"].verdict == "holds"
    convergence["trained_steps"] = 3
    scaling["ratios"]["time"] = ratio(5, 6)
    found = verdicts(tmp_path, convergence=convergence, bench__scaling=scaling)
    assert found["The output is read after convergence"].verdict == "holds"
    assert found["Cost is linear in the length"].verdict == "does not hold"


def test_a_claim_whose_row_a_result_lacks_is_not_measured_yet(tmp_path):
    found = verdicts(tmp_path, compare__ag_news={"comparison": "ag_news", "rows": [row("ag_news", 0.9)]})
    finding = found["AG News: 90.07 % test accuracy"]
    assert finding.verdict == "not measured yet"
    assert "no row of the paper's preset" in finding.numbers
