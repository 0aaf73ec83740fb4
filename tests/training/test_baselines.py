import numpy as np
import pytest

from diffmix.errors import RequestError, RunError
from diffmix.training import trainer
from diffmix.training.prediction import load_classifier
from diffmix.training.recipe import load_recipe
from small_runs import write_names


@pytest.fixture(scope="module")
def trained(names_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tfidf"
    recipe = load_recipe("text_file", ["model=tfidf", "class_balance=loss"])
    return folder, trainer.train(recipe, data=names_csv, output=folder, notice=lambda _: None)


def test_the_baseline_writes_the_same_files(trained):
    folder, metrics = trained
    for name in ("config.json", "model.safetensors", "recipe.yaml", "metrics.jsonl", "evaluation.json", "README.md"):
        assert (folder / name).is_file(), name
    assert metrics["parameters"] > 0
    assert metrics["tfidf_c"] in (1.0, 10.0, 100.0)


def test_it_reads_back_to_the_same_probabilities(trained, names_csv):
    folder, metrics = trained
    from diffmix.evaluation import classification_metrics
    from diffmix.tasks import load_task

    test = load_task("text_file", data=names_csv, on_notice=lambda _: None).load_test()
    assert test is not None
    classifier = load_classifier(folder)
    again = classification_metrics(classifier.probabilities(test), test.labels)
    assert again["nll"] == pytest.approx(metrics["test/nll"])


def test_two_classes(tmp_path):
    data = write_names(tmp_path / "two.csv", languages=("de", "ru"))
    recipe = load_recipe("text_file", ["model=tfidf"])
    trainer.train(recipe, data=data, output=tmp_path / "run", notice=lambda _: None)
    from diffmix.tasks.examples import Examples

    texts = ["Vereinigtes Königreich", "Германия"]
    row = load_classifier(tmp_path / "run").probabilities(Examples(labels=np.zeros(2, dtype=np.int64), texts=texts))
    assert row.shape == (2, 2)
    assert row.sum(axis=1) == pytest.approx(1)


def test_it_refuses_what_it_cannot_read(pairs_csv, tmp_path):
    with pytest.raises(RequestError, match="single texts"):
        trainer.train(load_recipe("digits", ["model=tfidf"]), output=tmp_path / "run", notice=lambda _: None)
    recipe = load_recipe("text_file", ["model=tfidf", "pair_column=other"])
    with pytest.raises(RequestError, match="single texts"):
        trainer.train(recipe, data=pairs_csv, output=tmp_path / "run", notice=lambda _: None)
    assert not (tmp_path / "run").exists()


def test_one_class_is_too_few(names_csv, tmp_path):
    with pytest.raises(RequestError, match="two classes or more"):
        trainer.train(load_recipe("text_file", ["model=tfidf", "limit=1"]), data=names_csv, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_high_a_count_is_named(names_csv, tmp_path):
    recipe = load_recipe("text_file", ["model=tfidf", "tfidf_min_count=100000"])
    with pytest.raises(RequestError, match="tfidf_min_count"):
        trainer.train(recipe, data=names_csv, output=tmp_path / "run", notice=lambda _: None)


def test_a_damaged_model_is_said(trained, tmp_path):
    import shutil

    folder = shutil.copytree(trained[0], tmp_path / "copy")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(RunError, match="damaged"):
        load_classifier(folder)
