"""Images as sequences of pixels: `digits`, scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""

from __future__ import annotations

import numpy as np

from diffmix.tasks.examples import Examples, TaskData, cut
from diffmix.tasks.splits import Cut, describe_limit, describe_validation, limited

_TEST_FRACTION = 0.2


def load_digits(how: Cut) -> TaskData:
    """`digits`: 64 pixels row by row, grey values 0..16 as ids 1..17 (0 is padding); ten classes.

    The source has one split: a fifth is cut off for test, then validation from the rest, by class with a fixed seed.
    """
    from sklearn.datasets import load_digits as source

    pixels, labels = source(return_X_y=True)  # float [n, 64], int [n]
    everything = Examples(labels=np.asarray(labels, dtype=np.int64), input_ids=np.asarray(pixels, dtype=np.int32) + 1)
    rest, test_rows = cut(everything.labels, _TEST_FRACTION, how.seed)
    test = everything.take(test_rows)
    train = everything.take(rest)
    kept, held = cut(train.labels, how.fraction, how.seed)
    validation, train = train.take(held), train.take(kept)
    facts: dict[str, str | int | float] = {
        "source": "scikit-learn load_digits",
        "train_rows": len(rest),
        "test": f"{len(test)} rows ({_TEST_FRACTION:.0%}), stratified by label, seed {how.seed}",
    }
    describe_validation(facts, validation, how, own=False)
    describe_limit(facts, how)
    return TaskData(
        name="digits",
        label_names=tuple(str(digit) for digit in range(10)),
        train=limited(train, how),
        validation=limited(validation, how),
        load_test=lambda: limited(test, how),
        facts=facts,
        vocab_size=18,
    )
