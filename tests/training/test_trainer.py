import contextlib
import dataclasses
import errno
import itertools
import json
import re
import shutil
import types

import numpy as np
import pytest
import torch

from diffmix.errors import RequestError, RunError
from diffmix.training import callbacks, fitting, losses, phases, trainer
from diffmix.training.bucketed_trainer import BucketedTrainer
from diffmix.training.building import recipe_data
from diffmix.training.checkpoints import find_checkpoints
from diffmix.training.prediction import load_classifier
from diffmix.training.recipe import load_recipe
from small_runs import SMALL, write_names

# What follows from the clock or the machine and not from the recipe.
MEASURED = ("seconds", "seconds_per_epoch", "tokens_per_second", "peak_memory_bytes")


def small(*overrides):
    return load_recipe("text_file", [*SMALL, *overrides])


def train(recipe, data, output, **options):
    return trainer.train(recipe, data=data, output=output, notice=lambda _: None, **options)


def reproducible(metrics):
    return {key: value for key, value in metrics.items() if key.rpartition("/")[2] not in MEASURED}


def logged(folder, key):
    return [json.loads(line)[key] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(names_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    metrics = train(small("epochs=6", "noise_std=0.05", "evaluations_per_epoch=2"), names_csv, folder)
    return folder, metrics


def test_batches_without_padding_come_without_a_mask_and_their_tokens_count(tmp_path, monkeypatch):
    texts = [f"{number:08d},a" if number % 2 else f"{number:03d},b" for number in range(120)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *texts, ""]))
    masked, tokens = [], 0
    compute = BucketedTrainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        nonlocal tokens
        padding = inputs["input_ids"] == model.config.pad_token_id
        tokens += int((~padding).sum())
        masked.append(("attention_mask" in inputs, bool(padding.any())))
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(BucketedTrainer, "compute_loss", spy)
    metrics = train(small("epochs=1", "batch_size=5"), tmp_path / "texts.csv", tmp_path / "run")
    assert set(masked) == {(True, True), (False, False)}
    assert metrics["train/tokens"] == tokens


def test_a_run_leaves_the_contracts_files(finished):
    folder, metrics = finished
    expected = "config.json model.safetensors tokenizer.json recipe.yaml metrics.jsonl metrics.json environment.json "
    expected += "README.md evaluation.json"
    assert set(expected.split()) <= {path.name for path in folder.iterdir()}
    assert not list(folder.rglob("*.bin"))  # no pickle
    assert metrics == json.loads((folder / "metrics.json").read_text())
    for key in ("test/accuracy", "test/nll", "test/ece", "test/accuracy_low", "validation/accuracy", "parameters"):
        assert np.isfinite(metrics[key]), key
    for key in ("train/examples", "train/seconds", "train/tokens_per_second"):
        assert metrics[key] > 0, key
    assert metrics["train/peak_memory_bytes"] >= 0  # so small a run fits in memory that this process freed before
    environment = json.loads((folder / "environment.json").read_text())
    assert {"torch", "transformers", "device", "threads", "dtype"} <= set(environment)


def test_it_learns(finished):
    assert finished[1]["test/accuracy"] > 0.5  # a third by chance


def test_the_log_has_a_line_an_evaluation(finished):
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert len(rows) == 11  # every 4 of 42 steps, and the last
    assert {"epoch", "train/loss", "validation/loss", "validation/accuracy", "learning_rate", "seconds"} <= set(rows[0])
    best = max(rows, key=lambda row: row["validation/accuracy"])
    assert finished[1]["train/best_step"] == best["step"]
    assert finished[1]["validation/accuracy"] == best["validation/accuracy"]
    assert any((finished[0] / "logs").iterdir())  # TensorBoard's


def test_the_evaluation_adds_up(finished):
    evaluation = json.loads((finished[0] / "evaluation.json").read_text())
    assert np.sum(evaluation["confusion"]) == evaluation["n"] == finished[1]["test/n"]
    assert np.trace(evaluation["confusion"]) / evaluation["n"] == pytest.approx(finished[1]["test/accuracy"])
    assert sum(bin["count"] for bin in evaluation["reliability"]) == evaluation["n"]


def test_the_card_says_what_the_model_is(finished):
    card = (finished[0] / "README.md").read_text()
    assert card.startswith("---\n")
    assert "pipeline(" in card
    assert f"{finished[1]['train/examples']} rows" in card
    assert f"{finished[1]['test/accuracy']:.4f}" in card


def test_the_folder_predicts_what_was_measured(finished):
    from transformers import pipeline

    classifier = load_classifier(finished[0], dtype="fp32")
    assert classifier.label_names == ("de", "el", "ru")
    classify = pipeline("text-classification", model=str(finished[0]), device="cpu")
    answer = classify("Königreich", truncation=True)[0]
    from diffmix.tasks.examples import Examples

    row = classifier.probabilities(Examples(labels=np.zeros(1, dtype=np.int64), texts=["Königreich"]))[0]
    assert classifier.label_names[row.argmax()] == answer["label"]
    assert row.max() == pytest.approx(answer["score"], abs=1e-5)


def test_probabilities_depend_neither_on_order_nor_on_batches(finished, monkeypatch):
    from diffmix.tasks.examples import Examples

    classifier = load_classifier(finished[0], dtype="fp32")
    texts = ["Γερμανία", "Vereinigtes Königreich", "", "Соединенное Королевство Великобритании и Ирландии", "a"]
    whole = classifier.probabilities(Examples(labels=np.zeros(5, dtype=np.int64), texts=texts))
    assert whole.sum(axis=1) == pytest.approx(1)
    for index, text in enumerate(texts):
        alone = classifier.probabilities(Examples(labels=np.zeros(1, dtype=np.int64), texts=[text]))
        assert alone[0] == pytest.approx(whole[index], abs=1e-5)


def test_the_same_seed_gives_the_same_run_and_another_does_not(finished, names_csv, tmp_path):
    recipe = small("epochs=6", "noise_std=0.05", "evaluations_per_epoch=2")
    again = train(recipe, names_csv, tmp_path / "again")
    assert reproducible(again) == reproducible(finished[1])
    other = train(recipe.replace(seed=1), names_csv, tmp_path / "other")
    assert other["test/nll"] != again["test/nll"]


def interrupted_train(monkeypatch, step, recipe, data, folder):
    """Start a run that stops as by Ctrl-C in the evaluation after `step`, before its checkpoint is written."""
    original = callbacks.RunRecorder.on_evaluate

    def stop(self, args, state, control, **kwargs):
        if state.global_step >= step:
            raise KeyboardInterrupt
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.RunRecorder, "on_evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, data, folder)


def test_what_was_counted_between_evaluations_outlives_a_kill(names_csv, tmp_path, monkeypatch):
    recipe = small("max_steps=12", "eval_steps=12", "save_steps=4")
    whole = train(recipe, names_csv, tmp_path / "whole")
    original = callbacks.RunRecorder.on_step_end

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.RunRecorder, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, names_csv, tmp_path / "part")
    resumed = train(recipe, names_csv, tmp_path / "part", resume=True)
    assert resumed["train/tokens"] == whole["train/tokens"]
    assert logged(tmp_path / "part", "train/accuracy") == logged(tmp_path / "whole", "train/accuracy")


@pytest.mark.parametrize("extra", [[], ["ema_decay=0.9", "micro_batch_size=5", "early_stopping_patience=4"]])
def test_a_resumed_run_ends_as_the_uninterrupted_one(extra, names_csv, tmp_path, monkeypatch):
    recipe = small("epochs=5", "noise_std=0.1", "hidden_dropout=0.2", "evaluations_per_epoch=2", *extra)
    whole = train(recipe, names_csv, tmp_path / "whole")
    interrupted_train(monkeypatch, 11, recipe, names_csv, tmp_path / "part")
    resumed = train(recipe, names_csv, tmp_path / "part", resume=True)
    assert reproducible(resumed) == reproducible(whole)
    assert (tmp_path / "part/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert logged(tmp_path / "part", "step") == logged(tmp_path / "whole", "step")


@pytest.mark.parametrize("length", [["max_steps=7"], ["epochs=1.5"], ["epochs=2"]])
def test_a_run_killed_after_its_last_checkpoint_makes_no_further_step(length, names_csv, tmp_path, monkeypatch):
    recipe = small(*length, "schedule=constant", "evaluations_per_epoch=2")
    whole = train(recipe, names_csv, tmp_path / "whole")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "load_weights", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, names_csv, tmp_path / "part")
    resumed = train(recipe, names_csv, tmp_path / "part", resume=True)
    assert reproducible(resumed) == reproducible(whole)
    assert logged(tmp_path / "part", "step") == logged(tmp_path / "whole", "step")


@pytest.fixture
def interrupted(names_csv, tmp_path, monkeypatch):
    """A run with two checkpoints, stopped on the way to the third."""
    recipe, folder = small("epochs=5"), tmp_path / "run"
    interrupted_train(monkeypatch, 18, recipe, names_csv, folder)
    return recipe, folder, find_checkpoints(folder / "checkpoints")


def test_a_truncated_checkpoint_gives_way_to_the_one_before(interrupted, names_csv, tmp_path, capsys):
    recipe, folder, checkpoints = interrupted
    assert len(checkpoints) == 2
    file = checkpoints[0] / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-10])
    said = []
    resumed = trainer.train(recipe, data=names_csv, output=folder, resume=True, notice=said.append)
    assert any("truncated optimizer.pt" in line for line in said)
    assert reproducible(resumed) == reproducible(train(recipe, names_csv, tmp_path / "whole"))


def test_no_whole_checkpoint_left_is_said(interrupted, names_csv):
    recipe, folder, checkpoints = interrupted
    for checkpoint in checkpoints:
        (checkpoint / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="no whole checkpoint"):
        train(recipe, names_csv, folder, resume=True)
    assert find_checkpoints(folder / "checkpoints") == checkpoints


def test_resuming_with_another_recipe_names_the_key(interrupted, names_csv):
    _, folder, _ = interrupted
    with pytest.raises(RequestError, match=r"epochs=5\.0, the request has epochs=6\.0"):
        train(small("epochs=6"), names_csv, folder, resume=True)


def test_resuming_on_other_data_is_refused(interrupted, tmp_path):
    recipe, folder, _ = interrupted
    with pytest.raises(RequestError, match="the data it was started with"):
        train(recipe, write_names(tmp_path / "other.csv"), folder, resume=True)


def test_resuming_on_data_that_changed_is_refused(interrupted, names_csv):
    recipe, folder, _ = interrupted
    before = names_csv.read_bytes()
    try:
        names_csv.write_bytes(before + "Färöer,de\n".encode())
        for data in (names_csv, None):
            with pytest.raises(RequestError, match=rf"{names_csv.name} has changed since the run in .* put it back"):
                train(recipe, data, folder, resume=True)
    finally:
        names_csv.write_bytes(before)
    (folder / "data.json").write_text(json.dumps({"data": str(names_csv)}))  # as earlier versions wrote it
    assert train(recipe, None, folder, resume=True)["test/n"] > 0


def test_of_a_folder_of_data_the_files_of_its_splits_are_remembered(names_csv, tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    shutil.copy(names_csv, data / "train.csv")
    metrics = train(small("max_steps=1"), data, folder)
    (data / "notes.csv").write_text("mine")
    assert train(small("max_steps=1"), data, folder, resume=True) == metrics
    shutil.copy(names_csv, data / "test.csv")
    with pytest.raises(RequestError, match=r"test\.csv has changed"):
        train(small("max_steps=1"), data, folder, resume=True)


def test_a_run_that_another_process_finishes_meanwhile_is_left_alone(finished, names_csv, tmp_path, monkeypatch):
    folder, metrics = shutil.copytree(finished[0], tmp_path / "run"), finished[0] / "metrics.json"
    (folder / "metrics.json").unlink()
    recipe = load_recipe(str(folder / "recipe.yaml"))

    @contextlib.contextmanager
    def held(folder):
        shutil.copy(metrics, folder / "metrics.json")
        yield

    monkeypatch.setattr(trainer, "hold_folder", held)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert train(recipe, names_csv, folder, resume=True) == json.loads(metrics.read_text())
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_that_is_being_trained_is_not_joined(names_csv, tmp_path, monkeypatch):
    recipe, folder = small("max_steps=2"), tmp_path / "run"
    original, refusals = callbacks.RunRecorder.on_evaluate, []

    def join(self, *args, **kwargs):
        with pytest.raises(RequestError, match="is being trained by another process") as caught:
            train(recipe, names_csv, folder, resume=True)
        refusals.append(caught)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.RunRecorder, "on_evaluate", join)
        metrics = train(recipe, names_csv, folder)
    assert refusals
    assert train(recipe, names_csv, folder, resume=True) == metrics


def test_a_folder_in_use_is_refused_and_left_alone(interrupted, finished, names_csv, tmp_path):
    recipe, unfinished, _ = interrupted
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for folder, expected in ((unfinished, "add --resume"), (finished[0], "finished run"), (foreign, "in use")):
        before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
        with pytest.raises(RequestError, match=expected):
            train(recipe, names_csv, folder)
        assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
    with pytest.raises(RequestError, match="in use"):
        train(recipe, names_csv, foreign, resume=True)
    with pytest.raises(RequestError, match="nothing to resume"):
        train(recipe, names_csv, tmp_path / "absent", resume=True)
    with pytest.raises(RequestError, match="is a file"):
        train(recipe, names_csv, foreign / "thesis.txt")


def test_a_wrong_request_leaves_no_folder(tmp_path):
    with pytest.raises(RequestError):
        train(small(), tmp_path / "absent.csv", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=distilbert", "hidden_size=16"], "model=distilbert: .* must divide"),
        (["tokenizer=bpe-99999999999999"], "too large"),
    ],
)
def test_keys_that_only_the_model_or_the_tokenizer_judges_leave_no_folder(names_csv, tmp_path, overrides, expected):
    with pytest.raises(RequestError, match=expected):
        train(load_recipe("text_file", overrides), names_csv, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [ZeroDivisionError("division"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_run_that_fails_before_its_first_checkpoint_leaves_its_folder_to_the_next(
    names_csv, tmp_path, monkeypatch, error
):
    def fail(*_, **__):
        raise error

    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(BucketedTrainer, "compute_loss", fail)
        with pytest.raises((ZeroDivisionError, RunError)):
            train(small("max_steps=1"), names_csv, folder)
    assert not folder.exists()
    assert train(small("max_steps=1", "seed=1"), names_csv, folder)["train/steps"] == 1


def test_a_tracker_that_is_not_installed_is_named(names_csv, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(RequestError, match=r"report_to: Wandb.* to be installed"):
        train(small("report_to=wandb"), names_csv, tmp_path / "run")


@pytest.mark.parametrize("positions", ["none", "learned"])
def test_positions_that_do_not_reach_max_length_are_refused(names_csv, tmp_path, positions):
    recipe = small("max_position_embeddings=4", f"position_embedding={positions}")
    with pytest.raises(RequestError, match="has room for 4 tokens and max_length is 48"):
        train(recipe, names_csv, tmp_path / "run")


@pytest.mark.parametrize("overrides", [(), ("model=tfidf",)])
def test_what_was_trained_outlives_a_test_split_that_cannot_be_read(names_csv, tmp_path, monkeypatch, overrides):
    def unreadable(*arguments):
        return dataclasses.replace(recipe_data(*arguments), load_test=lambda: refuse("test.csv is damaged"))

    def refuse(words):
        raise RequestError(words)

    recipe = small("epochs=1") if not overrides else load_recipe("text_file", overrides)
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "recipe_data", unreadable)
        with pytest.raises(RequestError, match=r"test\.csv"):
            train(recipe, names_csv, folder)
    assert (folder / "model.safetensors").is_file()
    assert train(recipe, names_csv, folder, resume=True)["test/n"] > 0


def test_resuming_a_finished_run_changes_nothing(finished, names_csv):
    folder, metrics = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    recipe = small("epochs=6", "noise_std=0.05", "evaluations_per_epoch=2")
    assert train(recipe, names_csv, folder, resume=True) == metrics
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_killed_while_it_removes_its_checkpoints_a_run_leaves_none_when_resumed(interrupted, names_csv, monkeypatch):
    recipe, folder, _ = interrupted
    with monkeypatch.context() as patch:
        patch.setattr(phases.shutil, "rmtree", lambda *_, **__: None)
        metrics = train(recipe, names_csv, folder, resume=True)
    assert (folder / "checkpoints").is_dir()
    assert train(recipe, names_csv, folder, resume=True) == metrics
    assert not (folder / "checkpoints").exists()


def test_a_loss_that_is_not_finite_names_step_and_mend(names_csv, tmp_path, monkeypatch):
    original = phases.classification_loss
    calls = []

    def explode(*args):
        calls.append(0)
        return original(*args) * (float("nan") if len(calls) > 5 else 1)

    monkeypatch.setattr(phases, "classification_loss", explode)
    with pytest.raises(RunError, match=r"the loss is nan at step 6.*lower learning_rate"):
        train(small("micro_batch_size=32"), names_csv, tmp_path / "run")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/1"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3264 vs 3156"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_no_space_left_is_one_line_and_the_run_continues(error, names_csv, tmp_path, monkeypatch):
    recipe = small("epochs=3")
    original, saved = torch.save, []

    def full(content, file, *args, **kwargs):
        saved.append(file)
        if len(saved) > 5:  # in the second checkpoint
            raise error
        return original(content, file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RunError, match="no space left") as caught:
            train(recipe, names_csv, tmp_path / "run")
    assert "\n" not in str(caught.value)
    resumed = train(recipe, names_csv, tmp_path / "run", resume=True)
    assert reproducible(resumed) == reproducible(train(recipe, names_csv, tmp_path / "whole"))


def test_accumulation_gives_the_losses_of_whole_batches(names_csv, tmp_path):
    still = ["hidden_dropout=0", "classifier_dropout=0", "class_balance=loss", "label_smoothing=0.1", "epochs=3"]
    whole = train(small("micro_batch_size=32", *still), names_csv, tmp_path / "whole")
    parts = train(small("micro_batch_size=5", *still), names_csv, tmp_path / "parts")
    assert parts["train/loss"] == pytest.approx(whole["train/loss"], abs=1e-4)
    assert parts["test/nll"] == pytest.approx(whole["test/nll"], abs=1e-4)
    assert parts["train/steps"] == whole["train/steps"]


def test_early_stopping_stops(names_csv, tmp_path):
    metrics = train(small("learning_rate=1e-9", "epochs=20", "early_stopping_patience=2"), names_csv, tmp_path / "run")
    assert metrics["train/epochs"] == 3.0


def test_the_average_of_the_weights_is_what_is_kept(names_csv, tmp_path):
    averaged = train(small("ema_decay=0.99"), names_csv, tmp_path / "averaged")
    plain = train(small(), names_csv, tmp_path / "plain")
    assert averaged["train/loss"] == plain["train/loss"]  # training itself is the same
    assert averaged["validation/nll"] != plain["validation/nll"]


def test_class_weights_average_to_one_over_the_rows():
    counts = np.array([10, 30, 0, 60])
    weights = losses.class_weights(counts).numpy()
    assert (counts * weights).sum() / counts.sum() == pytest.approx(1)
    assert weights[0] / weights[3] == pytest.approx(6)


def test_bf16_trains(names_csv, tmp_path):
    assert np.isfinite(train(small("dtype=bf16"), names_csv, tmp_path / "run")["test/nll"])


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_gradient_checkpointing_changes_no_loss(names_csv, tmp_path, norm):
    still = ["hidden_dropout=0", "classifier_dropout=0", f"norm={norm}"]
    plain = train(small(*still), names_csv, tmp_path / "plain")
    checkpointed = train(small(*still, "gradient_checkpointing=true"), names_csv, tmp_path / "checkpointed")
    for key in ("train/loss", "validation/nll", "test/nll"):
        assert checkpointed[key] == pytest.approx(plain[key], abs=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_warm_up_and_go_where_they_say(schedule, names_csv, tmp_path):
    train(small(f"schedule={schedule}", "warmup=2", "evaluations_per_epoch=6"), names_csv, tmp_path / "run")
    rates = logged(tmp_path / "run", "learning_rate")
    assert rates[0] < max(rates) <= 5e-3
    assert rates[-1] == max(rates) if schedule == "constant" else rates[-1] < 1e-3


def test_seeds_give_their_mean_and_interval(names_csv, tmp_path):
    summary = trainer.train_seeds(small("epochs=1"), 2, data=names_csv, output=tmp_path / "runs", notice=lambda _: None)
    runs = [json.loads((tmp_path / f"runs/seed-{seed}/metrics.json").read_text()) for seed in range(2)]
    mean = np.mean([run["test/accuracy"] for run in runs])
    assert summary["test/accuracy"] == pytest.approx(mean)
    assert summary["test/accuracy_low"] <= mean <= summary["test/accuracy_high"]
    assert json.loads((tmp_path / "runs/metrics.json").read_text()) == summary
    again = trainer.train_seeds(
        small("epochs=1"), 2, data=names_csv, output=tmp_path / "runs", resume=True, notice=lambda _: None
    )
    assert again == summary


def test_other_seeds_are_another_run(interrupted, names_csv, tmp_path):
    quiet = {"data": names_csv, "resume": True, "notice": lambda _: None}
    recipe, single, _ = interrupted
    with pytest.raises(RequestError, match=r"holds a run without --seeds, the request is one with --seeds 2"):
        trainer.train_seeds(recipe, 2, output=single, **quiet)
    folder = tmp_path / "seeds"
    trainer.train_seeds(small("max_steps=1"), 1, **{**quiet, "resume": False}, output=folder)
    with pytest.raises(
        RequestError, match=r"with --seeds 1, the request is one with --seeds 2: repeat it with --seeds 1"
    ):
        trainer.train_seeds(small("max_steps=1"), 2, output=folder, **quiet)
    (folder / "metrics.json").unlink()
    with pytest.raises(RequestError, match=r"with --seeds 1, the request is one without --seeds"):
        train(small("max_steps=1"), names_csv, folder, resume=True)
    assert not (folder / "model.safetensors").exists()


def test_pairs_of_texts(pairs_csv, tmp_path):
    recipe = small("pair_column=other", "label_column=label", "text_column=text")
    metrics = train(recipe, pairs_csv, tmp_path / "run")
    assert metrics["test/n"] > 0
    assert load_classifier(tmp_path / "run").reads_pairs


def test_streamed_rows_train_and_resume(names_csv, tmp_path, monkeypatch):
    recipe = small("stream=true", "epochs=3")
    whole = train(recipe, names_csv, tmp_path / "whole")
    assert whole["train/steps"] > 10
    interrupted_train(monkeypatch, whole["train/steps"] - 4, recipe, names_csv, tmp_path / "part")
    assert reproducible(train(recipe, names_csv, tmp_path / "part", resume=True)) == reproducible(whole)


def test_streamed_pairs_train_with_as_many_in_memory_as_fit(pairs_csv, tmp_path):
    train(small("stream=true", "pair_column=other", "max_steps=1"), pairs_csv, tmp_path / "run")
    assert load_classifier(tmp_path / "run").reads_pairs


def test_streamed_rows_cannot_warm_up_lengths(names_csv, tmp_path):
    with pytest.raises(RequestError, match="length_warmup=0"):
        train(small("stream=true", "length_warmup=0.5"), names_csv, tmp_path / "run")


@pytest.mark.parametrize("length_warmup", [0.6, 9])
def test_a_length_warmup_resumes(names_csv, tmp_path, monkeypatch, length_warmup):
    recipe = small(f"length_warmup={length_warmup}", "epochs=3")
    whole = train(recipe, names_csv, tmp_path / "whole")
    interrupted_train(monkeypatch, whole["train/steps"] - 4, recipe, names_csv, tmp_path / "part")
    assert reproducible(train(recipe, names_csv, tmp_path / "part", resume=True)) == reproducible(whole)
    assert reproducible(train(small("epochs=3"), names_csv, tmp_path / "plain")) != reproducible(whole)


def test_without_a_terminal_a_long_run_writes_lines(names_csv, tmp_path, monkeypatch, capsys):
    train(small("max_steps=6"), names_csv, tmp_path / "short")
    assert "left at this pace" not in capsys.readouterr().err  # it took no minute
    monkeypatch.setattr(callbacks, "LINE_SECONDS", 0.0)
    train(small("max_steps=6"), names_csv, tmp_path / "long")
    lines = [line for line in capsys.readouterr().err.splitlines() if "left at this pace" in line]
    assert len(lines) > 2
    assert all(re.match(r"step \d/6, 00:0\d left at this pace: loss \d\.\d+, .*tokens/s", line) for line in lines)


def test_an_evaluation_leaves_the_shown_pace_as_it_was(names_csv, tmp_path, monkeypatch, capsys):
    clock = itertools.count()
    monkeypatch.setattr(callbacks, "time", types.SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr(callbacks, "LINE_SECONDS", 0.0)
    train(small("epochs=6", "hidden_dropout=0"), names_csv, tmp_path / "run")
    paces = [float(pace.replace(",", "")) for pace in re.findall(r"([\d,]+) tokens/s, ", capsys.readouterr().err)]
    assert min(paces[2:]) > 0.4 * max(
        paces[2:]
    )  # evaluations take time of their own; counted twice, it would be a quarter


def test_pixels_start_from_amounts(tmp_path):
    recipe = ["limit=200", "max_steps=1", "hidden_size=64", "num_hidden_layers=2", "learning_rate=1e-6"]
    roughness = {}
    for start in ("random", "amounts"):
        train(load_recipe("digits", [*recipe, f"embedding_init={start}"]), None, tmp_path / start)
        grey = load_classifier(tmp_path / start).model.get_input_embeddings().weight.detach()[1:]
        roughness[start] = ((grey[1:] - grey[:-1]).norm() / grey.norm()).item()
    assert roughness["amounts"] < 0.5 < 1 < roughness["random"]


def test_a_start_that_does_not_fit_the_task_is_refused(names_csv, tmp_path):
    with pytest.raises(RequestError, match=r"embedding_init=amounts needs pixels.*set embedding_init=random"):
        train(small("embedding_init=amounts"), names_csv, tmp_path / "texts")
    with pytest.raises(RequestError, match=r"embedding_init=ppmi needs texts, which digits has not"):
        train(load_recipe("digits", ["embedding_init=ppmi"]), None, tmp_path / "pixels")


def test_pixels(tmp_path):
    recipe = load_recipe("digits", ["limit=200", "epochs=1", "hidden_size=16", "num_hidden_layers=2"])
    metrics = trainer.train(recipe, output=tmp_path / "run", notice=lambda _: None)
    assert metrics["test/n"] > 0
    assert not (tmp_path / "run/tokenizer.json").exists()


def test_distilbert_from_its_config(names_csv, tmp_path):
    overrides = [
        "model=distilbert",
        "dim=16",
        "n_layers=1",
        "n_heads=2",
        "hidden_dim=32",
        "tokenizer=bytes",
        "max_steps=3",
    ]
    recipe = load_recipe("text_file", overrides)
    train(recipe, names_csv, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["model_type"], config["dim"], config["n_layers"]) == ("distilbert", 16, 1)


def test_softmax_mixer(names_csv, tmp_path):
    metrics = train(small("mixer=softmax", "num_attention_heads=2", "max_steps=3"), names_csv, tmp_path / "run")
    assert metrics["train/steps"] == 3
