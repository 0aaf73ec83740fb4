"""Splits that a source lacks are cut from train, and any split may be limited; what was done is written into the facts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, TextColumn, cut

Facts = dict[str, str | int | float]  # TaskData.facts


@dataclass(frozen=True)
class Cut:
    """How missing splits are cut: fraction, fixed seed, and the most rows kept of a split (None: all)."""

    fraction: float
    seed: int
    limit: int | None = None


def cut_off(train: Examples, how: Cut, place: str) -> tuple[Examples, Examples]:
    """(train, held out): equal texts, and pairs of equal texts, stay on one side."""
    groups = None
    if isinstance(train.texts, TextColumn):
        groups = train.texts.codes()
        if isinstance(train.pairs, TextColumn):
            others = train.pairs.codes()
            groups = groups * (others.max(initial=0) + 1) + others
    try:
        kept, held = cut(train.labels, how.fraction, how.seed, groups)
    except ValueError as error:
        raise RequestError(f"{place}: {len(train)} rows are too few to cut a split from: {error}") from error
    return train.take(kept), train.take(held)


def limited(examples: Examples, how: Cut) -> Examples:
    """At most `how.limit` rows, drawn with the fixed seed, in their order."""
    if how.limit is None or len(examples) <= how.limit:
        return examples
    return examples.take(limited_rows(np.arange(len(examples)), how))


def limited_rows(rows: np.ndarray, how: Cut) -> np.ndarray:
    """At most `how.limit` of `rows`, drawn with the fixed seed, in their order."""
    if how.limit is None or len(rows) <= how.limit:
        return rows
    return rows[np.sort(np.random.default_rng(how.seed).permutation(len(rows))[: how.limit])]


def describe_validation(facts: Facts, validation: Examples, how: Cut, own: bool) -> None:
    """Write into `facts` how many validation rows there are and where they came from."""
    facts["validation_rows"] = len(validation)
    facts["validation"] = (
        "the source's own" if own else f"cut from train ({how.fraction:.0%}, stratified by label, seed {how.seed})"
    )


def describe_limit(facts: Facts, how: Cut) -> None:
    """Write into `facts` that rows were limited."""
    if how.limit is not None:
        facts["limit"] = f"at most {how.limit:,} rows of each split"
