"""Text to learn a language model from: splits of documents, and windows of their tokens that score every target once.

Images, whose pixels are scored like tokens, are in `pixels`.

n: tokens of a split.  L: targets of a window.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from diffmix.errors import RequestError
from diffmix.tasks.examples import cut
from diffmix.tasks.pixels import PIXEL_TASKS, PixelImages, load_pixels
from diffmix.tasks.rows import Columns
from diffmix.tasks.sources import SPLIT_NAMES, FolderSource, HubSource, find_source, split_files
from diffmix.tasks.splits import Cut

_TEXT_TASKS = ("wikitext2", "wikitext2_raw", "wikitext103", "tiny_shakespeare", "python_docs", "plain_text")
LANGUAGE_TASKS = (*_TEXT_TASKS, *PIXEL_TASKS)
_WIKITEXT = {"wikitext2": "wikitext-2-v1", "wikitext2_raw": "wikitext-2-raw-v1", "wikitext103": "wikitext-103-v1"}
_ENDINGS = (".txt", ".md", ".rst")  # of files of plain text
_ARTICLE = re.compile(r" = [^=].* = \n?")  # WikiText's heading of an article; " = = Section = = " is not one


@dataclass(frozen=True)
class Documents:
    """A split: its documents in order."""

    texts: Sequence[str]
    words: int  # what word-level perplexity divides by
    bytes: int  # what bits per byte divides by: UTF-8, of all texts

    @classmethod
    def of(cls, texts: Iterable[str]) -> Documents:
        """Count words as word-level language models do: what stands between blanks, and one end mark a line."""
        kept = [text for text in texts if text]
        words = sum(len(text.split()) + text.count("\n") for text in kept)
        return cls(kept, words, sum(len(text.encode()) for text in kept))

    def windows(self, tokenizer: PreTrainedTokenizerBase | None, length: int) -> TokenWindows:
        """The text as windows of `length` targets. Raises RequestError for a model of pixels, which has no tokenizer."""
        if tokenizer is None:
            raise RequestError("this model reads pixels but was given text: give the task that it was trained on")
        return TokenWindows(self, tokenizer, length)

    def first(self, tokens: int, tokenizer: PreTrainedTokenizerBase) -> Documents:
        """The first lines, document by document, that have at most `tokens` tokens together; never none."""
        kept: list[str] = []
        for text in self.texts:
            lines = text.splitlines(keepends=True)
            counts = [len(ids) for ids in tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]]
            fitting = int(np.searchsorted(np.cumsum(counts), tokens, side="right"))
            kept.append("".join(lines[: max(fitting, not kept)]))
            tokens -= sum(counts)
            if tokens <= 0:
                break
        return Documents.of(kept)


@dataclass(frozen=True)
class LanguageData:
    """The text, or the images, of a task. Test is not read until `load_test` is called, once, at the end."""

    name: str
    train: Documents | PixelImages
    validation: Documents | PixelImages
    load_test: Callable[[], Documents | PixelImages | None]  # None: the source has no test split
    facts: dict[str, str | int | float]


def load_language(
    name: str,
    *,
    data: str | Path | None = None,
    seed: int = 0,
    validation_fraction: float = 0.1,
    limit: int | None = None,
    on_notice: Callable[[str], None] = print,
) -> LanguageData:
    """The text, or the images, of a task of LANGUAGE_TASKS.

    data: a folder of data-set folders or the data set's own; for `plain_text` a file, or a folder of files. None takes
    $DIFFMIX_DATA, then the hub. seed: of the cut of python_docs, of a folder's files and of images. validation_fraction,
    limit: of train's images, and at most so many images of each split; texts have tenths, and are limited in windows.

    Raises RequestError, one line with the place and the mend.
    """
    if name not in LANGUAGE_TASKS:
        near = difflib.get_close_matches(name, LANGUAGE_TASKS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise RequestError(f"task: {name!r} is no language task{hint}; known: {', '.join(LANGUAGE_TASKS)}")
    if name == "wikitext2_raw" and (folder := _raw_test_alone(data)):
        return _raw_wikitext(folder, data, on_notice)
    if name in _WIKITEXT:
        return load_wikitext(name, data, on_notice)
    if name == "tiny_shakespeare":
        return load_tiny_shakespeare(data)
    if name == "plain_text":
        return load_plain_text(data, seed)
    if data is not None and name in ("digits_pixels", "python_docs"):
        raise RequestError(f"data: task {name!r} takes none, got {str(data)!r}; leave it out")
    if name in PIXEL_TASKS:
        return LanguageData(name, *load_pixels(name, data, Cut(validation_fraction, seed, limit), on_notice))
    return load_python_docs(seed)


def load_wikitext(name: str, data: str | Path | None = None, on_notice: Callable[[str], None] = print) -> LanguageData:
    """`wikitext2` or `wikitext103` in word-level form, or `wikitext2_raw`, article by article (Merity et al., 2017)."""
    form = _WIKITEXT[name]
    splits = {"train": "train", "validation": "validation", "test": "test"}
    source = find_source(form, data, HubSource("Salesforce/wikitext", splits, form), on_notice)

    def read(split: str) -> Documents:
        if not source.has(split):
            raise RequestError(f"{form}: {source.name} has no {split} split; put {split}.parquet beside train.parquet")
        rows, _ = source.read(split, Columns(labelled=False, option=None))
        return Documents.of(articles(rows.texts.to_pylist()))

    return LanguageData(
        name,
        read("train"),
        read("validation"),
        lambda: read("test"),
        {"source": source.name, "form": "raw" if name == "wikitext2_raw" else "word level"},
    )


def _raw_test_alone(data: str | Path | None) -> Path | None:
    """The folder of raw WikiText-2 where it holds the test split but no train split."""
    root = data if data is not None else os.environ.get("DIFFMIX_DATA")
    places = () if root is None else (Path(root) / _WIKITEXT["wikitext2_raw"], Path(root))
    found = next((place for place in places if split_files(place, "test") or split_files(place, "train")), None)
    return found if found is not None and not split_files(found, "train") else None


def _raw_wikitext(folder: Path, data: str | Path | None, on_notice: Callable[[str], None]) -> LanguageData:
    """Raw WikiText-2 of which only test is at hand: the rest is what the word-level form has in common with the raw one.

    The two differ in rare words, which are <unk> in the word-level form. A paragraph without <unk> is the same in both.
    """
    word_level = load_wikitext("wikitext2", data, on_notice)

    def common(documents: Documents | PixelImages) -> Documents:
        assert isinstance(documents, Documents)
        texts = (
            "".join(
                f"{line}\n\n" for line in text.split("\n") if "<unk>" not in line and not re.match(r" = |\s*$", line)
            )
            for text in documents.texts
        )
        return Documents.of(texts)

    test = FolderSource(_WIKITEXT["wikitext2_raw"], folder)
    return LanguageData(
        "wikitext2_raw",
        common(word_level.train),
        common(word_level.validation),
        lambda: Documents.of(articles(test.read("test", Columns(labelled=False, option=None))[0].texts.to_pylist())),
        {
            "source": f"{test.name} (test)",
            "form": "raw",
            "validation": "the word-level validation split's paragraphs without <unk>, which are the raw ones",
        },
    )


def articles(lines: Iterable[str]) -> list[str]:
    """WikiText's lines joined to articles, each line with its end; what stands before the first heading is one, too."""
    documents: list[list[str]] = [[]]
    for line in lines:
        if _ARTICLE.fullmatch(line):
            documents.append([])
        documents[-1].append(line if line.endswith("\n") else line + "\n")
    return ["".join(lines) for lines in documents]


def load_python_docs(seed: int) -> LanguageData:
    """The language reference that ships with every Python, topic by topic; a tenth each is validation and test."""
    from pydoc_data.topics import topics

    texts = np.array([topics[name] for name in sorted(topics)], dtype=object)
    everything = np.zeros(len(texts), dtype=np.int64)
    rest, test = cut(everything, 0.1, seed)
    train, validation = cut(everything[rest], 1 / 9, seed)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return LanguageData(
        "python_docs",
        Documents.of(texts[rest][train]),
        Documents.of(texts[rest][validation]),
        lambda: Documents.of(texts[test]),
        {
            "source": f"pydoc_data of Python {version}",
            "topics": len(texts),
            "validation": f"cut by topic (seed {seed})",
        },
    )


def load_tiny_shakespeare(data: str | Path | None) -> LanguageData:
    """Tiny Shakespeare: the first 80 % is train, then 10 % each for validation and test; a document is a speech."""
    root = data if data is not None else os.environ.get("DIFFMIX_DATA")
    places = [] if root is None else [Path(root), Path(root) / "input.txt", Path(root) / "tiny_shakespeare/input.txt"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise RequestError(
            "tiny_shakespeare: no input.txt was found; give its file or folder with --data, or set $DIFFMIX_DATA to a "
            "folder that holds tiny_shakespeare/input.txt"
        )
    return _in_order("tiny_shakespeare", path, r"(?<=\n\n)")


def plain_text_files(folder: Path) -> list[Path]:
    """The files of plain text in a folder, also further down, but for those that runs wrote there."""
    runs = {recipe.parent for recipe in folder.rglob("recipe.yaml")} - {folder}
    found = (file for file in folder.rglob("*") if file.suffix in _ENDINGS and file.is_file())
    return sorted(file for file in found if runs.isdisjoint(file.parents))


def load_plain_text(data: str | Path | None, seed: int) -> LanguageData:
    """Text of your own, UTF-8: a file, whose last tenths are validation and test, line by line; or a folder.

    A folder holds train.txt and validation.txt (or valid, val or dev; and test.txt), or any .txt, .md and .rst files,
    also further down, of which a tenth each, drawn by `seed`, is validation and test.
    """
    if data is None:
        raise RequestError("plain_text: no text was given; give a file or a folder of files with --data")
    path = Path(data)
    if path.is_file():
        return _in_order("plain_text", path, r"(?<=\n)")
    files = plain_text_files(path)
    named = _named_splits(path, files)
    if named:
        train, validation = (Documents.of([read_text(named[split])]) for split in ("train", "validation"))
        test = named.get("test")
        return LanguageData(
            "plain_text",
            train,
            validation,
            lambda: None if test is None else Documents.of([read_text(test)]),
            {"source": path.name},
        )
    if len(files) < 3:
        raise RequestError(
            f"plain_text: {path} holds {len(files)} text files ({', '.join(_ENDINGS)}); give one file, train.txt and "
            "validation.txt, or three files or more"
        )
    everything = np.zeros(len(files), dtype=np.int64)
    rest, test_files = cut(everything, 0.1, seed)
    train, validation = cut(everything[rest], 1 / 9, seed)

    def read(rows: np.ndarray) -> Documents:
        return Documents.of(read_text(files[row]) for row in rows)

    return LanguageData(
        "plain_text",
        read(rest[train]),
        read(rest[validation]),
        lambda: read(test_files),
        {"source": path.name, "files": len(files), "validation": f"cut by file (seed {seed})"},
    )


def _named_splits(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Split → its file, of those that lie in `folder` itself; empty where no file has the name of a split.

    Raises RequestError where a split has two files, or train or validation has none.
    """
    named: dict[str, Path] = {}
    for split in ("train", "validation", "test"):
        found = [file for file in files if file.parent == folder and file.stem.lower() in SPLIT_NAMES[split]]
        if len(found) > 1:
            raise RequestError(
                f"plain_text: {found[0]} and {found[1].name} are both of the {split} split; keep one of them, or rename one"
            )
        if found:
            named[split] = found[0]
    missing = [f"{split}.txt" for split in ("train", "validation") if split not in named]
    if named and missing:
        held = " and ".join(file.name for file in named.values())
        raise RequestError(
            f"plain_text: {folder} holds {held} but no {' and no '.join(missing)}; add what is missing, or rename {held} "
            "to have validation and test drawn from all files"
        )
    return named


def _in_order(name: str, path: Path, between: str) -> LanguageData:
    """The first 80 % of a file is train, then 10 % each for validation and test; `between` documents it is split."""
    text = read_text(path)

    def part(first: float, last: float) -> Documents:
        return Documents.of(re.split(between, text[round(first * len(text)) : round(last * len(text))]))

    return LanguageData(
        name,
        part(0, 0.8),
        part(0.8, 0.9),
        lambda: part(0.9, 1),
        {"source": path.name, "characters": len(text)},
    )


def read_text(path: Path) -> str:
    """A text file. Raises RequestError, with the place, for one that is empty or not UTF-8 text."""
    raw = path.read_bytes()
    if not raw.strip():
        raise RequestError(f"{path}: is empty; give a file with text")
    if b"\0" in raw:
        raise RequestError(f"{path}: byte {raw.index(0)} is 0, which no text has; give a text file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path}: byte {error.start} is not UTF-8; convert the file, for example with iconv -t UTF-8"
        ) from None


class TokenWindows(Dataset[dict[str, Any]]):
    """The tokens of a split, one document after another, in windows that do not overlap but for one token.

    Window k is {"input_ids": int32 [≤ L + 1]}: tokens kL … kL + L. Each token but the first is the target of exactly one
    window, and the first is an end mark (or a separator) where the tokenizer has one, so that every token of the text is
    scored once.
    """

    def __init__(self, documents: Documents, tokenizer: PreTrainedTokenizerBase, length: int):
        if length < 1:
            raise ValueError(f"length: got {length}; give 1 or more targets a window")
        self.length = length
        parts, owners = [], []
        mark = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if mark is not None:
            parts.append(np.array([mark], dtype=np.int32))
            owners.append(np.array([0], dtype=np.int32))
        for start in range(0, len(documents.texts), 256):
            batch = list(documents.texts[start : start + 256])
            for offset, ids in enumerate(tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]):
                parts.append(np.asarray(ids, dtype=np.int32))
                owners.append(np.full(len(ids), start + offset, dtype=np.int32))
        self.tokens = np.concatenate(parts)  # [n]
        self.owners = np.concatenate(owners)  # [n], the document of each token
        if len(self.tokens) < 2:
            raise RequestError("the text has fewer than two tokens: give more of it")

    @property
    def targets(self) -> int:
        """How many tokens are predicted."""
        return len(self.tokens) - 1

    def __len__(self) -> int:
        return -(-self.targets // self.length)

    def __getitem__(self, index: int) -> dict[str, Any]:
        first = range(len(self))[index] * self.length
        return {"input_ids": self.tokens[first : first + self.length + 1]}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window, int64."""
        lengths = np.full(len(self), self.length + 1, dtype=np.int64)
        lengths[-1] = len(self.tokens) - (len(self) - 1) * self.length
        return lengths

    def documents(self, index: int) -> np.ndarray:
        """The document of each target of a window, int32 [≤ L]."""
        first = index * self.length + 1
        return self.owners[first : first + self.length]
