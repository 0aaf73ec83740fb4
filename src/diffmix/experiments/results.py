"""Results: one JSON under `results/` for each measurement, from which every table in README and docs is made."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffmix.errors import RequestError, RunError


def claim_result(path: Path, *, force: bool = False) -> None:
    """Refuse, before anything is measured, a result file that exists. Raises RequestError."""
    if path.is_dir():
        raise RequestError(f"output {path} is a folder: give a file with --output, as in {path / 'result.json'}")
    if path.exists() and not force:
        raise RequestError(f"output {path} exists: give --force to replace it, or another file with --output")


def write_result(path: Path, content: Mapping[str, Any], *, data: Path | str | None = None) -> None:
    """Write a result in one piece; folders of data on this machine appear in it as $DIFFMIX_DATA. Raises RunError."""
    text = portable(json.dumps(content, indent=1, ensure_ascii=False), data) + "\n"
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise RunError(f"{path} could not be written ({error.strerror}): free space or give another --output") from None


def read_result(path: Path) -> dict[str, Any]:
    """A result file. Raises RequestError where it is missing or no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"result {path} is missing: run the command that writes it") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"result {path} cannot be read ({' '.join(str(error).split())}): measure it again") from None
    if not isinstance(content, dict):
        raise RequestError(f"result {path} holds a {type(content).__name__}, not an object: measure it again")
    return content


def portable(text: str, data: Path | str | None = None) -> str:
    """`text` with the folder of data sets written as $DIFFMIX_DATA, so that a result names no machine's paths."""
    folders = {str(folder) for folder in (data, os.environ.get("DIFFMIX_DATA")) if folder}
    folders |= {str(Path(folder).resolve()) for folder in folders}
    for folder in sorted(folders, key=len, reverse=True):
        if len(folder) > 1 and os.path.isabs(folder):
            text = text.replace(folder.rstrip("/"), "$DIFFMIX_DATA")
    return text


def portable_path(path: Path | str) -> str:
    """A path as it was given; an absolute one, which is a machine's own, by its last part."""
    return os.path.basename(path) if os.path.isabs(path) else str(path)


def portable_spec(spec: str) -> str:
    """A recipe's NAME[:key=value,...], with its file, where it is one, named as `portable_path` does."""
    name, colon, overrides = spec.partition(":")
    return portable_path(name) + colon + overrides


def command_line(verb: str, *arguments: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The command that repeats a measurement: options that differ from their defaults. Data come from $DIFFMIX_DATA."""
    words = ["diffmix", verb, *arguments]
    for name, value in options.items():
        if value != defaults.get(name) and value is not None and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)


def describe_environment(environment: Mapping[str, Any]) -> str:
    """Device, threads, versions and revision in one line, for captions."""
    parts: Iterable[str] = (
        str(environment.get("device", "unknown device")),
        f"{environment['threads']} threads"
        if environment.get("device_type") == "cpu" and "threads" in environment
        else "",
        f"torch {environment['torch']}" if "torch" in environment else "",
        f"revision {str(environment['revision'])[:8]}" if environment.get("revision") else "",
    )
    return ", ".join(part for part in parts if part)
