"""Published data sets of texts and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, TaskData, TextColumn, joined_texts
from diffmix.tasks.labels import to_examples
from diffmix.tasks.rows import Columns, Rows, pc
from diffmix.tasks.sources import SPLIT_NAMES, HubSource, find_source
from diffmix.tasks.splits import Cut, Facts, cut_off, describe_limit, describe_validation, limited

NEWSGROUPS = (
    "alt.atheism", "comp.graphics", "comp.os.ms-windows.misc", "comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware",
    "comp.windows.x", "misc.forsale", "rec.autos", "rec.motorcycles", "rec.sport.baseball", "rec.sport.hockey",
    "sci.crypt", "sci.electronics", "sci.med", "sci.space", "soc.religion.christian", "talk.politics.guns",
    "talk.politics.mideast", "talk.politics.misc", "talk.religion.misc",
)  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """A published data set: the hub's name and label order, which local copies follow (or give label names)."""

    hub: str | None
    labels: tuple[str, ...]
    train_rows: int  # of the official train split
    hub_splits: tuple[tuple[str, str], ...] = (("train", "train"), ("test", "test"))  # our name, the hub's
    test_fraction: float | None = None  # of train, where no labelled test split was ever published
    elsewhere: str = ""  # without hub: why, and where the files are to be had


DATA_SETS = {
    "ag_news": DataSet("fancyzhx/ag_news", ("World", "Sports", "Business", "Sci/Tech"), 120_000),
    "imdb": DataSet(
        "stanfordnlp/imdb",
        ("neg", "pos"),
        25_000,
        hub_splits=(("train", "train"), ("test", "test"), ("unsupervised", "unsupervised")),
    ),
    # GLUE keeps the labels of its test split to itself: there the validation split is the test.
    "sst2": DataSet(
        "stanfordnlp/sst2",
        ("negative", "positive"),
        67_349,
        hub_splits=(("train", "train"), ("test", "validation")),
    ),
    "20newsgroups": DataSet("SetFit/20_newsgroups", NEWSGROUPS, 11_314),
    "hyperpartisan_byarticle": DataSet(
        None,
        ("not hyperpartisan", "hyperpartisan"),
        645,
        test_fraction=0.2,
        elsewhere=(
            "the hub's copy (SemEvalWorkshop/hyperpartisan_news_detection) is a script that datasets no longer runs; get "
            "the training files by article from https://zenodo.org/record/1489920 and write hyperpartisan_byarticle/"
            "train.parquet with the columns text (without markup) and label (1: hyperpartisan) under --data or $DIFFMIX_DATA"
        ),
    ),
}


def load_data_set(
    name: str,
    *,
    data: str | Path | None,
    how: Cut,
    extra_train: Sequence[str],
    on_notice: Callable[[str], None],
) -> TaskData:
    """One of DATA_SETS, from `data`, $DIFFMIX_DATA or the hub."""
    data_set = DATA_SETS[name]
    splits = dict(data_set.hub_splits)
    hub = data_set.elsewhere if data_set.hub is None else HubSource(data_set.hub, splits)
    source = find_source(name, data, hub, on_notice)
    columns = Columns(label="label", option=None)

    def indexed(rows: Rows, place: Path) -> Examples:
        assert rows.labels is not None
        named = rows.labels[0].as_py() in data_set.labels  # else class indices
        return to_examples(
            rows, place, data_set.labels if named else [str(index) for index in range(len(data_set.labels))]
        )

    def read(split: str) -> Examples:
        return indexed(*source.read(split, columns))

    train = read("train")
    rows = len(train)
    cut_test: Examples | None = None
    if data_set.test_fraction is not None and not source.has("test"):
        train, cut_test = cut_off(train, Cut(data_set.test_fraction, how.seed), f"{name} train")
    own_validation = source.has("validation")
    if own_validation:
        validation = read("validation")
    else:
        train, validation = cut_off(train, how, f"{name} train")
    held = {name for names in SPLIT_NAMES.values() for name in names}  # splits of their own, which are not for train
    for extra in extra_train:  # after the cut: validation is of the test's form
        if extra.lower() in held or not source.has(extra):
            raise RequestError(
                f"extra_train: {name} has no further train file {extra!r} ({source.name}); leave it out, or add {extra}.parquet"
            )
        more = read(extra)
        train = Examples(np.concatenate([train.labels, more.labels]), texts=joined_texts([train.texts, more.texts]))
        rows += len(more)

    facts: Facts = {"source": source.name, "train_rows": rows}
    if extra_train:
        facts["extra_train"] = ", ".join(extra_train)
    if rows != data_set.train_rows:
        kind = "subset" if rows < data_set.train_rows else "superset"
        facts["note"] = f"{rows:,}-row {kind} of the official {data_set.train_rows:,}"
    if isinstance(source, HubSource) and splits["test"] != "test":
        facts["test"] = f"the official {splits['test']} split (the hub's test split has no labels)"
    if cut_test is not None:
        facts["train_rows"] = rows - len(cut_test)
        facts["test"] = (
            f"{len(cut_test)} rows cut from train ({data_set.test_fraction:.0%}, stratified by label, seed {how.seed}): no "
            "official test split"
        )
    describe_validation(facts, validation, how, own_validation)
    train, validation = limited(train, how), limited(validation, how)
    describe_limit(facts, how)

    def load_test() -> Examples | None:
        if cut_test is not None:
            return limited(cut_test, how)
        if not source.has("test"):
            return None
        found, place = source.read("test", columns)
        if pc.all(pc.equal(found.labels, "-1")).as_py():  # the mark of withheld labels
            return None
        return limited(indexed(found, place), how)

    def load_unlabelled() -> Sequence[str]:
        if not source.has("unsupervised"):
            return []
        return TextColumn(source.read("unsupervised", replace(columns, labelled=False))[0].texts)

    return TaskData(name, data_set.labels, train, validation, load_test, facts, load_unlabelled=load_unlabelled)
