"""Studies as files: a grid of recipes, written as YAML and checked as a whole before anything runs.

```yaml
name: calibration                 # of the runs' folder and of results/study-NAME.json; left out: the file's name
recipe: wikitext2                 # shipped, or a YAML file beside this one
set: {epochs: 2}                  # keys of every cell
grid:                             # axis by axis; a cell is one choice on each
  attention:                      # a mapping: variants, each with the recipe keys that make it
    softmax: {mixer: softmax}
    heat: {mixer: heat_kernel, heat_time_mode: learned}
  num_hidden_layers: [4, 8]       # a list: values of the recipe key that the axis is named after
  seed: [0, 1, 2]                 # the axis that means and intervals are over
compare: {axis: attention, baseline: softmax}
metrics: [test/nll, test/ece]     # keys of metrics.json, for the summary
```

The key `recipe` may be an axis, or stand in a variant: then the cells start from different recipes.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from diffmix.errors import RequestError
from diffmix.training.recipe import Recipe, load_recipe, shipped_recipes
from diffmix.training.yaml_text import read_yaml

SEED = "seed"
_KEYS = ("name", "recipe", "set", "grid", "compare", "metrics")
_SECTIONS = ("test", "validation", "train", "data")  # of the keys of metrics.json


@dataclasses.dataclass(frozen=True)
class Cell:
    """One recipe of a study, and where it stands in the grid."""

    values: dict[str, str]  # axis → the name of the choice on it
    recipe: Recipe

    @property
    def label(self) -> str:
        """`attention=softmax, seed=0`."""
        return _label(self.values)


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked study: every cell's recipe is valid, and no two are the same."""

    name: str
    source: str  # as asked for: a shipped study's name, or a file
    content: dict[str, Any]  # recipe, set and grid, as the file has them
    overrides: tuple[str, ...]  # key=value for every cell, beyond the file
    axes: dict[str, tuple[str, ...]]  # axis → the names of its choices
    compared: tuple[str, str] | None  # axis and baseline of the paired differences
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]


def shipped_studies() -> list[str]:
    """The names of the studies that come with the package."""
    folder = importlib.resources.files("diffmix") / "studies"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_study(source: str | Path, overrides: Iterable[str] = ()) -> Study:
    """The shipped study `source`, or that of a YAML file, with `key=value` overrides for every cell.

    Raises RequestError, one line that names the place and the mend, for whatever is wrong in it or in a cell's recipe.
    """
    source, overrides = str(source), tuple(overrides)
    folder, content = _read(source)
    where = f"study {source}"
    _check_keys(where, content)
    name = content.get("name", Path(source).stem)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise RequestError(f"{where}: name is {name!r}; it names a folder: give letters, digits, '-', '_' and '.'")
    axes = {axis: _variants(where, axis, choices) for axis, choices in content["grid"].items()}
    shared = _mapping(where, "set", content.get("set"))
    _check_setters(where, axes, overrides)
    cells = []
    for choices in itertools.product(*axes.values()):
        values = dict(zip(axes, choices, strict=True))
        own = {key: value for axis, choice in values.items() for key, value in axes[axis][choice].items()}
        cells.append(Cell(values, _cell_recipe(where, folder, values, content.get("recipe"), shared, overrides, own)))
    _check_different(where, cells)
    return Study(
        name=name,
        source=source,
        content={key: content[key] for key in ("recipe", "set", "grid") if key in content},
        overrides=overrides,
        axes={axis: tuple(variants) for axis, variants in axes.items()},
        compared=_compared(where, content.get("compare"), axes),
        metrics=_metrics(where, content.get("metrics")),
        cells=tuple(cells),
    )


def select_cells(study: Study, only: Sequence[str]) -> list[Cell]:
    """The cells that `axis=value` choices leave: several of one axis add up, those of different axes must all hold.

    Raises RequestError for an unknown axis or value.
    """
    wanted: dict[str, set[str]] = {}
    for choice in only:
        axis, equals, value = (part.strip() for part in choice.partition("="))
        if not equals or not axis:
            raise RequestError(f"--only {choice!r}: write axis=value, as in --only seed=0")
        if axis not in study.axes:
            raise RequestError(f"--only {choice!r}: the study has no axis {axis!r}; {_near(axis, study.axes)}")
        if value not in study.axes[axis]:
            raise RequestError(f"--only {choice!r}: {axis} has no value {value!r}; {_near(value, study.axes[axis])}")
        wanted.setdefault(axis, set()).add(value)
    return [cell for cell in study.cells if all(cell.values[axis] in values for axis, values in wanted.items())]


def _label(values: Mapping[str, str]) -> str:
    return ", ".join(f"{axis}={value}" for axis, value in values.items())


def _read(source: str) -> tuple[Path, dict[str, Any]]:
    """The folder that a study's recipes are looked for in, and its mapping."""
    shipped = shipped_studies()
    if source in shipped:
        folder = Path()
        text = (importlib.resources.files("diffmix") / "studies" / f"{source}.yaml").read_text(encoding="utf-8")
    elif Path(source).is_file():
        folder = Path(source).parent
        try:
            text = Path(source).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(f"study {source} is not UTF-8 text (byte {error.start}): give a YAML file") from None
    else:
        raise RequestError(
            f"study {source!r} not found: give a YAML file, or a shipped study; {_near(source, shipped)}"
        )
    content = read_yaml(text, f"study {source}")
    if not isinstance(content, dict):
        raise RequestError(f"study {source} holds no keys: write {', '.join(_KEYS)}, one 'key: value' each")
    return folder, content


def _check_keys(where: str, content: Mapping[Any, Any]) -> None:
    for key in content:
        if key not in _KEYS:
            raise RequestError(f"{where}: unknown key {key!r}; {_near(str(key), _KEYS)}")
    grid = content.get("grid")
    if not isinstance(grid, dict) or not grid or not all(isinstance(axis, str) for axis in grid):
        raise RequestError(f"{where}: grid is {grid!r}; give axes, as in grid: {{mixer: [neighbor, softmax]}}")
    if not isinstance(content.get("recipe", ""), str):
        raise RequestError(f"{where}: recipe is {content['recipe']!r}; give a shipped recipe's name or a YAML file")


def _variants(where: str, axis: str, choices: Any) -> dict[str, dict[str, Any]]:
    """The choices of an axis by name, each with the recipe keys that it sets."""
    if isinstance(choices, dict) and choices:
        if axis == SEED:
            raise RequestError(f"{where}: axis seed is a mapping; give a list of whole numbers, as in seed: [0, 1, 2]")
        return {str(name): _mapping(where, f"{axis}={name}", keys) for name, keys in choices.items()}
    if not isinstance(choices, list) or not choices:
        raise RequestError(
            f"{where}: axis {axis} is {choices!r}; give a list of values, or a mapping of variants to recipe keys"
        )
    variants = {as_text(value): {axis: value} for value in choices}
    if len(variants) < len(choices):
        raise RequestError(f"{where}: axis {axis} has a value twice in {choices!r}; give each once")
    return variants


def _mapping(where: str, place: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RequestError(f"{where}: {place} is {value!r}; give recipe keys, as in {{mixer: softmax}}")
    return value


def _check_setters(where: str, axes: Mapping[str, Mapping[str, Mapping[str, Any]]], overrides: Sequence[str]) -> None:
    """A key is set by one axis at most, and by none that `--set` would level out."""
    setters: dict[str, str] = {}
    for axis, variants in axes.items():
        for key in dict.fromkeys(key for keys in variants.values() for key in keys):
            if setters.setdefault(key, axis) != axis:
                raise RequestError(f"{where}: axes {setters[key]} and {axis} both set {key!r}; set it on one of them")
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in setters:
            raise RequestError(
                f"--set {override!r}: {key} is set by axis {setters[key]} of the study; choose among its values with --only"
            )


def _cell_recipe(
    where: str,
    folder: Path,
    values: Mapping[str, str],
    base: str | None,
    shared: Mapping[str, Any],
    overrides: Sequence[str],
    own: Mapping[str, Any],
) -> Recipe:
    own = dict(own)
    base = own.pop("recipe", base)
    if not isinstance(base, str) or not base:
        raise RequestError(f"{where}: recipe is missing; give recipe: NAME, a shipped recipe or a YAML file")
    if base not in shipped_recipes() and (folder / base).is_file():
        base = str(folder / base)
    set_, chosen = ([f"{key}={as_text(value)}" for key, value in keys.items()] for keys in (shared, own))
    try:
        return load_recipe(base, [*set_, *overrides, *chosen])  # of several for one key the last holds
    except RequestError as error:
        raise RequestError(f"{where}, cell {_label(values)}: {error}") from None


def as_text(value: Any) -> str:
    """A value as YAML on one line: what `key=VALUE` reads back as the same."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _check_different(where: str, cells: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.recipe.to_yaml(), cell)
        if other is not cell:
            raise RequestError(
                f"{where}: cells {other.label!r} and {cell.label!r} are the same recipe; let each choice change something"
            )


def _compared(where: str, compare: Any, axes: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
    if compare is None:
        return None
    if not isinstance(compare, dict) or set(compare) != {"axis", "baseline"}:
        raise RequestError(f"{where}: compare is {compare!r}; give {{axis: AXIS, baseline: ONE OF ITS VALUES}}")
    axis, baseline = str(compare["axis"]), compare["baseline"]
    if axis == SEED or axis not in axes:
        others = [other for other in axes if other != SEED]
        raise RequestError(f"{where}: compare names axis {axis!r}; {_near(axis, others)}")
    baseline = baseline if isinstance(baseline, str) and baseline in axes[axis] else as_text(baseline)
    if baseline not in axes[axis]:
        raise RequestError(
            f"{where}: compare names baseline {baseline!r}, which axis {axis} lacks; {_near(baseline, axes[axis])}"
        )
    return axis, baseline


def _metrics(where: str, metrics: Any) -> tuple[str, ...]:
    if not isinstance(metrics, list) or not metrics or not all(isinstance(metric, str) for metric in metrics):
        raise RequestError(
            f"{where}: metrics is {metrics!r}; list keys of metrics.json, as in metrics: [test/accuracy]"
        )
    for metric in metrics:
        section, slash, _ = metric.partition("/")
        if slash and section not in _SECTIONS:
            raise RequestError(f"{where}: metric {metric!r} has no known section; {_near(section, _SECTIONS)}")
        if metrics.count(metric) > 1:
            raise RequestError(f"{where}: metric {metric!r} stands there twice; name each once")
    return tuple(metrics)


def _near(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"give one of {', '.join(known)}" if known else "there is none"
