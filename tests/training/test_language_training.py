import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmix.errors import RequestError
from diffmix.tasks.language import load_language
from diffmix.training.language import WindowCollator, load_language_model
from diffmix.training.recipe import load_recipe
from diffmix.training.trainer import train
from small_runs import SMALL_LANGUAGE


def trained(folder, *overrides):
    return train(load_recipe("python_docs", [*SMALL_LANGUAGE, *overrides]), output=folder, notice=lambda _: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language") / "run"
    return folder, trained(folder, "mixer=heat_kernel", "heat_time_mode=adaptive", "eval_steps=6", "save_steps=4")


def test_a_language_model_learns_and_says_how_well(run):
    folder, metrics = run
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [6, 12, 18]
    losses = [row["validation/loss"] for row in history]
    assert losses == sorted(losses, reverse=True)
    assert "validation/accuracy" not in history[0]
    assert "train/accuracy" not in history[0]
    assert metrics["train/best_step"] == 18
    for key in ("perplexity", "word_perplexity", "bits_per_byte", "nll", "brier", "ece", "entropy", "ece_noise_floor"):
        assert np.isfinite(metrics[f"test/{key}"])
    # One token a byte, each scored once: the first one, too.
    test = load_language("python_docs").load_test()
    assert test is not None
    assert metrics["test/n"] == test.bytes
    assert metrics["test/bits_per_byte"] == pytest.approx(metrics["test/nll"] / np.log(2))
    assert metrics["test/perplexity"] == pytest.approx(np.exp(metrics["test/nll"]))


def test_the_folder_holds_the_times_and_a_model_that_scores_the_same(run):
    folder, metrics = run
    times = json.loads((folder / "times.json").read_text())
    assert len(times) == 2  # a layer each
    for heads in times.values():
        assert len(heads) == 2
        assert all(0.1 <= head["min"] <= head["mean"] <= head["max"] <= 10 for head in heads)
    loaded = load_language_model(folder)
    test = load_language("python_docs").load_test()
    assert test is not None
    assert loaded.score(test).metrics(bootstrap=0)["nll"] == pytest.approx(metrics["test/nll"], rel=1e-4)
    card = (folder / "README.md").read_text()
    assert "text-generation" in card
    assert "A causal language model" in card


def test_a_killed_run_ends_as_the_uninterrupted_one(run, tmp_path, monkeypatch):
    from diffmix.training import callbacks

    whole = callbacks.RunRecorder.on_save
    saved = []

    def die_after_second(self, args, state, control, **kwargs):
        whole(self, args, state, control, **kwargs)
        saved.append(state.global_step)
        if len(saved) == 2:
            raise KeyboardInterrupt

    overrides = ["mixer=heat_kernel", "heat_time_mode=adaptive", "eval_steps=6", "save_steps=4"]
    monkeypatch.setattr(callbacks.RunRecorder, "on_save", die_after_second)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", *overrides)
    assert saved == [4, 6]
    monkeypatch.setattr(callbacks.RunRecorder, "on_save", whole)
    recipe = load_recipe("python_docs", [*SMALL_LANGUAGE, *overrides])
    metrics = train(recipe, output=tmp_path / "run", resume=True, notice=lambda _: None)
    clock = ("seconds", "seconds_per_epoch", "tokens_per_second", "peak_memory_bytes")
    for key, value in run[1].items():
        if not key.endswith(clock):
            assert metrics[key] == pytest.approx(value), key


def test_a_temperature_is_fitted_on_validation_when_asked(tmp_path):
    metrics = trained(tmp_path / "run", "max_steps=3", "temperature_scaling=true")
    assert metrics["test/temperature"] > 0
    assert metrics["test/scaled_nll"] != metrics["test/nll"]
    loaded, test = load_language_model(tmp_path / "run"), load_language("python_docs").load_test()
    assert test is not None
    after = loaded.score(test, temperature=metrics["test/temperature"]).metrics(bootstrap=0)
    assert after["nll"] == pytest.approx(metrics["test/scaled_nll"], rel=1e-4)
    assert after["ece"] == pytest.approx(metrics["test/scaled_ece"], abs=1e-3)


@pytest.mark.parametrize("key", ["max_tokens=100", "temperature_scaling=true"])
def test_a_classifier_refuses_the_keys_of_language_models(tmp_path, key):
    with pytest.raises(RequestError, match=key.split("=")[0]):
        train(load_recipe("digits", [key]), output=tmp_path / "run", notice=lambda _: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("overrides", [["mixer=neighbor"], ["model=gpt2", "n_embd=32", "n_layer=1", "n_head=2"]])
def test_other_models_train_by_the_same_recipe(tmp_path, overrides):
    metrics = trained(tmp_path / "run", *overrides, "max_steps=3", "max_tokens=2000")
    assert metrics["train/examples"] == 2000 // 64
    assert metrics["test/nll"] < np.log(260) + 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("class_balance=loss", "class_balance"),
        ("length_warmup=0.5", "length_warmup"),
        ("label_smoothing=0.1", "label_smoothing"),
        ("stream=true", "stream"),
        ("pretraining={epochs: 1}", "pretraining"),
        ("best_metric=accuracy", "best_metric=nll"),
        ("embedding_init=ppmi", "embedding_init"),
        ("max_length=1", "2 tokens"),
        ("model=tfidf", "tfidf"),
        ("heat_time=-1", "heat_time"),
        ("heat_time=.nan", "heat_time"),
        ("norm=batch", "model is causal"),
        ("embedding_ngrams=[3]", "causal"),
    ],
)
def test_what_a_language_model_has_no_use_for_is_refused(tmp_path, override, message):
    with pytest.raises(RequestError, match=message):
        trained(tmp_path / "run", override)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_language_model_goes_on_as_it_began(run, tmp_path):
    start = f"init_from={run[0]}"
    with pytest.raises(RequestError, match=r"has hidden_dropout=.* and the recipe 0.3"):
        trained(tmp_path / "other", "mixer=heat_kernel", "heat_time_mode=adaptive", "hidden_dropout=0.3", start)
    assert not (tmp_path / "other").exists()
    again = ["mixer=heat_kernel", "heat_time_mode=adaptive", "is_causal=true", "num_key_value_heads=null"]
    trained(tmp_path / "again", *again, "max_steps=1", "max_tokens=2000", start)


@pytest.mark.parametrize("override", ["neighbor_boundary=wrap", "neighbor_offsets=[1, 2]"])
def test_what_would_see_the_future_is_refused(tmp_path, override):
    with pytest.raises(RequestError, match="causal"):
        trained(tmp_path / "run", "mixer=neighbor", override)
    assert not (tmp_path / "run").exists()


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5))
def test_labels_are_the_tokens_but_the_first_and_padding(lengths):
    rows = [{"input_ids": np.arange(1, length + 1, dtype=np.int32)} for length in lengths]
    batch = WindowCollator(0)(rows)
    for ids, mask, labels, length in zip(*batch.values(), lengths, strict=True):
        assert ids.tolist() == [*range(1, length + 1), *[0] * (max(lengths) - length)]
        assert mask.tolist() == [1] * length + [0] * (max(lengths) - length)
        assert labels[1:length].equal(ids[1:length])
        assert (labels[length:] == -100).all()
        assert labels[0] == -100


def test_a_folder_of_another_kind_is_named(tmp_path, run):
    with pytest.raises(RequestError, match=r"no config\.json"):
        load_language_model(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    with pytest.raises(RequestError, match="BertForSequenceClassification"):
        load_language_model(tmp_path)
    from diffmix.training.prediction import load_classifier

    with pytest.raises(RequestError, match="DiffmixForCausalLM"):
        load_classifier(run[0])


def test_a_model_and_a_tokenizer_that_do_not_fit_are_named(tmp_path, run):
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(run[0], folder)
    tokenizer = load_language_model(folder).tokenizer
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(RequestError, match="261 tokens and the model 260"):
        load_language_model(folder)


def test_training_and_scoring_see_the_same_loss(run):
    """The loss of a batch is the mean NLL that scoring finds in the same windows."""
    from diffmix.evaluation.language import total_nll
    from diffmix.tasks.language import TokenWindows

    loaded = load_language_model(run[0], dtype="fp32")
    validation = load_language("python_docs").validation
    windows = TokenWindows(validation, loaded.tokenizer, 63)
    batch = WindowCollator(0)([windows[number] for number in range(3)])
    total, count = total_nll(loaded.model, windows, range(3))
    assert count == 3 * 63
    loaded.model.train()
    for module in loaded.model.modules():
        if "Dropout" in type(module).__name__:
            module.p = 0.0
    with torch.no_grad():
        loss = loaded.model(**batch).loss
    assert float(loss) == pytest.approx(total / count, rel=1e-4)
