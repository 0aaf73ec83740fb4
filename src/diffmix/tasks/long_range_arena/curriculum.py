"""Easier ListOps beside a task's own: short expressions teach in minutes what long ones hide for hours.

A model that sees only long expressions hears the root's operator and little else for thousands of steps: the gradient of the
rest is lost among hundreds of symbols. In an expression of one operator nothing hides it. The easier sets join train, all at
once, as `extra_train`; validation and test stay what they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, TaskData
from diffmix.tasks.long_range_arena.generated import GENERATED
from diffmix.tasks.long_range_arena.listops import Grammar, generate
from diffmix.tasks.token_rows import TokenRows

EASIER = {
    "one_operator": Grammar(4, 12, max_depth=2),
    "two_levels": Grammar(8, 31, max_depth=3),
    "short": Grammar(32, 128),
    "middle": Grammar(129, 500),
}
SEED = 1  # the task's own sets are drawn with 0


def with_easier(task: TaskData, names: Sequence[str]) -> TaskData:
    """The task with as many rows of each of EASIER's sets in train as train has of its own.

    Only sets whose expressions are all shorter than the task's are taken, so that none stands in validation or test.
    Raises RequestError.
    """
    grammar = GENERATED[task.name].content
    assert isinstance(grammar, Grammar)
    fitting = [name for name, easier in EASIER.items() if easier.max_length < grammar.min_length]
    for name in names:
        if name not in fitting:
            raise RequestError(
                f"extra_train: {task.name} takes {', '.join(fitting) or 'none'}, whose expressions are shorter than its own, got "
                f"{name!r}"
            )
    own = task.train
    assert isinstance(own, Examples)
    assert isinstance(own.input_ids, TokenRows)
    ids, labels = [own.input_ids], [own.labels]
    for name in names:
        drawn = generate(len(own), SEED, **dataclasses.asdict(EASIER[name]))
        ids.append(TokenRows(drawn.ids, drawn.offsets))
        labels.append(drawn.labels.astype(np.int64))
    train = Examples(np.concatenate(labels), input_ids=TokenRows.concatenate(ids))
    task.facts["train_rows"] = len(train)
    task.facts["extra_train"] = f"{', '.join(names)}: {len(own):,} shorter expressions each"
    return dataclasses.replace(task, train=train)
