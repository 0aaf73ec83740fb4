"""Text classification: the standard data sets, and any table of texts and labels (`text_file`)."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from diffmix.errors import RequestError
from diffmix.tasks import sources
from diffmix.tasks.examples import Examples, StreamedExamples, TaskData, TextColumn, cut
from diffmix.tasks.sources import Columns, HubSource, Rows, pc

Facts = dict[str, str | int | float]  # TaskData.facts
NEWSGROUPS = (
    "alt.atheism", "comp.graphics", "comp.os.ms-windows.misc", "comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware",
    "comp.windows.x", "misc.forsale", "rec.autos", "rec.motorcycles", "rec.sport.baseball", "rec.sport.hockey",
    "sci.crypt", "sci.electronics", "sci.med", "sci.space", "soc.religion.christian", "talk.politics.guns",
    "talk.politics.mideast", "talk.politics.misc", "talk.religion.misc",
)  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """A published data set: the hub's name and label order, which local copies follow (or give label names)."""

    hub: str
    labels: tuple[str, ...]
    train_rows: int  # of the official train split
    hub_splits: tuple[tuple[str, str], ...] = (("train", "train"), ("test", "test"))  # our name, the hub's


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
}
HELD_OUT_ROWS = 20_000  # the most rows of a streamed file that are held in memory for validation, and for test
TOKENIZER_ROWS, TOKENIZER_CHARS = 100_000, 200_000_000  # the most that a streamed file gives to its tokenizer


@dataclass(frozen=True)
class Cut:
    """How missing splits are cut: fraction, fixed seed, and the most rows kept of a split (None: all)."""

    fraction: float
    seed: int
    limit: int | None = None


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
    source = sources.find_source(name, data, HubSource(data_set.hub, splits), on_notice)
    columns = Columns(label="label")

    def indexed(rows: Rows, place: Path) -> Examples:
        assert rows.labels is not None
        named = rows.labels[0].as_py() in data_set.labels  # else class indices
        return _indexed(
            rows, place, data_set.labels if named else [str(index) for index in range(len(data_set.labels))]
        )

    def read(split: str) -> Examples:
        return indexed(*source.read(split, columns))

    train = read("train")
    rows = len(train)
    own_validation = source.has("validation")
    if own_validation:
        validation = read("validation")
    else:
        train, validation = _cut(train, how, f"{name} train")
    for extra in extra_train:  # after the cut: validation is of the test's form
        if extra in sources.SPLIT_NAMES or not source.has(extra):
            raise RequestError(
                f"extra_train: {name} has no further train file {extra!r} ({source.name}); leave it out, or add {extra}.parquet"
            )
        more = read(extra)
        train = Examples(np.concatenate([train.labels, more.labels]), texts=_together([train.texts, more.texts]))
        rows += len(more)

    facts: Facts = {"source": source.name, "train_rows": rows}
    if extra_train:
        facts["extra_train"] = ", ".join(extra_train)
    if rows != data_set.train_rows:
        kind = "subset" if rows < data_set.train_rows else "superset"
        facts["note"] = f"{rows:,}-row {kind} of the official {data_set.train_rows:,}"
    if isinstance(source, HubSource) and splits["test"] != "test":
        facts["test"] = f"the official {splits['test']} split (the hub's test split has no labels)"
    describe_validation(facts, validation, how, own_validation)
    train, validation = limited(train, how), limited(validation, how)
    describe_limit(facts, how)

    def load_test() -> Examples | None:
        if not source.has("test"):
            return None
        found, place = source.read("test", columns)
        if pc.all(pc.equal(found.labels, "-1")).as_py():  # the mark of withheld labels
            return None
        return limited(indexed(found, place), how)

    def load_unlabelled() -> Sequence[str]:
        parts = [train.texts]
        if source.has("unsupervised"):
            parts.append(TextColumn(source.read("unsupervised", replace(columns, labelled=False))[0].texts))
        return _together(parts)

    return TaskData(name, data_set.labels, train, validation, load_test, facts, load_unlabelled=load_unlabelled)


# Files of one's own


def load_text_file(
    *,
    data: str | Path | None,
    columns: Columns,
    how: Cut,
    stream: bool | None,
    on_notice: Callable[[str], None],
) -> TaskData:
    """Any CSV, TSV, JSONL or Parquet file, or a folder with a train and perhaps a validation and a test file.

    Missing splits are cut from train. Label names are those of train, in numeric order if all are whole numbers, else
    in alphabetical order. `stream`: None streams a file that memory would not hold, True and False decide.
    """
    if data is None:
        raise RequestError("text_file: no data given; name a CSV, TSV, JSONL or Parquet file, or a folder, with --data")
    path = Path(data)
    files = {"train": [path], "validation": [], "test": [], "unsupervised": []}
    if path.is_dir():
        files = {split: sources.split_files(path, split) for split in files}
        if not files["train"]:
            raise RequestError(
                f"--data {path}: the folder holds no train file; name it train.csv (or .tsv, .jsonl, .parquet), or give a file"
            )
    if stream is None:
        stream = _memory_needed(files["train"]) > _memory_available()
    facts: Facts = {"source": f"file {path.name}" if path.is_file() else f"folder {path.name}"}
    load = _stream_text_file if stream else _hold_text_file
    return load(files, columns, how, facts, on_notice)


def _hold_text_file(
    files: dict[str, list[Path]],
    columns: Columns,
    how: Cut,
    facts: Facts,
    on_notice: Callable[[str], None],
) -> TaskData:
    path = files["train"][0]
    rows = sources.read_files(files["train"], columns)
    names = _label_names(_value_counts(rows), path)
    _check_labels(files["test"], columns, names)
    train = _indexed(rows, path, names)
    _notice_empty(rows, path, on_notice)
    facts["train_rows"] = len(train)

    test: Examples | None = None
    if not files["test"]:
        train, test = _cut(train, how, str(path))
        facts["test"] = f"{len(test)} rows cut from train (stratified, seed {how.seed})"
        facts["train_rows"] = len(train)
    if files["validation"]:
        validation = _indexed(sources.read_files(files["validation"], columns), files["validation"][0], names)
    else:
        train, validation = _cut(train, how, str(path))
    describe_validation(facts, validation, how, bool(files["validation"]))
    train, validation = limited(train, how), limited(validation, how)
    describe_limit(facts, how)

    def load_test() -> Examples:
        found = test or _indexed(sources.read_files(files["test"], columns), files["test"][0], names)
        return limited(found, how)

    def load_unlabelled() -> Sequence[str]:
        parts = [train.texts]
        if files["unsupervised"]:
            parts.append(
                TextColumn(sources.read_files(files["unsupervised"], Columns(columns.text, labelled=False)).texts)
            )
        return _together(parts)

    return TaskData("text_file", names, train, validation, load_test, facts, load_unlabelled=load_unlabelled)


def _stream_text_file(
    files: dict[str, list[Path]],
    columns: Columns,
    how: Cut,
    facts: Facts,
    on_notice: Callable[[str], None],
) -> TaskData:
    """Reads train once for its labels and once for validation and the tokenizer's sample, holding only the latter two."""
    path = files["train"][0]
    counts: dict[str, int] = {}
    first_labels = 0
    for rows in _iter_files(files["train"], columns):
        for label, count in _value_counts(rows).items():
            counts[label] = counts.get(label, 0) + count
        if first_labels == 0:
            first_labels = len(counts)
        if len(counts) > 100_000:
            raise RequestError(
                f"{path}: over 100,000 different labels; is the label column right? --set label_column=NAME"
            )
    total = sum(counts.values())
    if not total:
        raise RequestError(f"{path}: has no rows; it needs at least a few under its header")
    names = _label_names(counts, path)
    _check_labels(files["test"], columns, names)
    if first_labels < len(names) and total > sources.BATCH_ROWS:
        on_notice(
            f"{path}: its first rows hold {first_labels} of {len(names)} labels; shuffle the file if it is sorted by label"
        )
    fraction = min(how.fraction, HELD_OUT_ROWS / total)
    test_fraction = 0.0 if files["test"] else fraction
    validation_fraction = 0.0 if files["validation"] else fraction

    def split_rows(split: str, limit: int | None) -> Iterator[tuple[Rows, np.ndarray]]:
        """(batch, the rows of it that belong to `split`); a row's split follows from its text and the seed alone, so
        that equal texts are in one split."""
        left = limit if limit is not None else total
        for rows in _iter_files(files["train"], columns):
            checksums = [zlib.crc32(text.encode()) for text in rows.texts.to_pylist()]
            draw = _uniform(np.array(checksums, dtype=np.uint64), how.seed)
            held = test_fraction + validation_fraction
            mask = {
                "test": draw < test_fraction,
                "validation": (draw >= test_fraction) & (draw < held),
                "train": draw >= held,
            }[split]
            chosen = np.flatnonzero(mask)[:left]
            left -= len(chosen)
            yield rows, chosen
            if left <= 0:
                return

    def read_train() -> Iterator[tuple[list[str], list[str] | None, np.ndarray]]:
        for rows, chosen in split_rows("train", how.limit):
            part = _taken(rows, chosen)
            pairs = None if part.pairs is None else part.pairs.to_pylist()
            yield part.texts.to_pylist(), pairs, _label_indices(part, path, names)

    def held_out(split: str) -> Examples:
        parts = [_taken(rows, chosen) for rows, chosen in split_rows(split, how.limit)]
        if not any(len(part.texts) for part in parts):
            raise RequestError(f"{path}: too few rows ({total}) to cut a {split} split; add rows or a {split} file")
        return _indexed(_stacked(parts), path, names)

    def own(split: str) -> Examples:
        return limited(_indexed(sources.read_files(files[split], columns), files[split][0], names), how)

    sample: list[str] = []
    train_counts = np.zeros(len(names), dtype=np.int64)
    wanted = min(1.0, TOKENIZER_ROWS / total)
    chars = start = 0
    for rows, chosen in split_rows("train", how.limit):
        part = _taken(rows, chosen)
        train_counts += np.bincount(_label_indices(part, path, names), minlength=len(names))
        drawn = np.flatnonzero(_uniform(np.arange(start, start + len(chosen)), how.seed + 1) < wanted)
        start += len(chosen)
        for text in part.texts.take(pa.array(drawn)).to_pylist() if chars < TOKENIZER_CHARS else ():
            sample.append(text[: TOKENIZER_CHARS // 100])
            chars += len(sample[-1])
    train = StreamedExamples(int(train_counts.sum()), train_counts, read_train, sample)
    validation = own("validation") if files["validation"] else held_out("validation")
    facts["train_rows"] = len(train) + (0 if files["validation"] else len(validation))
    facts["streamed"] = "train is read from disk in every epoch"
    if not files["test"]:
        facts["test"] = f"rows cut from train (seed {how.seed})"
    facts["validation_rows"] = len(validation)
    facts["validation"] = "the source's own" if files["validation"] else f"cut from train (seed {how.seed})"
    describe_limit(facts, how)
    load_test = partial(own, "test") if files["test"] else partial(held_out, "test")
    return TaskData("text_file", names, train, validation, load_test, facts)


def _check_labels(paths: Sequence[Path], columns: Columns, names: Sequence[str]) -> None:
    """Refuse a test file with labels that train lacks before hours of training; nothing else is taken from it."""
    for path in paths:
        for rows in sources.iter_rows(path, columns):
            _label_indices(rows, path, names)


def _iter_files(paths: Sequence[Path], columns: Columns) -> Iterator[Rows]:
    for path in paths:
        yield from sources.iter_rows(path, columns)


def _taken(rows: Rows, chosen: np.ndarray) -> Rows:
    index = pa.array(chosen)
    pairs = None if rows.pairs is None else rows.pairs.take(index)
    return Rows(rows.texts.take(index), pairs, None if rows.labels is None else rows.labels.take(index), rows.first)


def _stacked(parts: Sequence[Rows]) -> Rows:
    return Rows(
        pa.concat_arrays([part.texts for part in parts]),
        None if parts[0].pairs is None else pa.concat_arrays([part.pairs for part in parts]),
        pa.concat_arrays([part.labels for part in parts]),
        1,
    )


def _uniform(keys: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each whole number: the splitmix64 hash of (seed, key)."""
    with np.errstate(over="ignore"):
        x = keys.astype(np.uint64) + np.uint64(seed) * np.uint64(0xD1B54A32D192ED03) + np.uint64(1)
        x *= np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


def _memory_needed(paths: Sequence[Path]) -> int:
    """A guess of the bytes that texts, their cuts and their tokens take at most: 1 GB of CSV measured 5."""
    return sum(path.stat().st_size * (12 if path.suffix == ".parquet" else 6) for path in paths if path.is_file())


def _memory_available() -> int:
    """Half of the memory that is free now."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 4 << 30


# Labels


def _value_counts(rows: Rows) -> dict[str, int]:
    assert rows.labels is not None
    return {item["values"].as_py(): item["counts"].as_py() for item in rows.labels.value_counts()}


def _label_names(counts: dict[str, int], path: Path) -> tuple[str, ...]:
    """The label names of train, in their order. Refuses what cannot be a classification task."""
    if len(counts) < 2:
        raise RequestError(
            f"{path}: every row has the label {next(iter(counts))!r}; a classifier needs two classes or more "
            "(another column? --set label_column=NAME)"
        )
    if max(counts.values()) < 2:
        raise RequestError(
            f"{path}: no label occurs twice ({len(counts)} labels in as many rows); is the label column right? "
            "--set label_column=NAME"
        )
    try:
        return tuple(sorted(counts, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(counts))


def _label_indices(rows: Rows, path: Path, names: Sequence[str]) -> np.ndarray:
    """Class indices, int64 [n]. A label that is not among `names` raises RequestError with its row."""
    indices = pc.index_in(rows.labels, value_set=pa.array(names, type=pa.large_string()))
    unknown = pc.index(indices.is_null(), True).as_py()
    if unknown >= 0:
        label = rows.labels[unknown].as_py() if rows.labels is not None else None
        shown = ", ".join(repr(name) for name in names[:10]) + (", …" if len(names) > 10 else "")
        raise RequestError(
            f"{path}, row {rows.first + unknown}: unknown label {label!r}; the labels of train are {shown}; "
            "mend or remove the row"
        )
    return indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _indexed(rows: Rows, path: Path, names: Sequence[str]) -> Examples:
    return Examples(
        labels=_label_indices(rows, path, names),
        texts=TextColumn(rows.texts),
        pairs=None if rows.pairs is None else TextColumn(rows.pairs),
    )


# Splits


def _cut(train: Examples, how: Cut, place: str) -> tuple[Examples, Examples]:
    """(train, held out): equal texts stay on one side."""
    groups = train.texts.codes() if isinstance(train.texts, TextColumn) and train.pairs is None else None
    try:
        kept, held = cut(train.labels, how.fraction, how.seed, groups)
    except ValueError as error:
        raise RequestError(f"{place}: {len(train)} rows are too few to cut a split from: {error}") from error
    return train.take(kept), train.take(held)


def _together(columns: Sequence[Sequence[str] | None]) -> TextColumn:
    return TextColumn.concatenate([column for column in columns if isinstance(column, TextColumn)])


def limited(examples: Examples, how: Cut) -> Examples:
    """At most `how.limit` rows, drawn with the fixed seed, in their order."""
    if how.limit is None or len(examples) <= how.limit:
        return examples
    rows = np.random.default_rng(how.seed).permutation(len(examples))[: how.limit]
    return examples.take(np.sort(rows))


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


def _notice_empty(rows: Rows, path: Path, on_notice: Callable[[str], None]) -> None:
    empty = pc.sum(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(rows.texts)), 0)).as_py()
    if empty:
        on_notice(f"{path}: {empty} of {len(rows.texts)} rows have an empty text")
