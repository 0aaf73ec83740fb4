"""`distant_symbol-D`: what stands exactly D tokens away from the first one? Generated, to measure how far a model hears.

The one task whose signal lies at a known distance, so that "too far" and "not learned" can be told apart.
"""

from __future__ import annotations

import re

import numpy as np

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, TaskData
from diffmix.tasks.splits import Cut, Facts, describe_limit, limited

LENGTH = 128  # tokens, whatever the distance
SYMBOLS = 10  # answers, and as many others
_ROWS = {"train": 8_000, "validation": 1_000, "test": 2_000}
_ASKING = 2 * SYMBOLS + 1  # the id of the first token; answers are 1 … SYMBOLS, the others up to 2·SYMBOLS
_NAME = re.compile(r"distant_symbol-(\d{1,4})")


def is_distant_symbol(name: str) -> bool:
    """Whether a task's name is `distant_symbol-` and a number."""
    return _NAME.fullmatch(name) is not None


def load_distant_symbol(name: str, how: Cut) -> TaskData:
    """Rows of 128 tokens: the asking one, then symbols drawn from one set of ten, and at position D one from another set of ten.
    The label is that symbol. Without what stands at D every answer is as likely: 10 %.

    The rows are the same for every `how.seed`. Raises RequestError for a D that is not in the row.
    """
    found = _NAME.fullmatch(name)
    distance = int(found[1]) if found else 0
    if not 1 <= distance < LENGTH:
        raise RequestError(f"task: {name} asks for a token outside of the row; give a distance from 1 to {LENGTH - 1}")
    facts: Facts = {
        "source": f"generated: {LENGTH} tokens, the answer {distance} behind the first",
        "train_rows": _ROWS["train"],
        "validation_rows": _ROWS["validation"],
        "validation": "generated like train",
        "test": f"{_ROWS['test']} rows, generated like train",
    }
    describe_limit(facts, how)
    train, validation, test = (limited(_generate(split, distance), how) for split in _ROWS)
    return TaskData(
        name=name,
        label_names=tuple(str(symbol) for symbol in range(SYMBOLS)),
        train=train,
        validation=validation,
        load_test=lambda: test,
        facts=facts,
        vocab_size=_ASKING + 1,
        pixels=False,
    )


def _generate(split: str, distance: int) -> Examples:
    rng = np.random.default_rng([distance, list(_ROWS).index(split)])
    rows = _ROWS[split]
    ids = rng.integers(SYMBOLS + 1, 2 * SYMBOLS + 1, size=(rows, LENGTH), dtype=np.int16)
    labels = rng.integers(SYMBOLS, size=rows)
    ids[:, 0], ids[:, distance] = _ASKING, labels + 1
    return Examples(labels=labels, input_ids=ids)
