"""Does the iteration converge? The change of the states from step to step, far beyond the steps of training.

B batch, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffmix.errors import RequestError
from diffmix.experiments.results import claim_result, command_line, write_result

ROWS = 512  # validation rows that are looked at
BATCH = 16


def measure_convergence(
    run: Path,
    *,
    steps: int = 64,
    data: Path | str | None = None,
    output: Path = Path("results/convergence.json"),
    figure: Path | None = Path("docs/figures/convergence.svg"),
    force: bool = False,
    notice: Callable[[str], None] = print,
) -> dict[str, Any]:
    """‖h_{t+1} − h_t‖ / ‖h_t‖ of a trained model for each step, and the accuracy if the output were read there.

    Args:
        run: the folder of a finished run of a neighbour model.
        steps: how far to iterate. A model whose steps have weights of their own has no further step: it stops at its last.
        data: where the run's validation rows lie; None: where the run found them.
        output: the result file.
        figure: an SVG of the changes; None: no figure.
        force: replace what is there.
        notice: told what is written.

    Raises:
        RequestError: no such run, no neighbour model, a file that exists.
    """
    claim_result(output, force=force)
    if figure is not None:
        claim_result(figure, force=force)
    if steps < 1:
        raise RequestError(f"steps is {steps}: give 1 or more")
    from diffmix.tasks import load_task
    from diffmix.training.hardware import environment
    from diffmix.training.prediction import labels_for, load_classifier
    from diffmix.training.recipe import load_recipe
    from diffmix.training.run_folder import recorded_data

    classifier = load_classifier(run, device="cpu", dtype="fp32")
    config: Any = getattr(getattr(classifier, "model", None), "config", None)
    if getattr(config, "mixer", None) != "neighbor" or classifier.reads_pairs:
        raise RequestError(
            f"{run} holds no neighbour model of single texts: give a run of a recipe with mixer=neighbor"
        )
    recipe = load_recipe(run / "recipe.yaml")
    data = recorded_data(run) if data is None else data
    task = load_task(
        recipe.task,
        data=data,
        validation_fraction=recipe.validation_fraction,
        text_column=recipe.text_column,
        label_column=recipe.label_column,
        limit=recipe.limit,
        on_notice=notice,
    )
    rows = np.random.default_rng(0).permutation(len(task.validation))[:ROWS]
    examples = task.validation.take(np.sort(rows))
    labels = labels_for(examples, task.label_names, classifier.label_names)
    changes, right = _trace(classifier, examples, labels, steps)
    named = run.name if run.is_absolute() else str(run)
    result = {
        "convergence": recipe.name,
        "command": command_line("bench", "convergence", options={"run": named, "steps": steps}, defaults={"steps": 64}),
        "recipe": recipe.name,
        "task": task.name,
        "environment": environment("cpu"),
        "sequences": len(labels),
        "trained_steps": config.num_hidden_layers,
        "shared_steps": config.neighbor_shared_steps,
        "steps": [
            {
                "median": float(np.median(change)),
                "low": float(np.quantile(change, 0.05)),
                "high": float(np.quantile(change, 0.95)),
                "accuracy": float(correct.mean()),
            }
            for change, correct in zip(changes, right, strict=True)
        ],
    }
    write_result(output, result, data=data)
    notice(f"Wrote {output}")
    if figure is not None:
        _draw(result, figure)
        notice(f"Wrote {figure}")
    return result


def _trace(classifier: Any, examples: Any, labels: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Relative changes [steps, rows] and whether the prediction after each step is right [steps, rows]."""
    import torch

    from diffmix.models.modeling import relative_change
    from diffmix.tasks.encoding import PaddingCollator, encode
    from diffmix.training.batching import batches_by_tokens

    model = classifier.model.eval()
    config = model.config
    if not config.neighbor_shared_steps:
        steps = min(steps, config.num_hidden_layers)
    trained = config.num_hidden_layers, config.neighbor_tolerance
    config.num_hidden_layers, config.neighbor_tolerance = steps, None
    dataset = encode(examples, classifier.tokenizer, classifier.max_length)
    collate = PaddingCollator(config.pad_token_id or 0, classifier.max_length)
    changes, right = np.empty((steps, len(labels))), np.empty((steps, len(labels)), dtype=bool)
    try:
        for rows in batches_by_tokens(dataset.lengths, BATCH * classifier.max_length):
            batch = collate([dataset[int(row)] for row in rows])
            mask = batch["attention_mask"].bool()
            with torch.inference_mode():
                states = model.model(
                    batch["input_ids"], batch["attention_mask"], output_hidden_states=True
                ).hidden_states
                for step in range(steps):
                    before, after = states[step], states[step + 1]
                    changes[step, rows] = relative_change(after, before, mask).numpy()
                    final = after if model.model.final_norm is None else model.model.final_norm(after, mask)
                    predicted = model.classifier(model.pooling(final, mask)).argmax(-1).numpy()
                    right[step, rows] = predicted == labels[rows]
    finally:
        config.num_hidden_layers, config.neighbor_tolerance = trained
    return changes, right


def _draw(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    from diffmix.report.drawing import COLOURS, to_svg

    steps = result["steps"]
    number = np.arange(1, len(steps) + 1)
    median, low, high = (np.array([step[key] for step in steps]) for key in ("median", "low", "high"))
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(number, low, high, color=COLOURS["series-1"], alpha=0.2, linewidth=0, label="90 % of sequences")
    axes.plot(number, median, color=COLOURS["series-1"], marker="o", markersize=3, linewidth=1.4, label="median")
    axes.axvline(
        result["trained_steps"], color=COLOURS["muted"], linestyle="--", linewidth=1, label="steps in training"
    )
    axes.set_yscale("log")
    axes.set_xlabel("step t")
    axes.set_ylabel("‖h(t) − h(t−1)‖ / ‖h(t−1)‖")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    described = (
        f"Relative change of the states by step of {result['recipe']}: {median[0]:.3g} in step 1, "
        f"{median[-1]:.3g} in step {len(steps)}"
    )
    path.write_text(to_svg(figure, described) + "\n", encoding="utf-8")
