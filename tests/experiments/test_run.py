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


def test_lra_listops_is_the_task_listops(tmp_path, monkeypatch):
    from diffmix.tasks.long_range_arena.generated import GENERATED, GeneratedTask
    from diffmix.tasks.long_range_arena.listops import Grammar

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(GENERATED, "listops", GeneratedTask((64, 16, 16), Grammar(20, 40)))
    results, model, _ = run_experiment(
        dataset_name="lra_listops", epochs=1, max_length=64, embed_dim=16, num_iters=3, experiment_name="listops"
    )
    assert results["task"] == "listops"
    assert "data/yardstick_two_levels" in results
    assert model.config.vocab_size == 16
    assert model.config.num_hidden_layers == 3
    assert "text-classification" in (tmp_path / "runs/listops/README.md").read_text(encoding="utf-8")


def test_a_prefix_makes_no_data_set():
    with pytest.raises(RequestError, match="lra_imdb"):
        run_experiment(dataset_name="lra_imdb")
