"""YAML as people write it: a key that stands twice is an error, and so is whatever the parser stumbles over."""

from __future__ import annotations

from typing import Any

import yaml

from diffmix.errors import RequestError


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not the loss of the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *other`, whose keys this mapping may replace
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands there twice", key_node.start_mark)
            seen.add(key if isinstance(key, str | int | float) else None)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> Any:
    """What a YAML document holds. Raises RequestError, with `where` and the line, where it is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    # The others come from dates and numbers that are none, from tags on the wrong value, and from too many brackets.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or error or "not YAML").split())[:120]
        raise RequestError(f"{where}{place}: {problem}; write one 'key: value' per line") from None
