"""Hugging Face's sparse attentions by the same recipes: Longformer and BigBird, from their configurations."""

import importlib.util

import numpy as np
import pytest
import torch
from transformers import BertConfig, BigBirdConfig, BloomConfig, DebertaV2Config, GPT2Config, RobertaConfig, XLNetConfig

from diffmix.errors import RequestError
from diffmix.models.positions import longest_input, positions_for
from diffmix.tasks.encoding import EncodedDataset, shortest_input
from diffmix.tasks.examples import Examples
from diffmix.tasks.tokenizers import build_tokenizer
from diffmix.training.building import drawn_model
from diffmix.training.language import load_language_model
from diffmix.training.prediction import load_classifier
from diffmix.training.recipe import load_recipe
from diffmix.training.trainer import train

TEXT = "tokenizer=bytes class_token=true max_length=48 epochs=1 limit=40 batch_size=8 dtype=fp32 pretraining=null"
SHAPE = "hidden_size=16 num_hidden_layers=2 num_attention_heads=2 intermediate_size=32 attention_probs_dropout_prob=0"


def trained(folder, csv, *keys):
    recipe = load_recipe("text_file", [*TEXT.split(), *SHAPE.split(), *keys])
    metrics = train(recipe, data=csv, output=folder, notice=lambda _: None)
    return metrics, load_classifier(folder, dtype="fp32")


def probabilities(classifier, *texts):
    return classifier.probabilities(Examples(np.zeros(len(texts), dtype=np.int64), texts=list(texts)))


def test_longformer_pads_to_its_window_and_its_first_token_hears_all(tmp_path, names_csv):
    metrics, classifier = trained(tmp_path / "run", names_csv, "model=longformer", "attention_window=8")
    assert np.isfinite(metrics["test/nll"])
    assert classifier.tokenizer("ab")["input_ids"][0] == classifier.tokenizer.cls_token_id
    # Two layers of four tokens on each side end eight tokens away. The text fills every position that the model has.
    near, far = "x" * 60, "x" * 46 + "y" * 14
    alone, beside = probabilities(classifier, "ab"), probabilities(classifier, "ab", near)
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)
    classifier.model.double()
    (first,), (second,) = probabilities(classifier, near), probabilities(classifier, far)
    assert np.abs(first - second).max() > 1e-9


def test_big_bird_stays_sparse_on_short_texts(tmp_path, names_csv):
    metrics, classifier = trained(tmp_path / "run", names_csv, "model=big_bird", "block_size=4", "num_random_blocks=1")
    assert np.isfinite(metrics["test/nll"])
    assert classifier.model.config.max_position_embeddings % 4 == 0
    assert shortest_input(classifier.model.config, 48) == 29  # 7 blocks are one token too few
    assert shortest_input(classifier.model.config, 28) == 1
    alone, beside = probabilities(classifier, "ab"), probabilities(classifier, "ab", "x" * 60)
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)
    assert classifier.model.bert.attention_type == "block_sparse"  # it would have changed for good
    assert classifier.model.bert.encoder.layer[0].attention.self.__class__.__name__ == "BigBirdBlockSparseAttention"


def test_xlnet_has_no_longest_text_and_reads_none_of_the_padding(tmp_path, names_csv):
    shape = ["model=xlnet", "d_model=16", "n_layer=1", "n_head=2", "d_inner=16"]
    base = [key for key in TEXT.split() if "epochs" not in key] + shape + ["max_steps=1"]

    def run(*keys):
        train(load_recipe("text_file", [*base, *keys]), data=names_csv, output=tmp_path / "run", notice=lambda _: None)

    with pytest.raises(RequestError, match=r"summary_type=last reads the padding .*: set summary_type=first"):
        run()
    run("summary_type=first")
    classifier = load_classifier(tmp_path / "run", dtype="fp32")
    assert classifier.max_length == 48
    alone, beside = probabilities(classifier, "ab"), probabilities(classifier, "ab", "x" * 60)
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-6)


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (GPT2Config(n_positions=100), 100),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (BigBirdConfig(max_position_embeddings=100, block_size=16), 96),
        (XLNetConfig(), None),
        (BloomConfig(), None),
        (DebertaV2Config(max_position_embeddings=512, relative_attention=True), 512),
        (DebertaV2Config(max_position_embeddings=512, relative_attention=True, position_biased_input=False), None),
    ],
    ids=lambda config: getattr(config, "model_type", str(config)),
)
def test_the_longest_text_follows_from_the_kind_of_positions(config, longest):
    assert longest_input(config) == longest
    if longest is not None:
        assert positions_for(config, longest) <= config.max_position_embeddings < positions_for(config, longest + 1)


@pytest.mark.parametrize("model", ["longformer", "big_bird"])
def test_peers_take_lengths_beyond_their_own(model):
    """A text of 4,100 tokens fills more positions than either family has by default."""
    from diffmix.training.building import model_config

    small = ["model=" + model, *SHAPE.split(), "max_length=4100"]
    config = model_config(load_recipe("digits", small), None, 18, {})
    assert config.max_position_embeddings == {"longformer": 4101, "big_bird": 4160}[model]


def test_a_batch_is_never_narrower_than_asked_for():
    from diffmix.tasks.encoding import PaddingCollator

    rows = EncodedDataset(np.arange(1, 8, dtype=np.int32), np.array([0, 3, 7]))
    batch = PaddingCollator(0, longest=48, shortest=29)([rows[0], rows[1]])
    assert batch["input_ids"].shape == (2, 29)
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 4]


@pytest.fixture
def checkpoint(tmp_path):
    """A BERT of 96 positions with its tokenizer, as if someone had trained it."""
    from transformers import BertConfig, BertModel

    tokenizer = build_tokenizer("bytes", [], max_length=48, class_token=True)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=96,
        initializer_range=0.5,
        diffusion_window=2,
        diffusion_global_tokens=0,
        diffusion_random_links=0,
        diffusion_hops=1,
        diffusion_alpha=0.0,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def fine_tuned(folder, csv, checkpoint, *keys):
    base = [*TEXT.split(), f"init_from={checkpoint}", "model=bert", "learning_rate=1e-12", *keys]
    metrics = train(load_recipe("text_file", base), data=csv, output=folder, notice=lambda _: None)
    return metrics, load_classifier(folder, dtype="fp32")


def test_a_checkpoint_is_fine_tuned_in_its_own_shape_with_the_attention_that_is_asked_for(
    tmp_path, names_csv, checkpoint
):
    from transformers import AutoModel

    metrics, classifier = fine_tuned(tmp_path / "run", names_csv, checkpoint, "attn_implementation=attention_diffusion")
    assert classifier.model.config.max_position_embeddings == 96
    assert np.isfinite(metrics["test/nll"])
    source = AutoModel.from_pretrained(checkpoint).embeddings.word_embeddings.weight
    np.testing.assert_allclose(classifier.model.get_input_embeddings().weight.detach(), source.detach(), atol=1e-6)
    # Loaded again its first token, which is read, still hears two tokens a layer; the model's own attention hears all.
    plain = fine_tuned(tmp_path / "plain", names_csv, checkpoint)[1]
    texts = "some longer name", "some longer fame"
    near, far = probabilities(classifier, *texts)
    np.testing.assert_allclose(near, far, atol=1e-7)
    near, far = probabilities(plain, *texts)
    assert np.abs(near - far).max() > 1e-4


def test_what_starts_from_a_run_keeps_its_attention(tmp_path, names_csv, checkpoint):
    (checkpoint / "recipe.yaml").write_text("attn_implementation: attention_diffusion\n")
    _, classifier = fine_tuned(tmp_path / "again", names_csv, checkpoint, "max_steps=1")
    assert load_recipe(tmp_path / "again" / "recipe.yaml").attn_implementation == "attention_diffusion"
    near, far = probabilities(classifier, "some longer name", "some longer fame")
    np.testing.assert_allclose(near, far, atol=1e-7)  # its first token hears two tokens a layer
    fine_tuned(tmp_path / "own", names_csv, checkpoint, "attn_implementation=sdpa", "max_steps=1")
    assert load_recipe(tmp_path / "own" / "recipe.yaml").attn_implementation == "sdpa"


def test_a_padded_table_of_tokens_stays_and_a_short_one_is_refused(tmp_path, names_csv, checkpoint):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoint)
    tokens = model.config.vocab_size
    model.resize_token_embeddings(tokens + 12)
    model.save_pretrained(checkpoint)
    _, classifier = fine_tuned(tmp_path / "padded", names_csv, checkpoint, "max_steps=1")
    assert classifier.model.get_input_embeddings().weight.shape[0] == classifier.model.config.vocab_size == tokens + 12
    model.resize_token_embeddings(tokens - 1)
    model.save_pretrained(checkpoint)
    with pytest.raises(RequestError, match=rf"^init_from: .* embeds {tokens - 1} tokens but is to read {tokens}: give"):
        fine_tuned(tmp_path / "short", names_csv, checkpoint)


def test_relative_positions_read_on_beyond_their_number(tmp_path, names_csv, checkpoint):
    from transformers import DebertaV2Model

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    relative = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]}
    config = DebertaV2Config(vocab_size=300, max_position_embeddings=32, initializer_range=0.5, **shape, **relative)
    DebertaV2Model(config).save_pretrained(checkpoint)
    _, classifier = fine_tuned(tmp_path / "run", names_csv, checkpoint, "model=deberta-v2", "max_steps=1")
    assert classifier.max_length == 48
    near, far = probabilities(classifier, "x" * 40 + "y", "x" * 40 + "z")
    assert np.abs(near - far).max() > 1e-5


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["max_length=97"], "takes 96 tokens: set max_length=96"),
        (["model=distilbert"], "is of type bert: set model=bert"),
        (["init_from=nowhere"], "nowhere"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, names_csv, checkpoint, keys, words):
    with pytest.raises(RequestError, match=words):
        fine_tuned(tmp_path / "run", names_csv, checkpoint, *keys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["t5", "bart"])
def test_a_family_whose_classifier_needs_an_end_token_is_refused(tmp_path, names_csv, model):
    for name, keys, data in (("digits", [], None), ("text_file", TEXT.split(), names_csv)):
        with pytest.raises(RequestError, match=f"^model={model} classifies by a decoder .*: set another model$"):
            train(
                load_recipe(name, [*keys, f"model={model}"]), data=data, output=tmp_path / "run", notice=lambda _: None
            )
        assert not (tmp_path / "run").exists()


def test_a_model_that_misses_a_key_is_refused_in_one_line():
    with pytest.raises(RequestError, match=r"^model=bert: .*no attribute 'width'; give model keys that fit together$"):
        drawn_model(load_recipe("digits", ["model=bert"]), lambda: BertConfig().width)


def test_our_own_model_names_its_attention_otherwise():
    with pytest.raises(RequestError, match="mixer"):
        load_recipe("digits", ["attn_implementation=sdpa"])


def test_an_attention_that_a_family_cannot_take_is_refused_in_one_line(tmp_path, names_csv):
    with pytest.raises(RequestError, match="attn_implementation=sdpa: "):
        trained(tmp_path / "run", names_csv, "model=big_bird", "attn_implementation=sdpa")


@pytest.mark.parametrize("attention", ["heat_kernel", "attention_diffusion"])
def test_a_family_that_would_leave_our_attention_unused_is_refused(tmp_path, names_csv, attention):
    words = rf"^attn_implementation={attention}: models of type longformer only have their own attention; leave it out"
    with pytest.raises(RequestError, match=words):
        trained(
            tmp_path / "run", names_csv, "model=longformer", "attention_window=8", f"attn_implementation={attention}"
        )


MISSING = r"^attn_implementation=flash_attention_2: [^\n]*FlashAttention2[^\n]*[^.]; give another, such as eager$"
FLASH = "attn_implementation=flash_attention_2"
without_flash = pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is not None, reason="needs a machine without flash_attn"
)


@without_flash
@pytest.mark.parametrize("phase", ["pretraining=null", "pretraining={epochs: 1}", "init_from"])
def test_a_classifier_whose_attention_cannot_be_had_is_refused_in_one_line(tmp_path, names_csv, checkpoint, phase):
    keys = [f"init_from={checkpoint}"] if phase == "init_from" else [*SHAPE.split(), phase]
    recipe = load_recipe("text_file", [*TEXT.split(), *keys, "model=bert", FLASH])
    with pytest.raises(RequestError, match=MISSING):
        train(recipe, data=names_csv, output=tmp_path / "run", notice=lambda _: None)


@without_flash
def test_a_classifier_that_was_trained_with_what_is_absent_is_refused_in_one_line(checkpoint):
    from transformers import AutoConfig, BertForSequenceClassification

    BertForSequenceClassification(AutoConfig.from_pretrained(checkpoint)).save_pretrained(checkpoint)
    (checkpoint / "recipe.yaml").write_text("attn_implementation: flash_attention_2\n")
    with pytest.raises(RequestError, match=MISSING):
        load_classifier(checkpoint)


def language_model(folder, csv, *keys):
    """A run of a small language model on the lines of the CSV."""
    text = folder.parent / "names.txt"
    text.write_text(csv.read_text(encoding="utf-8"), encoding="utf-8")
    small = [
        "task=plain_text",
        "tokenizer=bytes",
        "max_length=32",
        "limit=8",
        "batch_size=8",
        "max_steps=1",
        "dtype=fp32",
    ]
    train(load_recipe("python_docs", [*small, *keys]), data=text, output=folder, notice=lambda _: None)


def test_what_starts_from_a_language_model_keeps_its_attention_and_its_family(tmp_path, names_csv):
    first, again, shape = tmp_path / "first", tmp_path / "again", ["model=gpt2", "n_embd=16", "n_layer=1", "n_head=2"]
    language_model(first, names_csv, *shape, "attn_implementation=heat_kernel")
    language_model(again, names_csv, *shape, f"init_from={first}")
    assert load_recipe(again / "recipe.yaml").attn_implementation == "heat_kernel"
    with pytest.raises(RequestError, match="is of type gpt2: set model=gpt2"):
        language_model(tmp_path / "other", names_csv, f"init_from={first}")
    with pytest.raises(RequestError, match=r"takes \d+ tokens: set max_length="):
        language_model(tmp_path / "longer", names_csv, *shape, f"init_from={first}", "max_length=2000")
    if importlib.util.find_spec("flash_attn") is None:
        for keys in ([], [f"init_from={first}"]):
            with pytest.raises(RequestError, match=MISSING):
                language_model(tmp_path / "flash", names_csv, *shape, FLASH, *keys)
        with pytest.raises(RequestError, match=MISSING):
            load_language_model(first, attention="flash_attention_2")


BERT = ["model=bert", "hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=16"]


@pytest.mark.parametrize("shape", [BERT, ["model=xlnet", "d_model=16", "n_layer=1", "n_head=2", "d_inner=16"]])
def test_a_language_model_that_sees_what_it_is_to_predict_is_refused(tmp_path, names_csv, shape):
    with pytest.raises(RequestError, match="sees the tokens that it is to predict"):
        language_model(tmp_path / "run", names_csv, *shape)


def test_bert_is_a_language_model_as_a_decoder_and_a_classifier_after_that(tmp_path, names_csv):
    first, again = tmp_path / "first", tmp_path / "again"
    language_model(first, names_csv, *BERT, "is_decoder=true", "max_length=6")
    model = load_language_model(first, device="cpu").model
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    with torch.no_grad():
        scores = model(input_ids=ids).logits[:, :3]
    torch.testing.assert_close(scores[0], scores[1])
    _, classifier = fine_tuned(again, names_csv, first, "model=bert", "max_steps=1", "max_length=6")
    assert not classifier.model.config.is_decoder
