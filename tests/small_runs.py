"""Small real data and small models for tests of training and of the command line."""

import csv
import random
from pathlib import Path

from babel import Locale

LANGUAGES = ("de", "el", "ru")

# One layer of 16 channels on bytes: a run takes a second or two.
SMALL = [
    "tokenizer=bytes",
    "max_length=48",
    "hidden_size=16",
    "num_hidden_layers=2",
    "intermediate_size=32",
    "neighbor_offsets=[-1, 0, 1]",
    "noise_std=0",
    "learning_rate=5e-3",
    "epochs=2",
    "dtype=fp32",
    "early_stopping_patience=0",
]


def write_names(path: Path, rows: int = 240, languages: tuple[str, ...] = LANGUAGES) -> Path:
    """A CSV of names of territories and languages in several languages (Babel's CLDR data)."""
    names = set()
    for language in languages:
        locale = Locale(language)
        names |= {(name, language) for table in (locale.territories, locale.languages) for name in table.values()}
    chosen = sorted(names)
    random.Random(0).shuffle(chosen)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(chosen[:rows])
    return path


def write_pairs(path: Path) -> Path:
    """A CSV of pairs of names: is the second one a name of the same territory as the first?"""
    german, french = Locale("de").territories, Locale("fr").territories
    codes = sorted(code for code in german if code.isalpha() and code in french)[:120]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "other", "label"])
        for index, code in enumerate(codes):
            same = index % 2 == 0
            other = code if same else codes[(index * 7 + 3) % len(codes)]
            writer.writerow([german[code], french[other], "same" if same else "different"])
    return path


SMALL_LANGUAGE = [
    "tokenizer=bytes",
    "max_length=64",
    "hidden_size=32",
    "num_hidden_layers=2",
    "num_attention_heads=2",
    "batch_size=8",
    "limit=160",
    "max_steps=18",
    "learning_rate=5e-3",
    "dtype=fp32",
]
