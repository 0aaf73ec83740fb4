"""`diffmix convert` on small encoders made from their configurations, through the command line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
)

from diffmix import register_attention
from diffmix.tasks.tokenizers import build_tokenizer

WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SHAPE = {"vocab_size": 300, **WIDE}
TWO_EARLIER = {"pad_token_id": 1, "max_position_embeddings": 34}  # RoBERTa's first two rows are of no position
SOURCES = {
    "bert": BertConfig(max_position_embeddings=32, **SHAPE),
    "distilbert": DistilBertConfig(
        vocab_size=300, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=32
    ),
    "electra": ElectraConfig(embedding_size=8, max_position_embeddings=32, **SHAPE),
    "roberta": RobertaConfig(**TWO_EARLIER, **SHAPE),
    "camembert": CamembertConfig(**TWO_EARLIER, **SHAPE),
    "xlm-roberta": XLMRobertaConfig(**TWO_EARLIER, **SHAPE),
}
FULL = ("--set", "diffusion_window=64", "diffusion_hops=1", "diffusion_alpha=0")


def save(folder, model):
    torch.manual_seed(0)
    model.save_pretrained(folder)
    build_tokenizer("bytes", [], max_length=32).save_pretrained(folder)
    return folder


@pytest.fixture
def bert(tmp_path):
    return save(tmp_path / "bert", BertForMaskedLM(SOURCES["bert"]))


@pytest.mark.parametrize("name", SOURCES)
def test_a_full_pattern_and_one_hop_are_the_source(diffmix, tmp_path, name):
    source = save(tmp_path / "source", AutoModelForMaskedLM.from_config(SOURCES[name]))
    output = tmp_path / "long"
    code, out, err = diffmix("convert", source, "--output", output, "--max_length", 100, *FULL)
    assert code == 0, err
    assert "32 positions, now 100" in out
    assert f"Wrote {output}" in out
    register_attention()
    before = AutoModelForMaskedLM.from_pretrained(source)
    after = AutoModelForMaskedLM.from_pretrained(output, attn_implementation="attention_diffusion")
    assert type(after) is type(before)
    assert AutoTokenizer.from_pretrained(output).model_max_length == 100
    ids = torch.randint(5, 300, (2, 32))
    mask = torch.ones_like(ids)
    ids[1, 20:], mask[1, 20:] = before.config.pad_token_id, 0
    real = mask.bool()
    wanted = before(ids, attention_mask=mask).logits[real]
    torch.testing.assert_close(after(ids, attention_mask=mask).logits[real], wanted, atol=1e-5, rtol=1e-4)
    first = 2 if "roberta" in name or name == "camembert" else 0
    old, new = (model.base_model.embeddings.position_embeddings.weight for model in (before, after))
    assert torch.equal(new[:first], old[:first])
    assert torch.equal(new[first:], old[first:].repeat(4, 1)[:100])


def test_a_classifier_reads_4096_tokens(diffmix, tmp_path):
    source = save(tmp_path / "source", RobertaForSequenceClassification(SOURCES["roberta"]))
    output = tmp_path / "new" / "long"
    settings = ("--set", "diffusion_window=16", "--set", "diffusion_global_tokens=[0, 9]")
    code, _, err = diffmix("convert", source, "--output", output, "--max_length", 4096, *settings)
    assert code == 0, err
    register_attention()
    model = AutoModelForSequenceClassification.from_pretrained(output, attn_implementation="attention_diffusion")
    assert model.config.max_position_embeddings == 4098
    assert model.config.diffusion_global_tokens == [0, 9]
    assert model.config.diffusion_hops == 5
    tokenizer = AutoTokenizer.from_pretrained(output)
    batch = tokenizer(["so long " * 1000, "short"], padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 4096)
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        alone = tokenizer("short", return_tensors="pt")
        expected = model(input_ids=alone["input_ids"], attention_mask=alone["attention_mask"]).logits
    torch.testing.assert_close(logits[1:], expected, atol=1e-5, rtol=1e-4)
    assert {path.name for path in output.parent.iterdir()} == {"long"}


def test_half_precision_is_kept_and_a_tokenizer_may_be_missing(diffmix, tmp_path):
    BertForMaskedLM(SOURCES["bert"]).bfloat16().save_pretrained(tmp_path / "bert")
    code, out, err = diffmix("convert", tmp_path / "bert", "--output", tmp_path / "long", "--max_length", 40)
    assert code == 0, err
    assert "has no tokenizer: none was written" in out
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "long", dtype="auto").dtype is torch.bfloat16


def test_a_converted_model_keeps_its_pattern(diffmix, bert, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    sets = ("--set", "diffusion_window=3", "diffusion_hops=2")
    assert diffmix("convert", bert, "--output", first, "--max_length", 40, *sets)[0] == 0
    code, out, err = diffmix("convert", first, "--output", second, "--max_length", 50, "--set", "diffusion_hops=4")
    assert code == 0, err
    assert "window 3, " in out
    config = AutoConfig.from_pretrained(second)
    assert (config.diffusion_window, config.diffusion_hops, config.max_position_embeddings) == (3, 4, 50)


def test_weights_of_pretraining_may_be_left_out(diffmix, tmp_path):
    """BERT's own checkpoints: the weights of BertForPreTraining under the name BertForMaskedLM."""
    source = save(tmp_path / "bert", BertForPreTraining(SOURCES["bert"]))
    edit_config(source, architectures=["BertForMaskedLM"])
    code, _, err = diffmix("convert", source, "--output", tmp_path / "long", "--max_length", 64)
    assert code == 0, err
    before, after = (
        AutoModelForMaskedLM.from_pretrained(folder).state_dict() for folder in (source, tmp_path / "long")
    )
    for name in before:
        if "position_embeddings" not in name:
            assert torch.equal(after[name], before[name])


def edit_config(folder, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


@pytest.mark.parametrize(
    ("kind", "architectures", "removed", "message"),
    [
        (
            BertForMaskedLM,
            ["BertForMaskedLM"],
            "layer.1.attention.self.query.weight",
            "lack bert.encoder.layer.1.attention",
        ),
        (BertForMaskedLM, None, None, "lack pooler.dense.bias, of BertModel: config.json names no architectures; name"),
        (BertForPreTraining, None, None, "also hold cls.predictions.bias, not of BertModel: config.json names no arch"),
        (BertModel, ["BertModel"], "pooler", "lack pooler.dense.bias, of BertModel: name the class that was saved"),
    ],
)
def test_weights_of_another_class_are_refused(diffmix, tmp_path, kind, architectures, removed, message):
    source = save(tmp_path / "bert", kind(SOURCES["bert"]))
    edit_config(source, architectures=architectures)
    if removed:
        weights = load_file(source / "model.safetensors")
        kept = {name: values for name, values in weights.items() if removed not in name}
        assert len(kept) < len(weights)
        save_file(kept, source / "model.safetensors", {"format": "pt"})
    code, _, err = diffmix("convert", source, "--output", tmp_path / "long", "--max_length", 64)
    assert (code, err.count("\n")) == (1, 1), err
    assert message in err
    assert not (tmp_path / "long").exists()


@pytest.mark.parametrize("name", ["BertConfig", "GPT2LMHeadModel"])
def test_a_class_that_is_no_such_encoder_is_refused(diffmix, bert, tmp_path, name):
    edit_config(bert, architectures=[name])
    code, _, err = diffmix("convert", bert, "--output", tmp_path / "long", "--max_length", 64)
    assert (code, err.count("\n")) == (2, 1), err
    assert f"names {name} under architectures, which is no model of type bert: name the class that was saved" in err


def test_the_current_folder_is_no_output(diffmix, bert, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, _, err = diffmix("convert", bert, "--output", ".", "--max_length", 64)
    assert (code, err.count("\n")) == (2, 1), err
    assert "output . is the current folder: give a new one" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "diffusion_window=-1"], "--set: diffusion_window is -1; give a whole number, 0 or more"),
        (["--set", "diffusion_width=3"], "--set diffusion_width: no such setting; give some of diffusion_window"),
        (["--set", "diffusion_alpha=2"], "--set: diffusion_alpha is 2; give a number from 0 to 1"),
        (["--set", "diffusion_window"], "write key=value"),
        (["--max_length", 20], "takes 32 tokens already; give as many or more"),
    ],
)
def test_wrong_requests_take_one_line(diffmix, bert, tmp_path, arguments, message):
    output = tmp_path / "long"
    code, _, err = diffmix("convert", bert, "--output", output, "--max_length", 64, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not output.exists()


def test_sources_that_cannot_be_converted(diffmix, bert, tmp_path):
    def refused(source, output=tmp_path / "long"):
        code, _, err = diffmix("convert", source, "--output", output, "--max_length", 64)
        assert (code, err.count("\n")) == (2, 1), err
        return err

    assert "no model at" in refused(tmp_path / "nothing")
    assert "is in use: give a new or empty folder" in refused(bert, bert)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2))
    gpt2.save_pretrained(tmp_path / "gpt2")
    assert "is of type gpt2, whose positions cannot be extended: give one of bert" in refused(tmp_path / "gpt2")
    config = AutoConfig.from_pretrained(bert)
    config.is_decoder = True
    config.save_pretrained(bert)
    assert "is a decoder, which cannot be converted" in refused(bert)
    config.is_decoder, config.architectures = False, ["OurModel"]
    config.save_pretrained(bert)
    assert "is a OurModel, which transformers does not know" in refused(bert)
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(bert)
    weights = bert / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = diffmix("convert", bert, "--output", tmp_path / "long", "--max_length", 64)
    assert (code, err.count("\n")) == (1, 1)
    assert "cannot be read" in err
    weights.rename(bert / "pytorch_model.bin")
    assert "holds no safetensors, and nothing else is read" in refused(bert)
    (bert / "config.json").write_text(json.dumps({"hidden_size": 3}))
    assert "no model at" in refused(bert)
    assert not (tmp_path / "long").exists()
