"""`diffmix calibrate` and `diffmix bench swap` on small real models, through the command line."""

import json
import shutil
import struct
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from diffmix.cli.main import main
from diffmix.evaluation.smooth import smooth_calibration_error
from diffmix.evaluation.streaming import StreamingCalibration
from diffmix.tasks.language import TokenWindows, load_language
from diffmix.tasks.tokenizers import build_tokenizer
from small_runs import SMALL_LANGUAGE


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder of Hugging Face's with a GPT-2 that has read some of the embedded text, and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    tokenizer = build_tokenizer("bytes", [], max_length=64)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    config.bos_token_id = config.eos_token_id = None
    model = GPT2LMHeadModel(config)
    tokens = torch.from_numpy(TokenWindows(load_language("python_docs").train, tokenizer, 64).tokens).long()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(60):
        ids = torch.stack([tokens[start : start + 64] for start in torch.randint(len(tokens) - 64, (8,))])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(2)  # too sure of itself
        model.transformer.ln_f.bias.mul_(2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def docs_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "docs"
    sets = [part for override in SMALL_LANGUAGE for part in ("--set", override)]
    assert main(["train", "python_docs", "--output", str(folder), *sets]) == 0
    return folder


def read(folder):
    return json.loads((folder / "calibration.json").read_text())


def check_figures(folder, *stems):
    assert {path.name for path in folder.iterdir()} == {
        "calibration.json",
        *(f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")),
    }
    for stem in stems:
        assert (folder / f"{stem}.svg").read_text().startswith("<svg")
        png = (folder / f"{stem}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(struct.unpack(">II", png[16:24])) > 300


def test_a_language_model_of_hugging_face(diffmix, gpt2, tmp_path):
    folder = tmp_path / "out"
    text = ("--max_tokens", 3000, "--dtype", "fp32")
    code, out, err = diffmix("calibrate", gpt2, "--task", "python_docs", "--temperature", *text, "--output", folder)
    assert code == 0, err
    found = read(folder)
    before, after = found["before"], found["after"]
    assert found["temperature"] > 1.2
    assert after["nll"] < before["nll"] - 0.01
    assert abs(after["overconfidence"]) < before["overconfidence"]
    assert after["ece"] < before["ece"]
    assert after["accuracy"] == before["accuracy"]
    assert 2000 < before["n"] <= 3000
    assert before["perplexity"] == pytest.approx(np.exp(before["nll"]))
    for name in (
        "word_perplexity",
        "bits_per_byte",
        "brier",
        "top_label_brier",
        "ece_equal_mass",
        "mce",
        "entropy_std",
    ):
        assert np.isfinite(before[name])
    assert sum(row["count"] for row in found["reliability_before"]) == before["n"]
    check_figures(folder, "reliability", "reliability-scaled")
    assert "perplexity a token" in out
    assert f"T = {found['temperature']:.3f}" in out
    assert found["command"] == (
        "diffmix calibrate gpt2 --task python_docs --temperature --max_tokens 3000 --dtype fp32"
    )
    code, out, _ = diffmix("calibrate", gpt2, "--task", "python_docs", "--output", folder)
    assert (code, "--force" in _) == (2, True)
    # The same numbers as `evaluate` finds, and the same with the swap alone.
    swapped = tmp_path / "swapped"
    extra = ("--attention", "heat_kernel", "--json", "--output", swapped)
    code, out, err = diffmix("calibrate", gpt2, "--task", "python_docs", *text, *extra)
    assert code == 0, err
    assert json.loads(out)["before/nll"] == pytest.approx(before["nll"], abs=1e-5)
    check_figures(swapped, "reliability")


def test_our_language_model_on_the_task_of_its_run(diffmix, docs_run):
    code, out, err = diffmix("calibrate", docs_run, "--split", "validation", "--bins", 10)
    assert code == 0, err
    found = read(docs_run / "calibration")
    assert (found["task"], found["split"], found["temperature"]) == ("python_docs", "validation", None)
    assert len(found["reliability_before"]) == 10
    assert "after" not in found
    _, out, _ = diffmix("evaluate", docs_run, "--split", "validation", "--json")
    evaluated = json.loads(out)
    for name in ("nll", "perplexity", "brier", "n"):
        assert found["before"][name] == pytest.approx(evaluated[f"validation/{name}"], rel=1e-6), name


def test_a_classifier(diffmix, run_folder, tmp_path):
    folder = tmp_path / "out"
    code, out, err = diffmix("calibrate", run_folder, "--temperature", "--output", folder)
    assert code == 0, err
    found = read(folder)
    _, out, _ = diffmix("evaluate", run_folder, "--json")
    evaluated = json.loads(out)
    for name in ("accuracy", "macro_f1", "nll", "brier", "ece", "ece_equal_mass", "accuracy_low", "n"):
        assert found["before"][name] == pytest.approx(evaluated[f"test/{name}"], abs=1e-6), name
    assert found["after"]["accuracy"] == found["before"]["accuracy"]
    assert found["after"]["nll"] != found["before"]["nll"]
    assert {"top_label_brier", "mce", "entropy", "overconfidence"} <= found["after"].keys()
    check_figures(folder, "reliability", "reliability-scaled")


def test_a_classifier_of_hugging_face_whose_labels_have_no_names(diffmix, names_csv, tmp_path):
    model, folder = tmp_path / "bert", tmp_path / "out"
    tokenizer = build_tokenizer("bytes", [], max_length=48)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=3, max_position_embeddings=64, **shape)
    BertForSequenceClassification(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    of = ("--task", "text_file", "--data", names_csv, "--output", folder)
    code, _, err = diffmix("calibrate", model, *of)
    assert code == 0, err
    assert read(folder)["before"]["n"] > 10
    BertForSequenceClassification(BertConfig(**{**config.to_dict(), "num_labels": 5})).save_pretrained(model)
    code, _, err = diffmix("calibrate", model, *of, "--force")
    assert code == 2
    assert "has the label 'de', which this model does not know: it knows LABEL_0" in err
    small = BertConfig(**{**config.to_dict(), "vocab_size": 100})
    BertForSequenceClassification(small).save_pretrained(model)
    code, _, err = diffmix("calibrate", model, *of, "--force")
    assert code == 2
    assert "tokens and the model 100; give both of one model" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--task", "python_docs", "--attention", "foo"],
            "error: attention: unknown attention 'foo'; give one of eager, sdpa, heat_kernel",
        ),
        (["--task", "python_docs", "--temperature", "--split", "validation"], "give --split test"),
        (["--task", "python_docs", "--split", "train"], "give test or validation"),
        (["--task", "python_docs", "--max_length", "65"], "this model takes at most 64 tokens"),
        (["--task", "python_docs", "--dtype", "foo"], "dtype is 'foo'; give auto, bf16, fp16 or fp32"),
        (["--task", "python_docs", "--device", "foo"], "device is 'foo'; give auto, cpu or cuda"),
        (["--task", "python_dogs"], "python_dogs"),
        ([], "give --task"),
        (["--task", "digits"], "GPT2LMHeadModel"),
    ],
)
def test_a_wrong_request_is_one_line(diffmix, gpt2, tmp_path, arguments, message):
    code, out, err = diffmix("calibrate", gpt2, *arguments, "--output", tmp_path / "out")
    assert code == 2
    assert message in err
    assert err.strip().count("\n") == 0
    assert out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("time", [0.0, -2.0, [1.0], "soon"])
def test_a_wrong_time_in_the_configuration_is_one_line(diffmix, gpt2, tmp_path, time):
    import shutil

    folder = shutil.copytree(gpt2, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"heat_time": time}))
    arguments = (
        "--task",
        "python_docs",
        "--max_tokens",
        100,
        "--attention",
        "heat_kernel",
        "--output",
        tmp_path / "out",
    )
    code, _, err = diffmix("calibrate", folder, *arguments)
    assert code == 2
    assert "config.heat_time" in err
    assert not (tmp_path / "out").exists()


def test_what_an_extra_brings_is_named_where_it_is_absent(diffmix, gpt2, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "relplot", None)
    monkeypatch.setitem(sys.modules, "relplot.metrics", None)
    text = ("--task", "python_docs", "--max_tokens", 100, "--output", tmp_path / "out")
    code, _, err = diffmix("calibrate", gpt2, *text, "--smece")
    assert code == 2
    assert "pip install 'diffmix[smece]'" in err
    assert not (tmp_path / "out").exists()
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = diffmix("calibrate", file, *text)
    assert code == 2
    assert "pip install 'diffmix[gguf]'" in err


def test_smece_is_relplots_own(diffmix, gpt2, tmp_path):
    metrics = pytest.importorskip("relplot.metrics")
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((0.6 * logits).softmax(-1), 1, generator=generator).squeeze(1)
    stream = StreamingCalibration()
    for part in range(4):
        stream.update(logits[part::4], labels[part::4])
    confidence, predicted = logits.softmax(-1).max(-1)
    expected = metrics.smECE(confidence.numpy(), (predicted == labels).double().numpy())
    assert smooth_calibration_error(stream) == pytest.approx(expected, abs=1e-4)
    text = ("--task", "python_docs", "--max_tokens", 1000, "--output", tmp_path / "out")
    code, _, err = diffmix("calibrate", gpt2, *text, "--smece")
    assert code == 0, err
    assert 0 < read(tmp_path / "out")["before"]["smece"] < 1


def test_a_swap_is_measured_and_written_down(diffmix, gpt2, tmp_path):
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    with torch.no_grad():  # the second layer is far too sharp: its best time is another than the first's
        model.transformer.h[1].attn.c_attn.weight[:, :32].mul_(20)
        model.transformer.h[1].attn.c_attn.bias[:32].mul_(20)
    model.save_pretrained(tmp_path / "gpt2")
    shutil.copytree(gpt2, tmp_path / "gpt2", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    file = tmp_path / "swap.json"
    arguments = ["--run", tmp_path / "gpt2", "--task", "python_docs", "--tokens", 32, "--limit", 1500, "--output", file]
    code, out, err = diffmix("bench", "swap", *arguments)
    assert code == 0, err
    found = json.loads(file.read_text())
    rows = {row["attention"]: row for row in found["rows"]}
    assert list(rows) == [
        "own",
        "heat_kernel, exact time",
        *(f"heat_kernel, {factor} × exact" for factor in ("0.5", "0.7", "1.4", "2")),
        "heat_kernel, one fitted time",
        "heat_kernel, a fitted time a layer",
    ]
    assert found["exact_time"] == pytest.approx(2.0)  # heads of 16 channels
    assert found["max_logit_difference"] < 1e-4
    assert len(rows["heat_kernel, a fitted time a layer"]["time"]) == 2
    assert found["measured_on"]["tokens"] == rows["own"]["metrics"]["n"] <= 1500
    assert found["fitted_on"]["split"] == "validation"
    assert abs(rows["heat_kernel, exact time"]["metrics"]["nll_difference"]) < 1e-6
    assert found["command"] == "diffmix bench swap --run gpt2 --task python_docs --tokens 32 --limit 1500"
    assert "ECE noise floor" in out
    assert "| heat_kernel, one fitted time" in out
    code, _, err = diffmix("bench", "swap", *arguments)
    assert (code, "--force" in err) == (2, True)
    code, _, err = diffmix("bench", "swap")
    assert (code, "--run" in err) == (2, True)
    code, _, err = diffmix("bench", "operators", "--task", "python_docs")
    assert (code, "--task" in err) == (2, True)
