import pytest
import torch

from diffmix import run_experiment
from diffmix.errors import RequestError


def test_it_returns_results_model_and_log_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results, model, log_dir = run_experiment(
        dataset_name="digits",
        batch_size=64,
        epochs=1,
        max_length=64,
        embed_dim=16,
        num_iters=3,
        alpha=0.6,
        lr=1e-3,
        experiment_name="first",
    )
    assert 0 <= results["test/accuracy"] <= 1
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.neighbor_alpha) == (16, 3, 0.6)
    assert not model.training
    assert model(torch.ones(2, 64, dtype=torch.int64)).logits.shape == (2, 10)
    assert log_dir.is_dir()
    assert log_dir.parent.name == "first"


def test_an_unknown_data_set_names_the_known_ones():
    with pytest.raises(RequestError, match="imdb"):
        run_experiment(dataset_name="imbd")
