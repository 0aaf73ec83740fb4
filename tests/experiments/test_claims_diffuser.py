import json

import pytest

from diffmix.experiments.claims import judge_claims
from diffmix.experiments.claims_diffuser import CLAIMS

FARTHER, GAIN, ARENA, MEMORY = (claim.statement for claim in CLAIMS)


def verdicts(folder, name, content):
    (folder / f"{name}.json").write_text(json.dumps(content))
    return {claim.statement: finding for claim, finding in judge_claims(CLAIMS, folder)}


def cells(axis, accuracies):
    """Cells of {task: {attention: accuracy of each seed}}."""
    return [
        {
            "axes": {axis: task, "seed": str(seed), "attention": attention},
            "state": "finished",
            "metrics": {"test/accuracy": accuracy},
        }
        for task, sides in accuracies.items()
        for attention, seeds in sides.items()
        for seed, accuracy in enumerate(seeds)
    ]


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [([0.02, 0.021, 0.022], "holds"), ([0.0, 0.001, 0.002], "does not hold"), ([0.0, 0.01, 0.03], "undecided")],
)
def test_the_gain_is_the_mean_over_tasks_paired_over_seeds(tmp_path, gain, verdict):
    sides = {"sparse": [0.8, 0.81, 0.82], "diffusion": [0.8 + 0.01 * seed + more for seed, more in enumerate(gain)]}
    found = verdicts(
        tmp_path, "study-long_documents", {"resolved": {}, "cells": cells("recipe", {"one": sides, "two": sides})}
    )
    assert found[GAIN].verdict == verdict
    assert found[ARENA].verdict == "not measured yet"
    assert "3 seeds" in found[GAIN].numbers
    one = verdicts(tmp_path, "study-long_documents", {"resolved": {}, "cells": cells("recipe", {"one": sides})})
    assert one[GAIN].verdict == "not measured yet"


@pytest.mark.parametrize("name", ["study-long_documents", "study-lra"])
def test_a_task_of_other_attentions_alone_keeps_no_result_back(tmp_path, name):
    sides = {"sparse": [0.8, 0.81], "diffusion": [0.84, 0.851]}
    accuracies = {"listops": sides, "lra_image": sides, "pathfinder": {"neighbor": [0.9], "sparse": [0.5, 0.5]}}
    found = verdicts(tmp_path, name, {"resolved": {}, "cells": cells("recipe", accuracies)})
    finding = found[ARENA if name == "study-lra" else GAIN]
    assert finding.verdict != "not measured yet"
    assert "pathfinder" not in finding.numbers


def test_only_published_tasks_enter_the_mean_of_the_arena(tmp_path):
    sides, worse = {"sparse": [0.8, 0.81], "diffusion": [0.84, 0.851]}, {"sparse": [0.8, 0.81], "diffusion": [0.1, 0.2]}
    accuracies = {"listops": sides, "lra_image": sides, "newsgroups_retrieval": worse}
    found = verdicts(tmp_path, "study-lra", {"resolved": {}, "cells": cells("recipe", accuracies)})
    assert "+4.05 points" in found[ARENA].numbers
    assert "newsgroups_retrieval" not in found[ARENA].numbers
    del accuracies["lra_image"]
    found = verdicts(tmp_path, "study-lra", {"resolved": {}, "cells": cells("recipe", accuracies)})
    assert found[ARENA].verdict == "not measured yet"


@pytest.mark.parametrize(
    ("far", "verdict"), [([0.9, 0.95], "holds"), ([0.1, 0.1], "does not hold"), ([0.09, 0.12], "does not hold")]
)
def test_only_distances_between_the_two_reaches_count(tmp_path, far, verdict):
    accuracies = {
        "distant_symbol-6": {"sparse": [1.0, 1.0], "diffusion": [1.0, 1.0]},
        "distant_symbol-24": {"sparse": [0.1, 0.1], "diffusion": far},
        "distant_symbol-60": {"sparse": [0.1, 0.1], "diffusion": [0.1, 0.1]},
    }
    settings = {"num_hidden_layers": 2, "diffusion_window": 4}
    found = verdicts(tmp_path, "study-hops", {"resolved": settings, "cells": cells("task", accuracies)})
    assert found[FARTHER].verdict == verdict
    assert "reach 8 tokens without diffusion, 40 with five hops" in found[FARTHER].numbers


def test_one_distance_of_two_decides_nothing(tmp_path):
    flat, better = {"sparse": [0.1, 0.1], "diffusion": [0.1, 0.11]}, {"sparse": [0.1, 0.1], "diffusion": [0.9, 0.95]}
    content = {
        "resolved": {"num_hidden_layers": 2, "diffusion_window": 4},
        "cells": cells("task", {"distant_symbol-24": better, "distant_symbol-36": flat}),
    }
    assert verdicts(tmp_path, "study-hops", content)[FARTHER].verdict == "undecided"


def test_memory_is_judged_by_its_pairs(tmp_path):
    ratio = {"median": 1.8, "low": 1.7, "high": 1.9}
    ratios = {"layer of 5 hops with links, less memory than Longformer's": ratio, "memory of fused attention": ratio}
    result = {"ratios": ratios, "dtype": "bf16", "environment": {"device": "a CPU"}}
    assert verdicts(tmp_path, "bench-diffusion", result)[MEMORY].verdict == "holds"
    ratio["low"] = 1.2
    assert verdicts(tmp_path, "bench-diffusion", result)[MEMORY].verdict == "undecided"
