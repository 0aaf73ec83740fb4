import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_trainer import interrupted_train, logged, reproducible
from transformers import AutoModel

from diffmix.errors import RequestError
from diffmix.tasks import load_task
from diffmix.tasks.encoding import EncodedDataset
from diffmix.tasks.long_range_arena import generated
from diffmix.tasks.long_range_arena.listops import Grammar
from diffmix.training import phases, trainer
from diffmix.training.pretraining import IGNORED, MaskingCollator, first_of_equal, in_blocks
from diffmix.training.recipe import load_recipe
from small_runs import SMALL

PRETRAINING = ["pretraining.epochs=2", "pretraining.mask_probability=0.3", "pretraining.max_length=32"]


def train(recipe, data, output, **options):
    return trainer.train(recipe, data=data, output=output, notice=lambda _: None, **options)


def test_blocks_keep_every_token_in_order_and_cut_at_the_length():
    lengths = [0, 5, 12, 3, 0, 8]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    dataset = EncodedDataset(np.arange(sum(lengths), dtype=np.int32), offsets)
    blocks = in_blocks(dataset, 4)
    assert np.concatenate([blocks[row]["input_ids"] for row in range(len(blocks))]).tolist() == list(range(28))
    assert blocks.lengths.tolist() == [4, 1, 4, 4, 4, 3, 4, 4]


def collator(**changes):
    settings = {"pad_token_id": 0, "mask_token_id": 3, "vocab_size": 100, "special_ids": [0, 3], "probability": 0.3}
    return MaskingCollator(**{**settings, **changes})


def test_masking_hides_about_the_share_asked_for_and_never_padding():
    rows = [{"input_ids": np.arange(10, 10 + length) % 90 + 5} for length in (50, 400, 1000)]
    batch = collator()(rows)
    asked = batch["labels"] != IGNORED
    real = batch["attention_mask"].bool()
    assert not (asked & ~real).any()
    assert asked.sum() / real.sum() == pytest.approx(0.3, abs=0.04)
    original = torch.where(asked, batch["labels"], batch["input_ids"])
    for row, ids in enumerate(rows):
        assert original[row][: len(ids["input_ids"])].tolist() == ids["input_ids"].tolist()
    masked = (batch["input_ids"] == 3) & asked
    assert masked.sum() / asked.sum() == pytest.approx(0.8, abs=0.06)


def test_a_short_row_still_asks_for_a_token():
    batch = collator(probability=0.001)([{"input_ids": np.array([7])}])
    assert batch["labels"].tolist() == [[7] + [-100] * 7]


def test_masks_follow_from_seed_epoch_and_batch_alone():
    rows, others = [{"input_ids": np.arange(5, 60)}], [{"input_ids": np.arange(6, 61)}]

    def hidden(batch, seed=1, epoch=0):
        collate = collator(seed=seed)
        collate.set_epoch(epoch)
        return collate(batch)["labels"] != IGNORED

    torch.manual_seed(1)
    first = hidden(rows)
    torch.manual_seed(2)
    assert torch.equal(hidden(rows), first)
    for different in (hidden(rows, seed=2), hidden(rows, epoch=1), hidden(others)):
        assert not torch.equal(different, first)


def test_pretraining_is_done_once_and_the_classifier_starts_from_it(names_csv, tmp_path):
    recipe = load_recipe("text_file", [*SMALL, *PRETRAINING, "max_steps=1", "learning_rate=1e-12"])
    output = tmp_path / "runs"
    trainer.train_seeds(recipe, 2, data=names_csv, output=output, notice=lambda _: None)
    before = json.loads((output / "pretraining/metrics.json").read_text())
    assert before["train/steps"] > 1
    assert before["validation/bits_per_byte"] == pytest.approx(
        before["validation/nll"] / math.log(2)
    )  # a token is a byte
    masked = load_file(output / "pretraining/model.safetensors")
    for seed in range(2):
        classifier = load_file(output / f"seed-{seed}/model.safetensors")
        shared = [name for name in classifier if name.startswith("model.")]
        assert shared
        for name in shared:
            torch.testing.assert_close(classifier[name], masked[name], atol=1e-6, rtol=0)
        metrics = json.loads((output / f"seed-{seed}/metrics.json").read_text())
        assert metrics["pretraining/train/seconds"] == before["train/seconds"]
    assert not (output / "seed-0/pretraining").exists()


@pytest.mark.parametrize("mid_epoch", [[], ["pretraining.eval_steps=4"]])
def test_a_run_killed_in_pretraining_ends_as_the_uninterrupted_one(names_csv, tmp_path, monkeypatch, mid_epoch):
    recipe = load_recipe("text_file", [*SMALL, *PRETRAINING, "epochs=1", *mid_epoch])
    whole = train(recipe, names_csv, tmp_path / "whole")
    interrupted_train(monkeypatch, 8, recipe, names_csv, tmp_path / "part")
    assert (tmp_path / "part/pretraining/checkpoints").is_dir()
    assert reproducible(train(recipe, names_csv, tmp_path / "part", resume=True)) == pytest.approx(reproducible(whole))
    losses = [logged(tmp_path / f"{run}/pretraining", "validation/loss") for run in ("whole", "part")]
    assert losses[0] == losses[1]


def test_init_from_another_run(names_csv, tmp_path):
    first = load_recipe("text_file", [*SMALL, *PRETRAINING, "max_steps=1"])
    train(first, names_csv, tmp_path / "first")
    again = load_recipe("text_file", [*SMALL, "max_steps=1", f"init_from={tmp_path / 'first/pretraining'}"])
    train(again, names_csv, tmp_path / "second")
    assert (tmp_path / "second/tokenizer.json").is_file()
    with pytest.raises(RequestError, match="init_from"):
        train(again.replace(hidden_size=32), names_csv, tmp_path / "third")
    with pytest.raises(RequestError, match="give a run's folder"):
        train(again.replace(init_from=str(tmp_path / "absent")), names_csv, tmp_path / "fourth")
    assert not (tmp_path / "third").exists()


def test_a_single_row_is_too_few(names_csv, tmp_path):
    with pytest.raises(RequestError, match="two rows or more"):
        train(load_recipe("text_file", [*SMALL, *PRETRAINING, "limit=1"]), names_csv, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_is_taken_whole_or_refused(names_csv, tmp_path):
    train(load_recipe("text_file", [*SMALL, "max_steps=1"]), names_csv, tmp_path / "first")
    again = load_recipe("text_file", [*SMALL, "max_steps=1", f"init_from={tmp_path / 'first'}"])
    train(again.replace(num_hidden_layers=3), names_csv, tmp_path / "deeper")  # the third layer is drawn
    for name, change in {
        "other": {"mixer": "softmax", "num_attention_heads": 2},
        "shallower": {"num_hidden_layers": 1},
        "positions": {"position_embedding": "learned"},
    }.items():
        with pytest.raises(RequestError, match=r"init_from: .* does not fit this recipe's model: it (has|lacks) model"):
            train(again.replace(**change), names_csv, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_bare_backbone_is_taken_whole_or_refused(names_csv, tmp_path):
    train(load_recipe("text_file", [*SMALL, "max_steps=1"]), names_csv, tmp_path / "first")
    backbone = AutoModel.from_pretrained(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "bare")
    backbone.save_pretrained(tmp_path / "bare")
    again = load_recipe("text_file", [*SMALL, "max_steps=1", "learning_rate=1e-12", f"init_from={tmp_path / 'bare'}"])
    train(again, names_csv, tmp_path / "again")
    found = AutoModel.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(found.embedding.weight, backbone.embedding.weight, atol=1e-6, rtol=0)
    with pytest.raises(RequestError, match="does not fit this recipe's model: it has layers"):
        train(again.replace(num_hidden_layers=1), names_csv, tmp_path / "shallower")


def test_a_tokenizer_without_a_mask_token_is_refused(names_csv, tmp_path, monkeypatch):
    recipe = load_recipe("text_file", [*SMALL, *PRETRAINING])
    original = phases.load_tokenizer

    def without(folder):
        tokenizer = original(folder)
        tokenizer.mask_token = None
        return tokenizer

    monkeypatch.setattr(phases, "load_tokenizer", without)
    with pytest.raises(RequestError, match="mask token"):
        train(recipe, names_csv, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_blocks_of_any_length_fit_learned_positions(names_csv, tmp_path):
    lengths = ["pretraining.max_length=13", "max_length=13", "position_embedding=learned"]
    recipe = load_recipe("text_file", [*SMALL, *PRETRAINING, *lengths, "max_steps=1"])
    assert train(recipe, names_csv, tmp_path / "run")["test/n"] > 0


def test_a_texts_mean_state_can_help_to_restore_its_tokens(names_csv, tmp_path):
    recipe = load_recipe(
        "text_file",
        [*SMALL, *PRETRAINING, "pretraining.document_context=true", "pretraining.sampled_softmax=50", "max_steps=1"],
    )
    train(recipe, names_csv, tmp_path / "run")
    masked = load_file(tmp_path / "run/pretraining/model.safetensors")
    assert masked["context.weight"].abs().max() > 0
    assert not any(name.startswith("context") for name in load_file(tmp_path / "run/model.safetensors"))


def test_pixels_are_restored_where_a_task_has_no_texts(tmp_path):
    keys = ["hidden_size=32", "num_hidden_layers=2", "neighbor_offsets=[-8, -1, 0, 1, 8]", "dtype=fp32", "max_steps=1"]
    phase = ["pretraining.epochs=8", "pretraining.learning_rate=5e-3", "pretraining.mask_probability=0.3"]
    train(load_recipe("digits", [*keys, *phase, "learning_rate=1e-12"]), None, tmp_path / "run")
    before = json.loads((tmp_path / "run/pretraining/metrics.json").read_text())
    # Half of a digit's pixels are blank, which a model that hears no neighbours restores everywhere.
    train_pixels = load_task("digits").train.input_ids
    assert before["validation/accuracy"] > (train_pixels == 1).mean() + 0.02
    assert "validation/bits_per_byte" not in before
    masked, classifier = (load_file(tmp_path / folder / "model.safetensors") for folder in ("run/pretraining", "run"))
    for name in (name for name in classifier if name.startswith("model.")):
        torch.testing.assert_close(classifier[name], masked[name], atol=1e-6, rtol=0)


def test_expressions_of_many_lengths_are_restored_and_the_run_resumes(tmp_path, monkeypatch):
    data = tmp_path / "data"
    monkeypatch.setitem(generated.GENERATED, "listops_short", generated.GeneratedTask((120, 20, 20), Grammar(8, 31)))
    generated.write_generated("listops_short", data)
    keys = ["hidden_size=16", "num_hidden_layers=2", "neighbor_offsets=[-1, 0, 1]", "extra_train=", "batch_size=16"]
    recipe = load_recipe("listops_short", [*keys, "epochs=1", "pretraining.epochs=2", "dtype=fp32"])
    whole = train(recipe, data, tmp_path / "whole")
    interrupted_train(monkeypatch, 8, recipe, data, tmp_path / "part")
    assert (tmp_path / "part/pretraining/checkpoints").is_dir()
    assert reproducible(train(recipe, data, tmp_path / "part", resume=True)) == pytest.approx(reproducible(whole))


PIXELS = ["hidden_size=16", "num_hidden_layers=2", "limit=60", "epochs=1", "dtype=fp32", "pretraining.epochs=1"]
BERT = ["model=bert", "hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=16"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["pretraining.max_length=8"], r"max_length=8.* 8 positions.* needs 64: set max_position_embeddings=64"),
        (["subword_dropout=0.1"], "subword_dropout"),
        (["self_training.epochs=1"], "self_training"),
        (["pretraining.task=language_id"], "pretraining.task=language_id has other ids than task=digits"),
        ([*BERT, "model=roberta"], "counts no position"),
        ([*BERT, "model=esm"], "counts no position"),
        (["model=gpt2", "pretraining.model=gpt2"], "model=gpt2 has no head"),
    ],
)
def test_pretraining_that_leads_nowhere_is_refused_before_it_begins(keys, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(phases.Run, "pretraining", lambda *_: pytest.fail("it began"))
    with pytest.raises(RequestError, match=expected):
        train(load_recipe("digits", [*PIXELS, *keys]), None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pretraining_too_short_for_another_family_is_refused_before_it_begins(names_csv, tmp_path, monkeypatch):
    monkeypatch.setattr(phases.Run, "pretraining", lambda *_: pytest.fail("it began"))
    keys = [*BERT, "max_length=600", "pretraining.max_length=64", "tokenizer=bytes"]
    with pytest.raises(RequestError, match="max_position_embeddings=600"):
        train(load_recipe("text_file", keys), names_csv, tmp_path / "run")


def test_of_equal_rows_the_first_is_read():
    rows = EncodedDataset(np.array([1, 2, 1, 2, 1, 2, 3], dtype=np.int32), np.array([0, 2, 4, 6, 7]))
    assert first_of_equal(rows).tolist() == [0, 3]
    different = EncodedDataset(np.array([1, 2, 3], dtype=np.int32), np.arange(4))
    assert first_of_equal(different).tolist() == [0, 1, 2]


def test_a_start_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RequestError, match=f"init_from: there is no folder {tmp_path}/absent"):
        train(
            load_recipe("digits", [*PIXELS, "pretraining=null", f"init_from={tmp_path / 'absent'}"]),
            None,
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_of_pairs_both_texts_are_read_each_once(pairs_csv):
    task = load_task("text_file", data=pairs_csv, text_column="text", pair_column="other")
    texts = task.all_texts()
    assert sorted(texts) == sorted({*task.train.texts, *task.train.pairs})
