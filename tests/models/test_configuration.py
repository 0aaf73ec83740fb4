import re

import pytest

from diffmix import DiffmixConfig


def test_defaults_are_those_of_the_contract():
    config = DiffmixConfig()
    assert (config.mixer, config.vocab_size, config.hidden_size, config.num_hidden_layers) == (
        "neighbor",
        30522,
        256,
        4,
    )
    assert (config.num_attention_heads, config.intermediate_size, config.max_position_embeddings) == (4, 1024, 4096)
    assert (config.pad_token_id, config.position_embedding) == (0, "none")
    assert DiffmixConfig(mixer="softmax").position_embedding == "rotary"
    assert DiffmixConfig(hidden_size=64).intermediate_size == 256


@pytest.mark.parametrize("offsets", [(-4, 0, 4), ((-1, 0, 1), (-2, 2))])
def test_survives_a_round_trip(tmp_path, offsets):
    config = DiffmixConfig(
        neighbor_offsets=offsets, neighbor_alpha=0.7, num_labels=3, id2label={0: "a", 1: "b", 2: "c"}
    )
    config.save_pretrained(tmp_path)
    again = DiffmixConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mixer": "mamba"}, "mixer is 'mamba'; give one of 'neighbor', 'softmax'"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_dropout": 1.0}, "hidden_dropout is 1.0"),
        ({"noise_std": -1}, "noise_std is -1"),
        ({"noise_std": float("nan")}, "noise_std is nan"),
        ({"neighbor_alpha": 1.0}, "neighbor_alpha is 1.0"),
        ({"neighbor_offsets": [0, 0]}, "neighbor_offsets holds [0, 0]"),
        ({"neighbor_offsets": [0.5]}, "neighbor_offsets holds [0.5]"),
        ({"neighbor_offsets": 3}, "neighbor_offsets holds 3"),
        ({"neighbor_offsets": [[0], [1, 1]]}, "neighbor_offsets holds [1, 1];"),
        ({"neighbor_offsets": [[-1, 0, 1], []]}, "or a list of such lists"),
        ({"neighbor_offsets": [[-1, 0, 1], 2]}, "or a list of such lists"),
        ({"neighbor_offsets": [[0], [-2, 2]], "neighbor_shared_steps": True}, "but all steps share weights"),
        ({"neighbor_offsets": [[0], [1], [2]], "num_hidden_layers": 2}, "3 lists but num_hidden_layers is 2"),
        (
            {"neighbor_offsets": [[0], [1, 2]], "is_causal": True},
            "neighbor_offsets holds [1, 2], of which a causal model hears none",
        ),
        ({"neighbor_alpha_mode": "residual"}, "give norm_placement='pre'"),
        ({"hidden_size": 30, "neighbor_heads": 4}, "neighbor_heads is 4"),
        ({"neighbor_tracks": True, "hidden_size": 2, "num_attention_heads": 1}, "3 offsets for 2 channels"),
        ({"neighbor_tracks": True, "neighbor_heads": 2}, "neighbor_tracks is True but neighbor_heads is 2"),
        ({"mixer": "softmax", "hidden_size": 30}, "num_attention_heads is 4"),
        ({"mixer": "softmax", "hidden_size": 12}, "even number of channels"),
        ({"mixer": "softmax", "norm_placement": "post"}, "norm_placement is 'post'"),
        ({"position_embedding": "rotary"}, "position_embedding is 'rotary'"),
        ({"neighbor_tolerance": 0.1}, "neighbor_shared_steps=True"),
        ({"neighbor_tolerance": 0.0, "neighbor_shared_steps": True}, "neighbor_tolerance is 0.0"),
        ({"neighbor_max_steps": 0}, "neighbor_max_steps is 0"),
        ({"mixer": "softmax", "attention_init_temperature": 0.0}, "attention_init_temperature is 0.0"),
        ({"attention_init_temperature": 0.5}, "mixer is 'neighbor'"),
        ({"norm": "batch", "is_causal": True}, "norm is 'batch' but the model is causal"),
        ({"neighbor_boundary": "wrap", "is_causal": True}, "neighbor_boundary is 'wrap' but the model is causal"),
        (
            {"neighbor_tolerance": 0.1, "neighbor_shared_steps": True, "is_causal": True},
            "neighbor_tolerance is set but the model is causal",
        ),
        ({"neighbor_max_steps": 2.5}, "neighbor_max_steps is 2.5"),
        (
            {"mixer": "softmax", "attention_qk_norm": True, "attention_init_temperature": 0.5},
            "queries are normalised",
        ),
        ({"diffusion_window": -1}, "diffusion_window is -1; give a whole number"),
        ({"diffusion_global_tokens": [0, 0]}, "diffusion_global_tokens is [0, 0]; name each position once"),
        ({"diffusion_random_links": 1.5}, "diffusion_random_links is 1.5"),
        ({"diffusion_hops": -1}, "diffusion_hops is -1"),
        ({"diffusion_alpha": 1.1}, "diffusion_alpha is 1.1"),
        ({"diffusion_time": -1.0, "diffusion_coefficients": "heat"}, "diffusion_time is -1.0"),
        ({"diffusion_coefficients": "poisson"}, "diffusion_coefficients is 'poisson'; give 'ppr', 'heat', or"),
        (
            {"diffusion_coefficients": [0.5, 0.4], "diffusion_hops": 1},
            "diffusion_coefficients is (0.5, 0.4), which sums to 0.9",
        ),
        ({"diffusion_coefficients": [0.5, 0.5]}, "diffusion_coefficients has 2 numbers but diffusion_hops is 5"),
        ({"diffusion_coefficients": None}, "diffusion_coefficients is None; give"),
        ({"diffusion_alpha": None}, "diffusion_alpha is None; give a number"),
        ({"diffusion_hop_dropout": 1.0}, "diffusion_hop_dropout is 1.0"),
        ({"pooling": "median"}, "pooling is 'median'"),
        ({"heat_time": "abc"}, "heat_time is 'abc'; give a number or None"),
        ({"heat_time": [1, 2]}, "heat_time is [1, 2]; give a number or None"),
        ({"heat_time_bounds": ["a", "b"]}, "heat_time_bounds is ['a', 'b']; give two numbers above 0"),
        ({"hidden_dropout": "x"}, "hidden_dropout is 'x'; give a number"),
        ({"neighbor_tolerance": "abc"}, "neighbor_tolerance is 'abc'; give a number or None"),
        ({"neighbor_shared_steps": "false"}, "neighbor_shared_steps is 'false'; give True or False"),
        ({"pooling_features": 2.5}, "pooling_features is 2.5; give a whole number"),
        ({"classifier_hidden_size": 1.5}, "classifier_hidden_size is 1.5; give a whole number or None"),
        ({"hidden_size": True}, "hidden_size is True; give a whole number"),
    ],
)
def test_wrong_values_are_named(values, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        DiffmixConfig(**values)
