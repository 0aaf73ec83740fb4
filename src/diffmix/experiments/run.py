"""`run_experiment`: one run, called as the first paper's README shows it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmix.errors import RequestError

if TYPE_CHECKING:
    from diffmix.training.recipe import Recipe

_OTHER_NAMES = {"lra_listops": "listops", "lra_pathfinder": "pathfinder"}
_PAPER = "_paper"


def run_experiment(
    dataset_name: str = "imdb",
    batch_size: int = 32,
    epochs: float = 10,
    max_length: int = 4096,
    embed_dim: int = 256,
    num_iters: int = 4,
    alpha: float = 0.5,
    lr: float = 5e-5,
    data_dir: str | Path | None = None,
    experiment_name: str = "imdb_baseline",
) -> tuple[dict[str, Any], Any, Path]:
    """Train a classifier on a data set into `runs/experiment_name`: the paper's model where a recipe of it is shipped.

    That recipe is `<dataset_name>_paper`, if its model is attention-free. Elsewhere the rest of the configuration is that of the
    recipe `<dataset_name>`, whose model may be another one: attention, or steps that add to the state, have no α.

    Args:
        dataset_name: `imdb`, `ag_news`, `lra_listops`, or another shipped recipe of a classifier.
        batch_size: examples a step.
        epochs: passes over train.
        max_length: tokens a text is cut at; images stay whole.
        embed_dim: D, the width. Where the recipe's number of heads does not divide it, as many heads as divide both.
        num_iters: T, the diffusion steps (layers). Of a recipe that gives each step its own neighbours, the first T.
        alpha: α, what a token keeps of its state in a step.
        lr: learning rate of AdamW.
        data_dir: where the data lie; None: $DIFFMIX_DATA, then the hub.
        experiment_name: of the run's folder under `runs`.

    Returns:
        results: the flat metrics of metrics.json; model: the best one, in evaluation mode; log_dir: TensorBoard's folder.

    Raises:
        RequestError: unknown data set, a language model's recipe, bad value, or a folder in use.
        RunError: the training failed.
    """
    from diffmix.training.prediction import load_classifier
    from diffmix.training.trainer import train

    recipe = experiment_recipe(dataset_name, batch_size, epochs, max_length, embed_dim, num_iters, alpha, lr)
    folder = Path("runs") / experiment_name
    results = train(recipe, data=data_dir, output=folder)
    return results, load_classifier(folder).model.eval(), folder / "logs"


def experiment_recipe(
    dataset_name: str,
    batch_size: int,
    epochs: float,
    max_length: int,
    embed_dim: int,
    num_iters: int,
    alpha: float,
    lr: float,
) -> Recipe:
    """The recipe that `run_experiment` trains; arguments and errors are its own."""
    recipe = _base(dataset_name)
    values = {
        "batch_size": batch_size,
        "epochs": epochs,
        "hidden_size": embed_dim,
        "intermediate_size": embed_dim,
        "num_hidden_layers": num_iters,
        "neighbor_alpha": alpha,
        "learning_rate": lr,
    }
    if not _reads_images(recipe.task):
        values["max_length"] = max_length
    if embed_dim % recipe.config.get("num_attention_heads", 1):
        values["num_attention_heads"] = math.gcd(embed_dim, recipe.config["num_attention_heads"])
    offsets = recipe.config.get("neighbor_offsets", [])
    if offsets and isinstance(offsets[0], list):
        values["neighbor_offsets"] = offsets[: max(num_iters, 1)]
    return recipe.replace(**values)


def _base(dataset_name: str) -> Recipe:
    """The shipped recipe that the arguments change. Raises RequestError for an unknown name, and for a language model's."""
    from diffmix.tasks.language import LANGUAGE_TASKS
    from diffmix.training.recipe import load_recipe, shipped_recipes

    shipped = shipped_recipes()
    dataset = _OTHER_NAMES.get(dataset_name, dataset_name)
    recipe = load_recipe(dataset) if dataset in shipped else None
    if f"{dataset}{_PAPER}" in shipped:
        paper = load_recipe(f"{dataset}{_PAPER}")
        if paper.config.get("mixer", "neighbor") == "neighbor":
            recipe = paper
    if recipe is None or recipe.task in LANGUAGE_TASKS:
        known = {name.removesuffix(_PAPER) for name in shipped if load_recipe(name).task not in LANGUAGE_TASKS}
        what = "" if recipe is None else f", a language model, which diffmix train {dataset} trains"
        raise RequestError(f"dataset_name is {dataset_name!r}{what}; give one of {', '.join(sorted(known))}")
    return recipe


def _reads_images(task: str) -> bool:
    from diffmix.tasks.images import IMAGE_TASKS

    return task in (*IMAGE_TASKS, "lra_image", "pathfinder", "pathfinder_x")
