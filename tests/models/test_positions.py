"""How long the texts are that models of other families read."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from diffmix.models.positions import longest_input, positions_for

OF_ITS_OWN = {
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 4},
    "luke": {"entity_vocab_size": 4, "entity_emb_size": 8},
}
SHAPE = {"vocab_size": 20, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("family", ["bert", "esm", "layoutlmv3", "lilt", "luke", "markuplm", "roberta"])
def test_the_longest_text_is_read_and_a_longer_one_is_not(family):
    config = CONFIG_MAPPING[family](**SHAPE, **OF_ITS_OWN.get(family, {}), pad_token_id=1, max_position_embeddings=16)
    longest = longest_input(config)
    assert longest is not None
    assert positions_for(config, longest) == 16
    model = AutoModel.from_config(config).eval()
    model(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))
