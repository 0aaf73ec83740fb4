"""Training on a GPU. Skipped where there is none."""

import pytest
import torch

from diffmix.training import callbacks
from diffmix.training.recipe import load_recipe
from diffmix.training.trainer import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["neighbor", "softmax", "heat_kernel", "attention_diffusion"])
def test_training_goes_on_as_if_never_interrupted(mixer, tmp_path, names_csv, monkeypatch):
    settings = [
        "tokenizer=bytes",
        "max_length=48",
        "hidden_size=16",
        "num_hidden_layers=2",
        "num_attention_heads=2",
        "intermediate_size=32",
        "neighbor_offsets=[-1, 0, 1]",
        "max_steps=40",
        "eval_steps=10",
        "learning_rate=5e-3",
        "early_stopping_patience=0",
        "device=cuda",
        f"mixer={mixer}",
    ]
    recipe = load_recipe("text_file", settings)
    whole = train(recipe, data=names_csv, output=tmp_path / "whole", notice=lambda _: None)
    assert whole["test/accuracy"] > 0.5  # three languages of like frequency

    saved = callbacks.mark_complete

    def killed(checkpoint):
        saved(checkpoint)
        if checkpoint.name == "checkpoint-20":
            raise KeyboardInterrupt

    monkeypatch.setattr(callbacks, "mark_complete", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, data=names_csv, output=tmp_path / "torn", notice=lambda _: None)
    monkeypatch.setattr(callbacks, "mark_complete", saved)
    resumed = train(recipe, data=names_csv, output=tmp_path / "torn", resume=True, notice=lambda _: None)
    assert resumed["train/steps"] == 40
    assert resumed["test/nll"] == pytest.approx(whole["test/nll"], rel=0.05)
