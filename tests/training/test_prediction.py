import pytest
from safetensors.torch import load_file, save_file
from transformers import BigBirdConfig, BigBirdForSequenceClassification

from diffmix.errors import RunError
from diffmix.training.prediction import load_classifier


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
