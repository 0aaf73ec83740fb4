import inspect

import pytest
import torch

from diffmix import DiffmixConfig, run_experiment
from diffmix.errors import RequestError
from diffmix.experiments.run import experiment_recipe
from diffmix.tasks.language import LANGUAGE_TASKS
from diffmix.training.language import check_classifier_recipe
from diffmix.training.recipe import load_recipe, shipped_recipes


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


def recipe_by_default(dataset_name, **changes):
    """The recipe of `run_experiment` with its default arguments."""
    names = inspect.signature(experiment_recipe).parameters
    defaults = {name: each.default for name, each in inspect.signature(run_experiment).parameters.items()}
    return experiment_recipe(**{name: defaults[name] for name in names} | {"dataset_name": dataset_name, **changes})


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if load_recipe(name).task not in LANGUAGE_TASKS])
def test_every_recipe_of_a_classifier_takes_the_default_arguments(name):
    recipe = recipe_by_default(name)
    check_classifier_recipe(recipe)
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (10, 32, 5e-5)
    config = DiffmixConfig(**recipe.config)
    assert (config.hidden_size, config.num_hidden_layers, config.neighbor_alpha) == (256, 4, 0.5)


def test_the_papers_model_is_taken_where_it_is_one_without_attention():
    assert recipe_by_default("ag_news").name == "ag_news_paper"
    assert recipe_by_default("lra_listops").name == "listops_paper"
    diffuser = recipe_by_default("imdb_diffuser")
    assert (diffuser.name, diffuser.config["mixer"]) == ("imdb_diffuser", "attention_diffusion")
    assert recipe_by_default("imdb_diffuser_paper").config["num_attention_heads"] == 4


def test_steps_of_their_own_neighbours_are_as_many_as_asked_for():
    own = load_recipe("lra_image").config["neighbor_offsets"]
    assert recipe_by_default("lra_image").config["neighbor_offsets"] == own[:4]
    assert recipe_by_default("lra_image", num_iters=9).config["neighbor_offsets"] == own


def test_texts_are_cut_and_images_are_not():
    assert recipe_by_default("imdb").max_length == 4096
    assert recipe_by_default("imdb", max_length=7).max_length == 7
    assert recipe_by_default("pathfinder_x").max_length == 128 * 128


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if load_recipe(name).task in LANGUAGE_TASKS])
def test_language_models_are_refused_before_they_are_trained(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RequestError, match=f"dataset_name is '{name}', a language model, .* give one of .*imdb"
    ) as told:
        run_experiment(dataset_name=name)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_data_set_names_the_known_ones():
    with pytest.raises(RequestError, match="imdb") as told:
        run_experiment(dataset_name="imbd")
    assert "wikitext2" not in str(told.value)


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
