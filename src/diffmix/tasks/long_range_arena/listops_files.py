"""The official ListOps files: basic_train.tsv, basic_val.tsv and basic_test.tsv with the columns Source and Target."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, TaskData
from diffmix.tasks.long_range_arena.expressions import VOCAB_SIZE, evaluate, parse_bytes
from diffmix.tasks.long_range_arena.listops import Expressions
from diffmix.tasks.splits import Cut, Facts, describe_limit, limited
from diffmix.tasks.token_rows import TokenRows

FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
FOLDERS = ("listops", "listops-1000")  # ours, and that of the official archive
_LINES = 2000  # read at a time


def has_files(folder: Path) -> bool:
    """Whether `folder` holds the official training file."""
    return (folder / FILES["train"]).is_file()


def read_tsv(path: Path) -> Expressions:
    """The expressions of an official file, with parentheses or without. Every label is checked against its expression.

    Raises RequestError, with the line, where the file is missing, malformed, or a label is wrong.
    """
    ids, lengths, labels = [], [], []
    try:
        with path.open("rb") as file:
            header = file.readline().rstrip(b"\r\n").split(b"\t")
            if header != [b"Source", b"Target"]:
                raise RequestError(f"{path}: its first line must be the header Source and Target, with a tab between")
            line = 2
            while rows := list(islice(file, _LINES)):
                fields = [row.rstrip(b"\r\n").split(b"\t") for row in rows]
                for number, row in enumerate(fields, start=line):
                    if len(row) != 2 or len(row[1]) != 1 or not row[1].isdigit():
                        raise RequestError(
                            f"{path}, line {number}: must be an expression, a tab and a digit 0 to 9; get the file again"
                        )
                flat, offsets = parse_bytes([row[0] for row in fields], str(path), line)
                values = evaluate(flat)
                given = np.array([int(row[1]) for row in fields], dtype=np.uint8)
                wrong = np.flatnonzero(values != given)
                if len(wrong):
                    raise RequestError(
                        f"{path}, line {line + wrong[0]}: mend label {given[wrong[0]]}, the value is {values[wrong[0]]}"
                    )
                ids.append(flat)
                lengths.append(np.diff(offsets))
                labels.append(given)
                line += len(rows)
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be read ({error.strerror}); put all of {', '.join(FILES.values())} there"
        ) from None
    if not ids:
        raise RequestError(f"{path}: has no rows; get the file again")
    return Expressions(
        np.concatenate(ids), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]), np.concatenate(labels)
    )


def load_files(name: str, folder: Path, how: Cut) -> TaskData:
    """The official files as TaskData. Test is read when asked for, and yardsticks on it join the facts then."""
    from diffmix.tasks.long_range_arena.generated import DIGITS, rounded_yardsticks

    train, validation = (read_tsv(folder / FILES[split]) for split in ("train", "validation"))
    test_file = folder / FILES["test"]
    if not test_file.is_file():
        raise RequestError(f"{test_file}: is missing; put all of {', '.join(FILES.values())} there")
    facts: Facts = {
        "source": f"files {folder.name}",
        "train_rows": len(train.labels),
        "validation_rows": len(validation.labels),
        "validation": "the source's own",
    }
    describe_limit(facts, how)

    def load_test() -> Examples:
        test = read_tsv(test_file)
        facts.update(rounded_yardsticks(train, test))
        return limited(_examples(test), how)

    return TaskData(
        name=name,
        label_names=DIGITS,
        train=limited(_examples(train), how),
        validation=limited(_examples(validation), how),
        load_test=load_test,
        facts=facts,
        vocab_size=VOCAB_SIZE,
        pixels=False,
    )


def _examples(expressions: Expressions) -> Examples:
    return Examples(expressions.labels.astype(np.int64), input_ids=TokenRows(expressions.ids, expressions.offsets))
