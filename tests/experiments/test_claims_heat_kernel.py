import json

import pytest

from diffmix.experiments.claims import judge_claims
from diffmix.experiments.claims_heat_kernel import CLAIMS


def cell(layers, seed, attention, ece, *, nll=5.0, perplexity=150.0, state="finished"):
    metrics = {"ece": ece, "nll": nll, "perplexity": perplexity, "brier": 0.8, "scaled_ece": 0.005}
    metrics |= {"ece_noise_floor": 0.002, "n": 200_000}
    return {
        "axes": {"num_hidden_layers": str(layers), "seed": str(seed), "attention": attention},
        "state": state,
        "metrics": {f"test/{key}": value for key, value in metrics.items()},
    }


def study(*groups):
    """Cells of (layers, attention, ECE of each seed, what else is known)."""
    return {
        "cells": [
            cell(layers, seed, attention, ece, **known)
            for layers, attention, errors, known in groups
            for seed, ece in enumerate(errors)
        ]
    }


def verdicts(folder, content, name="study-calibration"):
    (folder / f"{name}.json").write_text(json.dumps(content))
    return {claim.statement: finding for claim, finding in judge_claims(CLAIMS, folder)}


FOUR = "A fixed t = 0.28 lowers ECE by 6 to 12 % at 4 layers"
DEPTH = "Calibration improves more the deeper the model"


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.090, 0.091, 0.089], "holds"),
        ([0.120, 0.121, 0.119], "does not hold"),
        ([0.090, 0.130, 0.080], "undecided"),
    ],
)
def test_a_lower_ece_is_judged_by_its_paired_interval(tmp_path, ours, verdict):
    found = verdicts(tmp_path, study((4, "softmax", [0.1] * 3, {}), (4, "heat_fixed", ours, {})))
    assert found[FOUR].verdict == verdict
    assert "noise floor" in found[FOUR].numbers
    assert found["ECE is 24 to 46 % lower at 12 layers"].verdict == "not measured yet"


def test_one_seed_measures_nothing(tmp_path):
    found = verdicts(tmp_path, study((4, "softmax", [0.1], {}), (4, "heat_fixed", [0.05], {})))
    assert {finding.verdict for finding in found.values()} == {"not measured yet"}


@pytest.mark.parametrize(("at_twelve", "verdict"), [(0.05, "holds"), (0.099, "does not hold"), (0.09, "undecided")])
def test_depth_compares_the_two_reductions(tmp_path, at_twelve, verdict):
    groups = [
        (4, "softmax", [0.1] * 3, {}),
        (4, "heat_fixed", [0.090, 0.0901, 0.0899], {}),
        (12, "softmax", [0.1] * 3, {}),
        (12, "heat_fixed", [at_twelve, at_twelve * 1.001, at_twelve * 0.999], {}),
    ]
    assert verdicts(tmp_path, study(*groups))[DEPTH].verdict == verdict


@pytest.mark.parametrize(("perplexity", "verdict"), [(151.0, "holds"), (180.0, "does not hold")])
def test_perplexity_is_competitive_within_five_percent(tmp_path, perplexity, verdict):
    groups = [(4, "softmax", [0.1] * 3, {}), (4, "heat_fixed", [0.1] * 3, {"perplexity": perplexity})]
    assert verdicts(tmp_path, study(*groups))["Competitive perplexity"].verdict == verdict


@pytest.mark.parametrize(
    ("nll", "eces", "verdict"),
    [
        (4.9, [0.12, 0.1201, 0.1199], "holds"),
        (4.9, [0.08, 0.0801, 0.0799], "does not hold"),
        (5.1, [0.12, 0.1201, 0.1199], "does not hold"),
        (4.9, [0.08, 0.12, 0.11], "undecided"),  # the seeds may hide a useful reduction
    ],
)
def test_adaptive_time_is_judged_against_the_fixed_one(tmp_path, nll, eces, verdict):
    groups = [
        (4, "softmax", [0.1] * 3, {}),
        (4, "heat_fixed", [0.1] * 3, {}),
        (4, "heat_adaptive", eces, {"nll": nll}),
    ]
    found = verdicts(tmp_path, study(*groups))
    assert found["Adaptive t optimises perplexity, not calibration"].verdict == verdict


def test_a_lower_ece_below_the_noise_floor_or_at_a_worse_likelihood_decides_nothing(tmp_path):
    tiny = [(4, "softmax", [0.0021] * 3, {}), (4, "heat_fixed", [0.0018] * 3, {})]
    assert verdicts(tmp_path, study(*tiny))[FOUR].verdict == "undecided"
    bought = [(4, "softmax", [0.1] * 3, {}), (4, "heat_fixed", [0.09, 0.0901, 0.0899], {"nll": 6.5})]
    assert verdicts(tmp_path, study(*bought))[FOUR].verdict == "undecided"


def test_seeds_that_only_one_side_has_pair_with_nothing(tmp_path):
    content = study((4, "softmax", [0.1] * 2, {}), (4, "heat_fixed", [0.09] * 4, {}))
    content["cells"] = [
        one for one in content["cells"] if one["axes"]["attention"] == "softmax" or one["axes"]["seed"] > "1"
    ]
    assert {finding.verdict for finding in verdicts(tmp_path, content).values()} == {"not measured yet"}


def test_the_equilibrium_claims_follow_from_the_distances(tmp_path):
    case = {"median": 0.8, "low": 0.7, "high": 0.9}
    result = {
        "queries": 2,
        "keys": 3,
        "diffusion_time": 0.28,
        "to_softmax": {"even": {"start": 0.4, "end": 1e-9}, "nearest": {"start": 0.4, "end": 1e-9}},
        "heat_to_softmax": {"dot": 0.8, "normalized": 0.2},
        "heat_to_nearest": {
            "dot": {"even": case, "nearest": case},
            "normalized": {"even": case, "nearest": {"median": 0.001, "low": 0.0, "high": 0.002}},
        },
        "entropy": {"start, even": 4.1, "start, nearest": 0.0, "softmax": 3.6, "dot": 0.3, "normalized": 4.0},
    }
    found = verdicts(tmp_path, result, "equilibrium")
    assert found["Softmax attention is the equilibrium of drift-diffusion on similarity scores"].verdict == "holds"
    stopped = "Diffusion attention ({}) is that process, stopped before equilibrium"
    assert found[stopped.format("`dot`, the default")].verdict == "does not hold"
    assert found[stopped.format("`normalized`")].verdict == "holds"  # from one of the starts
