"""Tokenizers: trained on a task's own texts, bytes, or any Hugging Face tokenizer by name or folder.

All are PreTrainedTokenizerFast, so they are saved as tokenizer.json and load with AutoTokenizer. Those made here put no
tokens round the text, since most models pool over all tokens; [CLS] before it where that is asked for.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from diffmix.errors import RequestError

_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_SPECIAL_WITHOUT_UNK = {kind: token for kind, token in _SPECIAL.items() if kind != "unk_token"}
_SMALLEST_VOCABULARY = 300  # 256 bytes, the special tokens, and a few merges
_LARGEST_VOCABULARY = 1_000_000


def build_tokenizer(
    spec: str, texts: Iterable[str], *, max_length: int, class_token: bool = False
) -> PreTrainedTokenizerFast:
    """The tokenizer that `spec` names.

    spec: "wordpiece-16000" (lower case, accents removed) or "bpe-8000" (on bytes, case kept), trained on `texts` to at
    most that many tokens; "bytes": one token a byte of UTF-8; a Hugging Face name; or a folder with tokenizer.json,
    vocab.txt (WordPiece), or vocab.json and merges.txt (byte-level BPE). A name is looked up in $DIFFMIX_DATA/tokenizers
    before the hub.
    texts: read for the first two only; give the train split's, nothing else. max_length: becomes model_max_length.
    class_token: [CLS] stands before each text, for models that read their first token or let all hear it; tokenizers that
    are not made here keep the form they have.
    [PAD] is id 0 in those made here. Raises RequestError.
    """
    trained = re.fullmatch(r"(wordpiece|bpe)-(\d+)", spec)
    if trained:
        kind, size = trained[1], int(trained[2][:9])  # the first nine digits are too many by themselves
        if size < _SMALLEST_VOCABULARY:
            raise RequestError(f"tokenizer: {spec!r} is too small; give {kind}-{_SMALLEST_VOCABULARY} or more tokens")
        if size > _LARGEST_VOCABULARY:
            raise RequestError(f"tokenizer: {spec!r} is too large; give {kind}-{_LARGEST_VOCABULARY} tokens at most")
        tokenizer, special = (_wordpiece if kind == "wordpiece" else _bpe)(_sequence(texts), size)
        return _finished(_with_class_token(tokenizer) if class_token else tokenizer, special, max_length)
    if spec == "bytes":
        tokenizer = _with_class_token(_bytes()) if class_token else _bytes()
        return _finished(tokenizer, _SPECIAL_WITHOUT_UNK, max_length)
    if re.fullmatch(r"(wordpiece|bpe)\W?\w*", spec):
        raise RequestError(f"tokenizer: {spec!r} needs a size, for example 'wordpiece-16000' or 'bpe-8000'")
    folder = Path(spec)
    if folder.is_dir():
        return _from_folder(folder, max_length)
    at_hand = Path(os.environ.get("DIFFMIX_DATA", ""), "tokenizers", folder.name)
    if os.environ.get("DIFFMIX_DATA") and folder.name and at_hand.is_dir():
        return _from_folder(at_hand, max_length)
    if folder.is_absolute() or spec.startswith((".", "~")) or folder.exists():
        raise RequestError(
            f"tokenizer: {spec!r} is no folder; give a folder, a Hugging Face name, 'bytes' or 'wordpiece-16000'"
        )
    return _pretrained(spec, max_length)


def _wordpiece(texts: Sequence[str], size: int) -> tuple[Tokenizer, dict[str, str]]:
    # "<br />" is how web text writes a line end: white space, not four tokens.
    normalizer = normalizers.Sequence([normalizers.Replace("<br />", "\n"), normalizers.BertNormalizer(lowercase=True)])
    alphabet = _alphabet(texts, normalizer)
    # The trainer numbers the pieces "##x" in the order of a hash map, which differs from run to run and decides ties.
    # Named as special tokens they have fixed numbers; the tokenizer is then made anew without their special status.
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[*_SPECIAL.values(), *(f"##{character}" for character in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.train_from_iterator(_batched(texts), trainer)

    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, _SPECIAL


def _alphabet(texts: Sequence[str], normalizer: normalizers.Normalizer, most: int = 1000) -> list[str]:
    """The most frequent characters of the normalised texts, sorted; white space is none."""
    raw = np.zeros(0x110000, dtype=np.int64)
    for batch in _batched(texts):
        raw += np.bincount(np.frombuffer("".join(batch).encode("utf-32-le"), dtype=np.uint32), minlength=len(raw))
    counts: Counter[str] = Counter()
    for point in np.flatnonzero(raw):
        for character in normalizer.normalize_str(chr(point)):
            if not character.isspace():
                counts[character] += int(raw[point])
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:most])


def _bpe(texts: Sequence[str], size: int) -> tuple[Tokenizer, dict[str, str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=True
    )  # a word is the same token wherever it stands
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(_SPECIAL_WITHOUT_UNK.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batched(texts), trainer)
    return tokenizer, _SPECIAL_WITHOUT_UNK


def _bytes() -> Tokenizer:
    """Byte b of the UTF-8 text is token b + 4, behind the four special tokens."""
    vocabulary = {token: i for i, token in enumerate(_SPECIAL_WITHOUT_UNK.values())}
    for byte, character in enumerate(_byte_characters()):
        vocabulary[character] = len(_SPECIAL_WITHOUT_UNK) + byte
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _with_class_token(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]"))]
    )
    return tokenizer


def _from_folder(folder: Path, max_length: int) -> PreTrainedTokenizerFast:
    if (folder / "tokenizer_config.json").is_file() or (folder / "config.json").is_file():
        return _pretrained(str(folder), max_length)
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.txt").is_file():
            tokenizer = _bert(folder / "vocab.txt")
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            tokenizer = _gpt2(folder / "vocab.json", folder / "merges.txt")
        else:
            raise RequestError(
                f"tokenizer: {folder} holds no tokenizer; it needs tokenizer.json, vocab.txt, or vocab.json and merges.txt"
            )
        return _finished(tokenizer, _known_special(tokenizer, folder), max_length)
    except RequestError:
        raise
    except Exception as error:  # the Rust side raises plain Exception
        raise RequestError(f"tokenizer: {folder} cannot be read: {_one_line(error)}; check its files") from error


def _bert(vocabulary_file: Path) -> Tokenizer:
    """BERT's WordPiece: lower case unless the vocabulary has capitals; [CLS] text [SEP]."""
    tokenizer = Tokenizer(models.WordPiece.from_file(str(vocabulary_file), unk_token="[UNK]"))
    words = [token for token in tokenizer.get_vocab() if not token.startswith("[")]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=all(word == word.lower() for word in words))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    if cls is not None and sep is not None:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return tokenizer


def _gpt2(vocabulary_file: Path, merges_file: Path) -> Tokenizer:
    """Byte-level BPE of GPT-2 (bare text) or RoBERTa (<s> text </s>)."""
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary_file), str(merges_file)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    start, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    if start is not None and end is not None:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", end), ("<s>", start), add_prefix_space=False)
    return tokenizer


def _known_special(tokenizer: Tokenizer, folder: Path) -> dict[str, str]:
    """Special tokens by the names that BERT, RoBERTa and GPT-2 give them; a family without padding pads with its end mark."""
    names = {
        "pad_token": ("[PAD]", "<pad>", "<|endoftext|>", "</s>"),
        "unk_token": ("[UNK]", "<unk>"),
        "cls_token": ("[CLS]", "<s>"),
        "sep_token": ("[SEP]", "</s>"),
        "mask_token": ("[MASK]", "<mask>"),
        "eos_token": ("<|endoftext|>", "</s>"),
    }
    found = {
        kind: next((t for t in tokens if tokenizer.token_to_id(t) is not None), None) for kind, tokens in names.items()
    }
    if found["pad_token"] is None:
        raise RequestError(
            f"tokenizer: {folder} has no padding token ({', '.join(names['pad_token'])}); add a tokenizer_config.json"
        )
    return {kind: token for kind, token in found.items() if token is not None}


def _pretrained(name: str, max_length: int) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # no network, no such repository, no tokenizer in it, a missing dependency
        raise RequestError(
            f"tokenizer: {name!r} could not be loaded: {_one_line(error)}; give a Hugging Face name, a folder, 'bytes', "
            "'wordpiece-16000' or 'bpe-8000'"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise RequestError(f"tokenizer: {name!r} has no fast version (tokenizer.json); choose one that has, or 'bytes'")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise RequestError(f"tokenizer: {name!r} has neither a padding nor an end token; choose one that has")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = max_length
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def _finished(tokenizer: Tokenizer, special: dict[str, str], max_length: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **special,
    )


def _sequence(texts: Iterable[str]) -> Sequence[str]:
    return texts if isinstance(texts, Sequence) else list(texts)


def _batched(texts: Iterable[str], size: int = 1000) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
