"""Pairs of documents: the official pairs of papers (ACL Anthology), and a task of our own from 20 Newsgroups.

n: pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from diffmix.errors import RequestError
from diffmix.tasks.data_sets import load_data_set
from diffmix.tasks.examples import Examples, TaskData, TextColumn
from diffmix.tasks.splits import Cut, Facts, describe_limit, limited

FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
FOLDERS = ("lra_retrieval", "aan", "tsv_data")  # ours, and names that copies of the official files go by
LONGEST = 4000  # bytes of a document
_SAME = ("different", "same")
_PAIRS = {"train": 2, "validation": 1, "test": 1}  # of each label for each document


def has_files(folder: Path) -> bool:
    """Whether `folder` holds the official training file."""
    return (folder / FILES["train"]).is_file()


def missing_files(data: Path | None) -> RequestError:
    """What to say where the official files are not to be had."""
    place = f"--data {data}: holds no" if data is not None else "lra_retrieval: found no"
    return RequestError(
        f"{place} {FILES['train']}; put {', '.join(FILES.values())} of the official archive into lra_retrieval/ under --data "
        "or $DIFFMIX_DATA, or take the task newsgroups_retrieval, which has other data"
    )


def read_tsv(path: Path) -> Examples:
    """Pairs of an official file: lines of label, id1, id2, text1 and text2 between tabs; texts are cut at 4,000 bytes.

    Raises RequestError, with the line, where the file is missing or malformed.
    """
    labels, texts, pairs = [], [], []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                fields = line.rstrip(b"\r\n").split(b"\t")
                if len(fields) != 5:
                    raise RequestError(
                        f"{path}, line {number}: has {len(fields)} fields; label, id1, id2, text1 and text2 belong there"
                    )
                if fields[0] not in (b"0", b"1", b"0.0", b"1.0"):
                    raise RequestError(f"{path}, line {number}: label {fields[0][:20]!r} is not 0 or 1; mend the file")
                labels.append(int(fields[0][:1]))
                for column, content in ((texts, fields[3]), (pairs, fields[4])):
                    column.append(_cut(content, path, number))
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be read ({error.strerror}); put all of {', '.join(FILES.values())} there"
        ) from None
    if not labels:
        raise RequestError(f"{path}: has no rows; get the file again")
    columns = [TextColumn(pa.array(column, type=pa.large_string())) for column in (texts, pairs)]
    return Examples(np.array(labels, dtype=np.int64), texts=columns[0], pairs=columns[1])


def _cut(content: bytes, path: Path, number: int) -> str:
    end = min(len(content), LONGEST)
    while 0 < end < len(content) and content[end] & 0xC0 == 0x80:  # within a character, which is left out
        end -= 1
    try:
        return content[:end].decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path}, line {number}: byte 0x{content[error.start]:02x} is not UTF-8; get the file again"
        ) from None


def load_files(folder: Path, how: Cut) -> TaskData:
    """The official files as TaskData; test is read when asked for."""
    for name in FILES.values():
        if not (folder / name).is_file():
            raise RequestError(f"{folder / name}: is missing; put all of {', '.join(FILES.values())} there")
    train, validation = (read_tsv(folder / FILES[split]) for split in ("train", "validation"))
    facts: Facts = {
        "source": f"files {folder.name}",
        "train_rows": len(train),
        "validation_rows": len(validation),
        "validation": "the source's own",
    }
    describe_limit(facts, how)
    return TaskData(
        name="lra_retrieval",
        label_names=_SAME,
        train=limited(train, how),
        validation=limited(validation, how),
        load_test=lambda: limited(read_tsv(folder / FILES["test"]), how),
        facts=facts,
    )


def load_newsgroups(data: str | Path | None, how: Cut, on_notice: Callable[[str], None]) -> TaskData:
    """`newsgroups_retrieval`: are two messages of 20 Newsgroups from the same group? Not the benchmark's task.

    In each split every message is the first of as many pairs with a message of its own group as with one of another group, all
    drawn with equal probability with the fixed seed; no message is in two splits and no pair occurs twice.
    """
    source = load_data_set(
        "20newsgroups", data=data, how=Cut(how.fraction, how.seed), extra_train=(), on_notice=on_notice
    )
    assert isinstance(source.train, Examples)
    train, validation = (
        _pairs(part, split, how.seed) for part, split in ((source.train, "train"), (source.validation, "validation"))
    )

    def load_test() -> Examples | None:
        test = source.load_test()
        return None if test is None else limited(_pairs(test, "test", how.seed), how)

    facts: Facts = {
        "source": f"pairs of messages of 20newsgroups ({source.facts['source']})",
        "train_rows": len(train),
        "validation_rows": len(validation),
        "validation": f"pairs of {len(source.validation):,} messages cut from train ({how.fraction:.0%}, seed {how.seed})",
        "note": "not the official retrieval task of the Long Range Arena",
    }
    describe_limit(facts, how)
    return TaskData(
        name="newsgroups_retrieval",
        label_names=_SAME,
        train=limited(train, how),
        validation=limited(validation, how),
        load_test=load_test,
        facts=facts,
    )


def _pairs(messages: Examples, split: str, seed: int) -> Examples:
    """Pairs within a split; both labels equally often."""
    rng = np.random.default_rng([seed, list(_PAIRS).index(split)])
    groups = messages.labels
    members = {int(group): np.flatnonzero(groups == group) for group in np.unique(groups)}
    if len(members) < 2 or min(map(len, members.values())) < 2:
        raise RequestError(
            f"newsgroups_retrieval {split}: needs two groups or more with two messages or more each; give more of 20newsgroups"
        )
    seen: set[tuple[int, int]] = set()
    chosen: list[tuple[int, int, int]] = []
    for _ in range(_PAIRS[split]):
        for first in rng.permutation(len(groups)):
            own = members[int(groups[first])]
            added = [(_partner(int(first), own if same else None, groups, rng, seen), same) for same in (1, 0)]
            if any(partner < 0 for partner, _ in added):
                continue  # all of a small group's pairs are there already: neither label is added
            for partner, same in added:
                seen.add((min(first, partner), max(first, partner)))
                chosen.append((int(first), partner, same))
    first, second, labels = np.array(chosen, dtype=np.int64)[rng.permutation(len(chosen))].T
    assert isinstance(messages.texts, TextColumn)
    return Examples(labels, texts=messages.texts.take(first), pairs=messages.texts.take(second))


def _partner(
    first: int, own: np.ndarray | None, groups: np.ndarray, rng: np.random.Generator, seen: set[tuple[int, int]]
) -> int:
    """A message of the own group, or (None) of another one, that forms a new pair with `first`; -1: none was found."""
    for _ in range(100):
        other = int(rng.integers(len(groups))) if own is None else int(own[rng.integers(len(own))])
        if other == first or (own is None and groups[other] == groups[first]):
            continue
        if (min(first, other), max(first, other)) not in seen:
            return other
    return -1
