"""The arguments of the second paper's training script, for `diffmix train language`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from diffmix.errors import RequestError

# Their argument → our recipe key. Their defaults are those of the recipe `language`.
RECIPE_KEYS = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "n_heads": "num_attention_heads",
    "epochs": "epochs",
    "max_tokens": "max_tokens",
    "batch_size": "batch_size",
    "lr": "learning_rate",
    "seq_len": "max_length",
    "eval_interval": "eval_steps",
    "save_every": "save_steps",
}
MODELS = {
    "standard": ("mixer=softmax",),
    "diffusion_fixed": ("mixer=heat_kernel", "heat_time_mode=fixed"),
    "diffusion_adaptive": ("mixer=heat_kernel", "heat_time_mode=adaptive"),
}
DATASETS = {"wikitext-2": "wikitext2", "wikitext-103": "wikitext103"}
DEFAULT_TIME = "1.0"  # of --fixed_t in their script


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"train language: {message}")


def standard_arguments(arguments: Sequence[str]) -> list[str]:
    """`train language` with the paper's arguments → the same with `--set`, `--output` and `--resume`; others as they are.

    Raises RequestError for a model or a data set that the paper's script does not know.
    """
    if list(arguments[:2]) != ["train", "language"]:
        return list(arguments)
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--fixed_t")
    parser.add_argument("--dataset", choices=DATASETS)
    parser.add_argument("--exp_name")
    parser.add_argument("--resume", nargs="?", const="", default=None)
    for name in RECIPE_KEYS:
        parser.add_argument(f"--{name}")
    given, others = parser.parse_known_args(arguments[2:])
    changes = [f"{key}={getattr(given, name)}" for name, key in RECIPE_KEYS.items() if getattr(given, name) is not None]
    if given.model is not None:
        changes += MODELS[given.model]
    if given.fixed_t is not None and given.model != "diffusion_fixed":
        raise RequestError("train language: --fixed_t is the time of --model diffusion_fixed: give both, or neither")
    if given.model == "diffusion_fixed":
        changes.append(f"heat_time={given.fixed_t or DEFAULT_TIME}")
    if given.dataset is not None:
        changes.append(f"task={DATASETS[given.dataset]}")
    result = ["train", "language", *(part for change in changes for part in ("--set", change)), *others]
    if given.resume is not None:
        result.append("--resume")
    named = "--resume CHECKPOINT" if given.resume else "--exp_name" if given.exp_name is not None else None
    if named is not None and any(part == "--output" or part.startswith("--output=") for part in others):
        raise RequestError(f"train language: {named} and --output both name the run's folder: give one of them")
    if given.resume:
        result += ["--output", str(_run_folder(Path(given.resume)))]
    elif given.exp_name is not None:
        result += ["--output", str(Path("runs") / given.exp_name)]
    return result


def _run_folder(path: Path) -> Path:
    """The run's folder that a checkpoint belongs to: FOLDER/checkpoints/checkpoint-N."""
    return path.parent.parent if path.parent.name == "checkpoints" else path
