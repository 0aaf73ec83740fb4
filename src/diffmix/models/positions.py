"""How long the texts are that a model of a Hugging Face family reads, from its table of positions."""

from __future__ import annotations

from typing import Any

# Families whose positions count the ids that are not padding, from pad_token_id + 1 on.
COUNT_WITHOUT_PADDING = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


def longest_input(config: Any) -> int | None:
    """The most tokens that a model of this configuration reads; None: any number."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions <= 0:  # XLNet says -1
        return None
    if not getattr(config, "position_biased_input", True):  # DeBERTa by distances only, of which the far ones are alike
        return None
    if config.model_type == "big_bird":  # it fills the last block up
        return positions // config.block_size * config.block_size
    return positions - _before_the_first(config)


def positions_for(config: Any, max_length: int) -> int:
    """The positions that texts of `max_length` tokens need."""
    if config.model_type == "big_bird":
        return -(-max_length // config.block_size) * config.block_size
    return max_length + _before_the_first(config)


def _before_the_first(config: Any) -> int:
    return (config.pad_token_id or 0) + 1 if config.model_type in COUNT_WITHOUT_PADDING else 0
