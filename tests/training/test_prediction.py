import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import BigBirdConfig, BigBirdForSequenceClassification

from diffmix.errors import RunError
from diffmix.tasks.encoding import PaddingCollator, encode
from diffmix.training.building import build_classifier, recipe_data
from diffmix.training.prediction import load_classifier, predict_probabilities
from diffmix.training.recipe import load_recipe

BERT = ["model=bert", "hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=16"]
XLNET = ["model=xlnet", "d_model=16", "n_layer=1", "n_head=2", "d_inner=16", "summary_type=first"]
OURS = ["hidden_size=16", "num_hidden_layers=1", "neighbor_offsets=[-1, 0, 1]", "max_position_embeddings=64"]


def test_a_pretrained_model_may_lack_what_its_scores_do_not_read(tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BigBirdForSequenceClassification(BigBirdConfig(vocab_size=32, **shape)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")

    def keep(*without):
        kept = {key: weight for key, weight in weights.items() if not key.startswith(without)}
        save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})

    keep("bert.pooler.")
    assert load_classifier(tmp_path).label_names == ("LABEL_0", "LABEL_1")
    keep("classifier.out_proj.")
    with pytest.raises(RunError, match=r"is damaged \(its weights lack classifier\.out_proj\.bias\)"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("model", [BERT, XLNET, OURS])
def test_rows_of_ids_are_cut_where_training_cut_them(tmp_path, model):
    recipe = load_recipe("digits", [*model, "max_length=32", "limit=40", "device=cpu", "dtype=fp32"])
    task = recipe_data(recipe, None, lambda _: None)
    trained = build_classifier(recipe, task, None, None)
    trained.save_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    classifier = load_classifier(tmp_path, device="cpu", dtype="fp32")
    assert classifier.max_length == 32
    measured = predict_probabilities(trained, encode(task.validation, None, 32), PaddingCollator(0, 32))
    np.testing.assert_allclose(classifier.probabilities(task.validation), measured, atol=1e-6)
    (tmp_path / "recipe.yaml").write_text("task: digits\nmax_length: 0\n", encoding="utf-8")
    with pytest.raises(RunError, match="max_length"):
        load_classifier(tmp_path, device="cpu", dtype="fp32")
