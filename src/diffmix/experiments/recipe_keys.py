"""The table of a recipe's keys, out of `Recipe`: its fields, and the comments that stand beside them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import textwrap
import tokenize
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from diffmix.training.recipe import Recipe

_FIRST = "What is trained"  # the heading above the keys that stand before the first one in the source
_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Mapping: "keys"}


def recipe_keys_table() -> str:
    """Markdown: for each part of `Recipe` a heading and its keys with their default, what they accept and their meaning."""
    hints = typing.get_type_hints(Recipe)
    lines: list[str] = []
    told = None
    comments = _comments()
    for field in dataclasses.fields(Recipe):
        if field.name in ("name", "config"):  # the file's own name, and the model's keys
            continue
        heading, meaning = comments[field.name]
        if heading != told:
            lines += [
                *([""] if lines else []),
                f"### {heading}",
                "",
                "| key | default | accepts | meaning |",
                "|---|---|---|---|",
            ]
            told = heading
        cells = (f"`{field.name}`", f"`{_plain(field.default)}`", _accepts(hints[field.name]), meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _comments() -> dict[str, tuple[str, str]]:
    """Field → the heading above it and what the comment beside or above it says.

    A comment on a line of its own is a heading where it begins with a capital letter, else about the field that follows.
    """
    source = textwrap.dedent(inspect.getsource(Recipe))
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    fields = [node for node in body.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    beside = {line: field for field in fields for line in range(field.lineno, (field.end_lineno or field.lineno) + 1)}
    found: dict[str, tuple[str, str]] = {}
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    heading, above = _FIRST, ""
    for line in range(1, (body.end_lineno or 0) + 1):
        comment, field = comments.get(line, ""), beside.get(line)
        if field is None:
            if comment[:1].isupper():
                heading = comment
            elif comment:
                above = comment
            continue
        assert isinstance(field.target, ast.Name)
        meaning = comment or above or found.get(field.target.id, ("", ""))[1]
        found[field.target.id] = (heading, meaning)
        above = ""
    return found


def _plain(default: Any) -> str:
    """A default as a recipe's file would say it."""
    if isinstance(default, float):
        return f"{default:g}"
    return default if isinstance(default, str) else json.dumps(default)


def _accepts(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (each for each in arguments if each is not type(None))
        return f"{_accepts(kind)}, or null"
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return f"a list: {_accepts(arguments[0])} each"
    return _KINDS[origin or hint]
