"""Hugging Face's sparse attentions by the same recipes: Longformer and BigBird, from their configurations."""

import numpy as np
import pytest

from diffmix.errors import RequestError
from diffmix.tasks.encoding import EncodedDataset, shortest_input
from diffmix.tasks.examples import Examples
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
def checkpoint(tmp_path, names_csv):
    """A BERT of 96 positions with its tokenizer, as if someone had trained it."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    trained(tmp_path / "first", names_csv, "model=bert", "max_steps=1")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
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


def test_our_own_model_names_its_attention_otherwise():
    with pytest.raises(RequestError, match="mixer"):
        load_recipe("digits", ["attn_implementation=sdpa"])


def test_an_attention_that_a_family_cannot_take_is_refused_in_one_line(tmp_path, names_csv):
    with pytest.raises(RequestError, match="attn_implementation=sdpa: "):
        trained(tmp_path / "run", names_csv, "model=big_bird", "attn_implementation=sdpa")
