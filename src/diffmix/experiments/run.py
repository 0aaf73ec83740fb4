"""`run_experiment`: one run, called as the first paper's README shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffmix.errors import RequestError

_OTHER_NAMES = {"lra_listops": "listops", "lra_pathfinder": "pathfinder"}


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
    """Train the paper's model on a data set into `runs/experiment_name`.

    The rest of the configuration is that of the recipe `<dataset_name>_paper` where one is shipped, else of `<dataset_name>`,
    without pre-training.

    Args:
        dataset_name: `imdb`, `ag_news`, `lra_listops`, or another shipped recipe.
        batch_size: examples a step.
        epochs: passes over train.
        max_length: tokens a text is cut at.
        embed_dim: D, the width.
        num_iters: T, the diffusion steps.
        alpha: α, what a token keeps of its state in a step.
        lr: learning rate of AdamW.
        data_dir: where the data lie; None: $DIFFMIX_DATA, then the hub.
        experiment_name: of the run's folder under `runs`.

    Returns:
        results: the flat metrics of metrics.json; model: the best one, in evaluation mode; log_dir: TensorBoard's folder.

    Raises:
        RequestError: unknown data set, bad value, or a folder in use.
        RunError: the training failed.
    """
    from diffmix.training.prediction import load_classifier
    from diffmix.training.recipe import load_recipe, shipped_recipes
    from diffmix.training.trainer import train

    shipped = shipped_recipes()
    dataset = _OTHER_NAMES.get(dataset_name, dataset_name)
    name = next((name for name in (f"{dataset}_paper", dataset) if name in shipped), None)
    if name is None:
        datasets = sorted({recipe.removesuffix("_paper") for recipe in shipped})
        raise RequestError(f"dataset_name is {dataset_name!r}; give one of {', '.join(datasets)}")
    values = {
        "batch_size": batch_size,
        "epochs": epochs,
        "max_length": max_length,
        "hidden_size": embed_dim,
        "intermediate_size": embed_dim,
        "num_hidden_layers": num_iters,
        "neighbor_alpha": alpha,
        "learning_rate": lr,
        "pretraining": "null",
    }
    recipe = load_recipe(name, [f"{key}={value}" for key, value in values.items()])
    folder = Path("runs") / experiment_name
    results = train(recipe, data=data_dir, output=folder)
    return results, load_classifier(folder).model.eval(), folder / "logs"
