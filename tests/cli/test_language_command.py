import json
import re
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from diffmix.cli.language_arguments import RECIPE_KEYS, standard_arguments
from diffmix.cli.main import main
from diffmix.errors import RequestError
from diffmix.training.recipe import load_recipe
from small_runs import SMALL_LANGUAGE

SETS = [part for override in SMALL_LANGUAGE for part in ("--set", override)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "docs"
    assert main(["train", "python_docs", "--output", str(folder), *SETS]) == 0
    return folder


def recipe_of(arguments):
    """The recipe that `diffmix train language` would train with the paper's arguments, and what else it is told."""
    standard = standard_arguments(["train", "language", *arguments])
    changes = [standard[place + 1] for place, part in enumerate(standard) if part == "--set"]
    others = [part for place, part in enumerate(standard) if part != "--set" and standard[place - 1] != "--set"]
    return load_recipe("language", changes), others[2:]


def test_the_papers_defaults_are_those_of_the_recipe():
    recipe, others = recipe_of([])
    assert others == []
    theirs = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
    assert theirs.items() <= recipe.config.items()
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (10, 32, 3e-4)
    assert (recipe.max_length, recipe.task, recipe.eval_steps, recipe.save_steps) == (256, "wikitext2", 500, None)
    assert (recipe.max_tokens, recipe.config["mixer"], recipe.tokenizer) == (None, "softmax", "gpt2")


def test_the_papers_arguments_become_recipe_keys():
    theirs = (
        "--model diffusion_fixed --fixed_t 0.2 --n_layers 8 --d_model 128 --d_ff 512 --n_heads 2 --epochs 1 "
        "--max_tokens 500000 --batch_size 16 --lr 1e-3 --seq_len 128 --dataset wikitext-103 --eval_interval 50 "
        "--save_every 25 --exp_name 8layer_t020"
    )
    recipe, others = recipe_of([*theirs.split(), "--seeds", "3"])
    assert recipe.config["mixer"] == "heat_kernel"
    assert (recipe.config["heat_time"], recipe.config["heat_time_mode"]) == (0.2, "fixed")
    assert (recipe.config["num_hidden_layers"], recipe.config["hidden_size"]) == (8, 128)
    assert (recipe.config["intermediate_size"], recipe.config["num_attention_heads"]) == (512, 2)
    assert (recipe.epochs, recipe.max_tokens, recipe.batch_size, recipe.learning_rate) == (1, 500_000, 16, 1e-3)
    assert (recipe.max_length, recipe.task, recipe.eval_steps, recipe.save_steps) == (128, "wikitext103", 50, 25)
    assert others == ["--seeds", "3", "--output", "runs/8layer_t020"]


@pytest.mark.parametrize(
    ("arguments", "mixer", "mode"),
    [
        (["--model", "standard"], "softmax", "fixed"),
        (["--model", "diffusion_fixed"], "heat_kernel", "fixed"),
        (["--model", "diffusion_adaptive"], "heat_kernel", "adaptive"),
    ],
)
def test_the_papers_models(arguments, mixer, mode):
    recipe, _ = recipe_of(arguments)
    assert recipe.config["mixer"] == mixer
    assert recipe.config.get("heat_time_mode", "fixed") == mode
    if mixer == "heat_kernel":
        assert recipe.config["heat_time"] == 1.0  # their default


def test_resume_takes_a_checkpoint_or_nothing(tmp_path):
    assert recipe_of(["--resume"])[1] == ["--resume"]
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-50"
    for place in (checkpoint, tmp_path / "run"):
        assert recipe_of(["--resume", str(place)])[1] == ["--resume", "--output", str(tmp_path / "run")]
    assert standard_arguments(["train", "ag_news", "--resume"]) == ["train", "ag_news", "--resume"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "difusion"], "difusion"),
        (["--dataset", "c4"], "c4"),
        (["--fixed_t", "0.2"], "--model diffusion_fixed"),
        (["--n_layers"], "--n_layers"),
        (["--exp_name", "a", "--output", "b"], "--exp_name and --output both name"),
        (["--resume", "runs/a", "--output=b"], "--resume CHECKPOINT and --output both name"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(RequestError, match=message):
        standard_arguments(["train", "language", *arguments])


@pytest.mark.parametrize("time", ["0", "-0.5", ".nan", ".inf"])
def test_a_time_that_is_none_is_refused(diffmix, tmp_path, time):
    code, _, error = diffmix(
        "train", "language", "--model", "diffusion_fixed", "--fixed_t", time, "--output", tmp_path / "run"
    )
    assert code == 2
    assert "heat_time" in error
    assert not (tmp_path / "run").exists()


def test_generate_goes_on_with_a_text(diffmix, run):
    code, out, _ = diffmix("generate", run, "--prompt", "The for", "--max_tokens", 12, "--num_samples", 3)
    assert code == 0
    samples = out.rstrip("\n").split("---\n")
    assert len(samples) == 3
    assert all(sample.startswith("The for") for sample in samples)
    code, again, _ = diffmix("generate", run, "--prompt", "The for", "--max-tokens", 12, "--num_samples", 3)
    assert (code, again) == (0, out)
    code, other, _ = diffmix("generate", run, "--prompt", "The for", "--max_tokens", 12, "--seed", 7)
    assert code == 0
    assert not out.startswith(other)


def test_generate_at_temperature_0_is_step_by_step_argmax(diffmix, run):
    import torch

    from diffmix.training.language import load_language_model

    code, out, _ = diffmix("generate", run, "--prompt", "The for", "--max_tokens", 6, "--temperature", 0, "--json")
    assert code == 0
    loaded = load_language_model(run, dtype="fp32")
    ids = loaded.tokenizer("The for", add_special_tokens=False)["input_ids"]
    start = len(ids)
    for _ in range(6):
        ids.append(int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert json.loads(out)["text"] == loaded.tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["wordpiece", "metaspace"])
def test_generate_keeps_the_space_behind_the_prompt(diffmix, tmp_path, kind):
    from diffmix import DiffmixConfig, DiffmixForCausalLM

    words = ["the", "river", "is", "wide"]
    if kind == "wordpiece":
        plain = Tokenizer(
            models.WordPiece({"[UNK]": 0} | {word: i + 1 for i, word in enumerate(words)}, unk_token="[UNK]")
        )
        plain.pre_tokenizer, plain.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    else:
        plain = Tokenizer(models.WordLevel({"[UNK]": 0} | {f"▁{word}": i + 1 for i, word in enumerate(words)}, "[UNK]"))
        plain.pre_tokenizer, plain.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(tmp_path)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 5, "pad_token_id": None}
    DiffmixForCausalLM(DiffmixConfig(mixer="softmax", **shape)).save_pretrained(tmp_path)
    code, out, _ = diffmix("generate", tmp_path, "--prompt", "the river", "--max_tokens", 8, "--seed", 1)
    assert code == 0
    assert out.startswith("the river ")
    assert set(out.split()) <= {*words, "[UNK]"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_tokens", "500"], "more than the 64"),
        (["--top_p", "0"], "--top_p"),
        (["--num_samples", "3", "--temperature", "0"], "the same"),
        (["--num_samples", "3", "--num_beams", "2"], "beams"),
        (["--seed", "99999999999999999999"], "--seed"),
        (["--prompt", "caf\udce9"], "--prompt is not UTF-8 (character 4)"),
    ],
)
def test_generate_names_what_is_wrong(diffmix, run, arguments, message):
    code, _, error = diffmix("generate", run, *arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_evaluate_measures_a_language_model(diffmix, run):
    code, out, _ = diffmix("evaluate", run, "--json")
    assert code == 0
    metrics = json.loads((run / "metrics.json").read_text())
    measured = json.loads(out)
    assert measured["test/nll"] == pytest.approx(metrics["test/nll"], rel=1e-4)
    assert measured["test/word_perplexity"] == pytest.approx(metrics["test/word_perplexity"], rel=1e-3)
    code, out, _ = diffmix("evaluate", run, "--split", "validation")
    assert code == 0
    assert "validation/perplexity" in out


def test_weights_that_are_missing_are_not_drawn(diffmix, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    for verb in (["generate", folder, "--prompt", "a"], ["evaluate", folder]):
        code, _, error = diffmix(*verb)
        assert code == 1
        assert f"error: {folder} is damaged (its weights lack model.layers.2." in error


def test_a_language_model_does_not_classify(diffmix, run):
    code, _, error = diffmix("predict", run, "a text")
    assert code == 2
    assert "DiffmixForCausalLM" in error


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"\x89PNG\x00\x1a", "is 0"), (b"caf\xe9 " * 99, "UTF-8")]
)
def test_files_that_are_no_text_are_named(diffmix, tmp_path, content, message):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    sets = [*SETS, "--set", "task=plain_text"]
    code, _, error = diffmix("train", "python_docs", "--data", path, "--output", tmp_path / "run", *sets)
    assert code == 2
    assert message in error
    assert str(path) in error
    assert not (tmp_path / "run").exists()


def test_text_of_your_own(diffmix, tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text("the cat sat on the mat\n" * 400)
    sets = [*SETS, "--set", "task=plain_text", "--set", "max_steps=6"]
    code, out, error = diffmix("train", "python_docs", "--data", path, "--output", tmp_path / "run", *sets)
    assert code == 0, error
    assert "test/bits_per_byte" in out


def test_the_documented_table_names_every_argument_with_the_recipes_default():
    text = (Path(__file__).parents[2] / "docs" / "language.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `--(\w+)` \| (\S+) \| `(?:\w+)`", text, re.MULTILINE))
    keys = dict(re.findall(r"^\| `--(\w+)` \| \S+ \| `(\w+)`", text, re.MULTILINE))
    recipe = load_recipe("language").to_dict()
    assert {name: keys[name] for name in RECIPE_KEYS} == RECIPE_KEYS
    for name, key in RECIPE_KEYS.items():
        assert (None if rows[name] == "none" else float(rows[name])) == recipe[key], name
