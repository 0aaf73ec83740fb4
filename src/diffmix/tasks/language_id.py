"""`language_id`: which language is a short name in? Real data that every installation has: Babel's copy of Unicode CLDR."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from diffmix.tasks.examples import Examples, TaskData, TextColumn
from diffmix.tasks.splits import Cut, describe_limit, limited

LANGUAGES = {
    "af": "Afrikaans", "sq": "Albanian", "az": "Azerbaijani", "eu": "Basque", "be": "Belarusian", "bg": "Bulgarian",
    "ca": "Catalan", "hr": "Croatian", "cs": "Czech", "da": "Danish", "nl": "Dutch", "en": "English", "et": "Estonian",
    "fil": "Filipino", "fi": "Finnish", "fr": "French", "gl": "Galician", "de": "German", "el": "Greek", "he": "Hebrew",
    "hi": "Hindi", "hu": "Hungarian", "is": "Icelandic", "id": "Indonesian", "ga": "Irish", "it": "Italian",
    "ja": "Japanese", "kk": "Kazakh", "ko": "Korean", "lv": "Latvian", "lt": "Lithuanian", "mk": "Macedonian",
    "mr": "Marathi", "fa": "Persian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sk": "Slovak", "sl": "Slovenian", "es": "Spanish", "sw": "Swahili", "sv": "Swedish", "tr": "Turkish",
    "uk": "Ukrainian", "vi": "Vietnamese", "cy": "Welsh", "zh": "Chinese",
}  # fmt: skip
_NAMES = {"territories": "territory", "languages": "language", "scripts": "script", "currency_names": "currency"}
_TEST_SHARE, _VALIDATION_SHARE = 0.15, 0.10


def load_language_id(how: Cut) -> TaskData:
    """`language_id`: names of territories, languages, scripts, currencies and units in 48 languages.

    A name's key (territory DE, currency EUR, …) lies wholly in train, in validation or in test, in all languages, so that no
    translation of a test name was seen in training. Names that several languages share are dropped (compared without
    case), so are repetitions within a language. The split follows from the keys alone; `how` only limits rows.
    """
    import babel
    from babel.core import get_cldr_version

    spellings: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)  # folded name → language → (key, name)
    for code in LANGUAGES:
        for key, name in _names(code):
            spellings[name.casefold()].setdefault(code, (key, name))
    splits: dict[str, tuple[list[str], list[int]]] = {split: ([], []) for split in ("train", "validation", "test")}
    order = {code: index for index, code in enumerate(LANGUAGES)}
    for found in spellings.values():
        if len(found) == 1:
            ((code, (key, name)),) = found.items()
            texts, labels = splits[_split(key)]
            texts.append(name)
            labels.append(order[code])
    train, validation, test = (_examples(*splits[split]) for split in ("train", "validation", "test"))
    facts: dict[str, str | int | float] = {
        "source": f"Unicode CLDR {get_cldr_version()} in Babel {babel.__version__}",
        "train_rows": len(train),
        "validation_rows": len(validation),
        "validation": f"{_VALIDATION_SHARE:.0%} of the name keys, in all languages",
        "test": f"{len(test)} rows: {_TEST_SHARE:.0%} of the name keys, in all languages",
    }
    describe_limit(facts, how)
    return TaskData(
        name="language_id",
        label_names=tuple(LANGUAGES.values()),
        train=limited(train, how),
        validation=limited(validation, how),
        load_test=lambda: limited(test, how),
        facts=facts,
    )


def _names(code: str) -> Iterator[tuple[str, str]]:
    """(key, name) of everything that CLDR names in a language; keys are the same in all languages."""
    from babel import localedata

    data = localedata.load(code)
    for table, kind in _NAMES.items():
        for key, name in sorted(data.get(table, {}).items()):
            yield from _usable(f"{kind}/{key}", name)
    for key, lengths in sorted(data.get("unit_display_names", {}).items()):
        if isinstance(lengths, dict):  # since Babel 2.19 some are aliases, which repeat another unit's name
            yield from _usable(f"unit/{key}", lengths.get("long", ""))


def _usable(key: str, name: object) -> Iterator[tuple[str, str]]:
    if isinstance(name, str):
        text = " ".join(unicodedata.normalize("NFC", name).split())
        if sum(character.isalpha() for character in text) >= 3 or not text.isascii():  # no bare codes
            yield key, text


def _split(key: str) -> str:
    share = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    if share < _TEST_SHARE:
        return "test"
    return "validation" if share < _TEST_SHARE + _VALIDATION_SHARE else "train"


def _examples(texts: list[str], labels: list[int]) -> Examples:
    return Examples(np.array(labels, dtype=np.int64), texts=TextColumn(pa.array(texts, type=pa.large_string())))
