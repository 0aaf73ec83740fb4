"""Does the iteration converge? The change of the states from step to step, far beyond the steps of training.

B batch, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffmix.errors import RequestError
from diffmix.experiments.results import claim_result, command_line, portable_path, write_result

ROWS = 512  # validation rows that are looked at
BATCH = 16


def measure_convergence(
    run: Path,
    *,
    steps: int = 64,
    data: Path | str | None = None,
    output: Path | None = None,
    force: bool = False,
    notice: Callable[[str], None] = print,
) -> dict[str, Any]:
    """‖h_{t+1} − h_t‖ / ‖h_t‖ of a trained model for each step, and the accuracy if the output were read there.

    Args:
        run: the folder of a finished run of a neighbour model.
        steps: how far to iterate. A model whose steps have weights of their own has no further step: it stops at its last.
        data: where the run's validation rows lie; None: where the run found them.
        output: the result file; None: results/convergence.json.
        force: replace it.
        notice: told what is written.

    Raises:
        RequestError: no such run, no neighbour model, a file that exists.
    """
    output = Path("results/convergence.json") if output is None else output
    claim_result(output, force=force)
    if steps < 1:
        raise RequestError(f"steps is {steps}: give 1 or more")
    from diffmix.training.building import recipe_data
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
    task = recipe_data(recipe, data, notice)
    rows = np.random.default_rng(0).permutation(len(task.validation))[:ROWS]
    examples = task.validation.take(np.sort(rows))
    labels = labels_for(examples, task.label_names, classifier.label_names)
    changes, right = _trace(classifier, examples, labels, steps)
    options = {"run": portable_path(run), "steps": steps}
    result = {
        "convergence": recipe.name,
        "command": command_line("bench", "convergence", options=options, defaults={"steps": 64}),
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
