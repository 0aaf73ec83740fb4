import json

import pytest

from diffmix.errors import RequestError
from diffmix.experiments.convergence import measure_convergence
from diffmix.training.recipe import recipe_from_mapping
from diffmix.training.trainer import train

TINY = {
    "task": "language_id",
    "tokenizer": "bytes",
    "max_length": 24,
    "limit": 96,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "neighbor_shared_steps": True,
    "intermediate_size": 16,
    "epochs": 1,
    "batch_size": 48,
    "dtype": "fp32",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(recipe_from_mapping(TINY, name="tiny"), output=folder, notice=lambda _: None)
    return folder


def test_changes_and_accuracy_of_every_step(run, tmp_path):
    output = tmp_path / "convergence.json"
    result = measure_convergence(run, steps=6, output=output, notice=lambda _: None)
    assert json.loads(output.read_text()) == result
    assert len(result["steps"]) == 6
    assert result["trained_steps"] == 2
    metrics = json.loads((run / "metrics.json").read_text())
    assert result["steps"][1]["accuracy"] == pytest.approx(metrics["validation/accuracy"])  # at the trained depth
    assert all(0 < step["low"] <= step["median"] <= step["high"] for step in result["steps"])
    assert [path.name for path in tmp_path.rglob("*")] == ["convergence.json"]
    assert str(tmp_path) not in output.read_text()
    with pytest.raises(RequestError, match="exists"):
        measure_convergence(run, output=output)


def test_refuses_what_is_no_run_of_a_neighbour_model(tmp_path):
    with pytest.raises(RequestError, match="holds no trained model"):
        measure_convergence(tmp_path, output=tmp_path / "c.json")
    with pytest.raises(RequestError, match="steps is 0"):
        measure_convergence(tmp_path, steps=0, output=tmp_path / "c.json")
