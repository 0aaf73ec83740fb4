"""`diffmix spectrum --model`: how far diffused sparse attention is from full attention in a trained model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffmix.errors import RequestError
from diffmix.experiments.results import claim_result, write_result
from diffmix.patterns import SparsePattern

ROWS = 16
LONGEST = 1024  # tokens of a row; all pairs of them are held


@dataclasses.dataclass(frozen=True)
class DistanceChoices:
    """The pattern (None: the model's own number), the coefficients and the rows. `length`: rows are cut there."""

    window: int | None = None
    global_tokens: int | None = None
    random_links: int | None = None
    alpha: tuple[float, ...] = (0.1,)
    hops: tuple[int, ...] = (1, 2, 5, 10)
    time: tuple[float, ...] = ()
    limit: int = ROWS
    length: int | None = None


def measure_attention_distance(
    run: Path,
    task: Any,
    choices: DistanceChoices = DistanceChoices(),
    *,
    output: Path | None = None,
    figures: Path | None = None,
    command: str = "diffmix spectrum --model",
    force: bool = False,
    notice: Callable[[str], None] = print,
) -> dict[str, Any]:
    """‖A_diff - A_full‖ of each layer, K and α, on validation rows of a task; see `attention_distances` for what is measured.

    A model with softmax attention is asked what the pattern and the hops would make of its queries and keys; one trained with
    attention diffusion, what full attention would.

    Args:
        run: the folder of a run with mixer `attention_diffusion` or `softmax`.
        task: `TaskData` or `LanguageData`.
        choices: see `DistanceChoices`. K = 1 with α = 0, plain sparse attention, is always among the variants.
        output: a result file; None: none.
        figures: a folder for the figure; None: none.
        command, force, notice: as of `measure_spectrum`.

    Raises:
        RequestError: no such model, a task of another kind, numbers out of range, a file that exists.
    """
    if output is not None:
        claim_result(output, force=force)
    from diffmix.report.spectrum_figures import claim_figures, distance_figure, write_figures

    if figures is not None:
        claim_figures(figures, ("distance",), force=force)
    variants = _variants(choices)
    from tqdm import tqdm

    from diffmix.evaluation.attention_distance import attention_distances, attention_mixers
    from diffmix.training.hardware import environment

    model, longest, rows = _open(run, task)
    attention_mixers(model)
    pattern = _pattern(model.config, choices)
    length = min(longest, LONGEST if choices.length is None else choices.length)
    kept = [ids[:length] for ids in rows(length, choices.limit)]
    with tqdm(total=len(kept), unit="row", disable=None) as bar:
        measured = attention_distances(
            model, kept, pattern, {name: theta for name, (theta, _) in variants.items()}, on_row=bar.update
        )
    result = {
        "spectrum": "distance",
        "command": command,
        "environment": environment("cpu"),
        "model": {
            "name": run.resolve().name,
            "mixer": model.config.mixer,
            "layers": model.config.num_hidden_layers,
            "heads": model.config.num_attention_heads,
            "parameters": model.num_parameters(),
        },
        "task": task.name,
        "split": "validation",
        "rows": len(kept),
        "tokens": [len(ids) for ids in kept],
        "length": length,
        "pattern": pattern.to_dict(),
        "density": float(np.mean([pattern.statistics(len(ids))["density"] for ids in kept])),
        "facts": {name: facts for name, (_, facts) in variants.items()},
        **measured,
    }
    if output is not None:
        write_result(output, result)
        notice(f"Wrote {output}")
    if figures is not None:
        write_figures(figures, {"distance": distance_figure(result)})
        notice(f"Wrote the figure as PNG and SVG to {figures}")
    return result


def _variants(choices: DistanceChoices) -> dict[str, tuple[Sequence[float], dict[str, Any]]]:
    from diffmix.ops.coefficients import heat, personalized_pagerank

    variants: dict[str, tuple[Sequence[float], dict[str, Any]]] = {
        "sparse": (personalized_pagerank(0.0, 1), {"coefficients": "ppr", "alpha": 0.0, "hops": 1})
    }
    if choices.limit < 1:
        raise RequestError(f"limit is {choices.limit}; give 1 row or more")
    if choices.length is not None and choices.length < 2:
        raise RequestError(f"length is {choices.length}; give 2 tokens or more")
    try:
        for hops in choices.hops:
            for alpha in choices.alpha:
                facts = {"coefficients": "ppr", "alpha": alpha, "hops": hops}
                variants[f"alpha={alpha:g}, K={hops}"] = (personalized_pagerank(alpha, hops), facts)
            for time in choices.time:
                facts = {"coefficients": "heat", "time": time, "hops": hops}
                variants[f"t={time:g}, K={hops}"] = (heat(time, hops), facts)
    except ValueError as error:
        raise RequestError(str(error)) from None
    return variants


def _pattern(config: Any, choices: DistanceChoices) -> SparsePattern:
    own: SparsePattern = config.diffusion_pattern()
    chosen = {name: getattr(choices, name) for name in ("window", "global_tokens", "random_links")}
    try:
        return dataclasses.replace(own, **{name: value for name, value in chosen.items() if value is not None})
    except ValueError as error:
        raise RequestError(str(error)) from None


def _open(run: Path, task: Any) -> tuple[Any, int, Callable[[int, int], list[Any]]]:
    """The model, the most tokens it takes, and (length, limit) → ids of validation rows."""
    import torch

    from diffmix.tasks.language import LanguageData

    random = np.random.default_rng(0)
    if isinstance(task, LanguageData):
        from diffmix.training.language import load_language_model

        loaded = load_language_model(run, device="cpu", dtype="fp32")

        def windows(length: int, limit: int) -> list[torch.Tensor]:
            found = task.validation.windows(loaded.tokenizer, max(1, length - 1))
            chosen = np.sort(random.permutation(len(found))[:limit])
            return [torch.from_numpy(found[int(index)]["input_ids"].astype(np.int64)) for index in chosen]

        return loaded.model, loaded.max_length, windows
    from diffmix.tasks.encoding import encode
    from diffmix.training.prediction import load_classifier

    classifier = load_classifier(run, device="cpu", dtype="fp32")
    model = getattr(classifier, "model", None)
    if not hasattr(model, "config") or classifier.reads_pairs:
        raise RequestError(
            f"{run} holds no model of single texts with attention: give a run with mixer=attention_diffusion or mixer=softmax"
        )
    classifier.check(task.validation)

    def examples(length: int, limit: int) -> list[torch.Tensor]:
        chosen = np.sort(random.permutation(len(task.validation))[:limit])
        dataset = encode(task.validation.take(chosen), classifier.tokenizer, length)
        return [torch.from_numpy(dataset[row]["input_ids"].astype(np.int64)) for row in range(len(dataset))]

    return model, classifier.max_length, examples
