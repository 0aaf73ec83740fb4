"""Models of images, pixel by pixel: trained, measured, refused."""

import json
import math

import numpy as np
import pytest
import torch

from diffmix.cli.main import main
from diffmix.errors import RequestError
from diffmix.tasks.language import load_language
from diffmix.training.language import load_language_model
from diffmix.training.recipe import load_recipe
from diffmix.training.trainer import train

SMALL = [
    "hidden_size=16",
    "num_hidden_layers=2",
    "num_attention_heads=2",
    "diffusion_hops=2",
    "limit=96",
    "max_steps=12",
    "batch_size=16",
    "learning_rate=1e-2",
    "dtype=fp32",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels") / "run"
    return folder, train(load_recipe("digits_pixels", SMALL), output=folder, notice=lambda _: None)


def test_a_model_of_digits_learns_and_is_scored_in_bits_per_dimension(run):
    folder, metrics = run
    assert metrics["train/examples"] == 96
    assert metrics["test/n"] == 96 * 64  # each pixel once
    assert metrics["test/documents"] == 96
    assert metrics["test/bits_per_dim"] == pytest.approx(metrics["test/nll"] / math.log(2))
    assert metrics["test/bits_per_dim_low"] < metrics["test/bits_per_dim"] < metrics["test/bits_per_dim_high"]
    assert metrics["test/bits_per_dim"] < math.log2(17)  # what knowing nothing but the grey values costs
    assert not {"test/word_perplexity", "test/bits_per_byte"} & set(metrics)
    assert metrics["data/grey_values"] == 17
    assert not (folder / "tokenizer_config.json").exists()
    card = (folder / "README.md").read_text()
    assert "A causal model of images, pixel by pixel" in card
    assert "over the test images" in card
    assert "diffmix evaluate FOLDER" in card


def test_bits_per_dimension_are_those_of_the_definition(run):
    """Σ log2 p(pixel | pixels before it) over an image at a time, by hand."""
    folder, metrics = run
    loaded = load_language_model(folder, dtype="fp32")
    test = load_language("digits_pixels", limit=96).load_test()
    assert test is not None
    ids = torch.from_numpy(test.pixels).long()
    given = torch.cat([torch.full((len(ids), 1), 18), ids[:, :-1]], dim=1)
    with torch.inference_mode():
        scores = loaded.model.eval()(input_ids=given).logits.double().log_softmax(dim=-1)
    bits = -scores.gather(-1, ids.unsqueeze(-1)).mean() / math.log(2)
    assert metrics["test/bits_per_dim"] == pytest.approx(float(bits), rel=1e-4)


def test_evaluate_and_calibrate_measure_it_and_generate_refuses(run, capsys):
    folder, metrics = run
    assert main(["evaluate", str(folder), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["test/bits_per_dim"] == pytest.approx(metrics["test/bits_per_dim"], rel=1e-4)
    assert main(["calibrate", str(folder), "--temperature", "--max_tokens", "640"]) == 0
    assert "bits a dimension" in capsys.readouterr().out
    result = json.loads((folder / "calibration/calibration.json").read_text())
    assert result["before"]["n"] == 640
    for arguments, message in (
        (["generate", str(folder)], "goes on with pixels"),
        (["predict", str(folder), "text"], "does not classify"),
        (["evaluate", str(folder), "--task", "python_docs"], "reads pixels but was given text"),
        (["evaluate", str(folder), "--task", "digits"], "does not classify"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.strip().count("\n") == 0


def test_images_of_other_grey_values_are_refused(run, tmp_path):
    from diffmix.tasks.pixels import PixelImages

    with pytest.raises(RequestError, match="17 grey values but was given 256"):
        load_language_model(run[0]).score(PixelImages(np.ones((1, 64), dtype=np.int16), 256))


def test_a_window_that_does_not_hold_an_image_is_refused(tmp_path):
    with pytest.raises(RequestError, match="set max_length=65 or more"):
        train(load_recipe("digits_pixels", ["max_length=64"]), output=tmp_path / "run", notice=lambda _: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keys", [["mixer=softmax"], ["model=gpt2", "n_embd=16", "n_layer=1", "n_head=2"]])
def test_other_models_of_images_train_by_the_same_recipe(tmp_path, keys):
    small = ["limit=32", "max_steps=2", "batch_size=16", "dtype=fp32"]
    small += SMALL[:3] if keys == ["mixer=softmax"] else []
    metrics = train(load_recipe("digits_pixels", [*keys, *small]), output=tmp_path / "run", notice=lambda _: None)
    assert metrics["test/bits_per_dim"] < math.log2(19) + 2
    loaded = load_language_model(tmp_path / "run")
    assert loaded.tokenizer is None
    assert loaded.model.config.bos_token_id == 18
