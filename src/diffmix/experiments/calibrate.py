"""`diffmix calibrate`: how far a model's probabilities can be trusted, and what one temperature mends.

n predictions, C classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffmix.errors import RequestError
from diffmix.experiments.results import claim_result, write_result

Notice = Callable[[str], None]
Scores = Callable[[float], tuple[dict[str, float], Any]]  # temperature → metrics, StreamingCalibration


@dataclasses.dataclass(frozen=True)
class Choices:
    """What of a model is measured, and on what."""

    split: str = "test"
    temperature: bool = False
    bins: int = 15
    smece: bool = False
    attention: str | None = None
    max_length: int | None = None
    max_tokens: int | None = None
    device: str = "auto"
    dtype: str = "auto"


def calibrate(
    model: Path,
    task: Any,
    output: Path,
    choices: Choices,
    *,
    command: str = "",
    force: bool = False,
    notice: Notice = print,
) -> dict[str, Any]:
    """Measure the calibration of a model and write it into a folder.

    `output` gets calibration.json: `before`, and with a temperature `after`, each with the metrics of
    `StreamingCalibration.metrics` (of a classifier also those of `classification_metrics`, of a language model those of
    `language_metrics`), `smece` where it is asked for; `temperature`; the bins of the reliability diagram. And the diagram as
    reliability.svg and reliability.png, after scaling as reliability-scaled.*.

    Args:
        model: a run's folder, a Hugging Face folder of a sequence classifier or a causal language model, or a GGUF file.
        task: `TaskData` or `LanguageData`.
        output: a folder.
        choices: see `Choices`. `temperature`: fit one on validation. `max_length`: tokens of a window. `max_tokens`: at most
            that many tokens of a text, its first lines.
        command: what repeats it, for the record.
        force: replace a result that is there.
        notice: told what is done.

    Raises:
        RequestError: a split that the task lacks, a model of another kind than the task, a result that exists.
    """
    from diffmix.tasks.language import LanguageData
    from diffmix.training.hardware import environment

    file = output / "calibration.json"
    claim_result(file, force=force)
    if choices.split not in ("test", "validation"):
        raise RequestError(f"--split {choices.split}: give test or validation")
    if choices.temperature and choices.split == "validation":
        raise RequestError("--temperature is fitted on validation, which cannot judge it: give --split test")
    prepare = _language if isinstance(task, LanguageData) else _classification
    score, fit, facts = prepare(model, task, choices, notice)

    temperature = fit() if choices.temperature else None
    result: dict[str, Any] = {
        "model": model.stem if model.suffix == ".gguf" else model.resolve().name,
        "task": task.name,
        "split": choices.split,
        "command": command,
        "bins": choices.bins,
        "data": task.facts,
        **facts,
        "environment": environment(facts["device"]),
        "temperature": temperature,
    }
    measured = {"before": 1.0} | ({} if temperature is None else {"after": temperature})
    for name, value in measured.items():
        metrics, calibration = score(value)
        if choices.smece:
            from diffmix.evaluation.smooth import smooth_calibration_error

            metrics["smece"] = smooth_calibration_error(calibration)
        result[name] = metrics
        result[f"reliability_{name}"] = calibration.confidence_bins().rows()
    output.mkdir(parents=True, exist_ok=True)
    _draw(result, output)
    write_result(file, result)
    return result


def _language(
    model: Path, task: Any, choices: Choices, notice: Notice
) -> tuple[Scores, Callable[[], float], dict[str, Any]]:
    from tqdm import tqdm

    from diffmix.evaluation.language import fit_text_temperature, language_metrics
    from diffmix.training.language import load_language_model

    loaded = load_language_model(model, device=choices.device, dtype=choices.dtype, attention=choices.attention)
    length = loaded.max_length if choices.max_length is None else choices.max_length
    if length > loaded.max_length:
        raise RequestError(f"--max_length {length}: this model takes at most {loaded.max_length} tokens")
    loaded = dataclasses.replace(loaded, max_length=length)

    def of(split: str) -> Any:
        documents = task.load_test() if split == "test" else task.validation
        if documents is None:
            raise RequestError(f"task {task.name} has no test split: give --split validation")
        return documents if choices.max_tokens is None else documents.first(choices.max_tokens, loaded.tokenizer)

    def fit() -> float:
        windows = loaded.windows(of("validation"))
        notice(f"fitting the temperature on {windows.targets:,} tokens of validation")
        with tqdm(unit="window", disable=None) as bar:
            return fit_text_temperature(
                loaded.model, windows, batch_size=loaded.batch_size, dtype=loaded.dtype, on_batch=bar.update
            )

    documents: list[Any] = []  # read once, after the temperature is fitted

    def score(temperature: float) -> tuple[dict[str, float], Any]:
        if not documents:
            documents.append(of(choices.split))
        calibration = loaded.score(documents[0], bins=choices.bins, temperature=temperature)
        return language_metrics(calibration, documents[0]), calibration

    facts = {"window": length, "max_tokens": choices.max_tokens, "dtype": loaded.dtype, "attention": choices.attention}
    return score, fit, {**facts, "device": loaded.model.device.type}


def _classification(
    model: Path, task: Any, choices: Choices, notice: Notice
) -> tuple[Scores, Callable[[], float], dict[str, Any]]:
    import torch

    from diffmix.evaluation import classification_metrics
    from diffmix.evaluation.streaming import StreamingCalibration, fit_temperature
    from diffmix.training.prediction import labels_for, load_classifier

    for option in ("attention", "max_length", "max_tokens"):
        if getattr(choices, option) is not None:
            raise RequestError(f"--{option} is for language models; task {task.name} is classified: leave it out")
    classifier = load_classifier(model, device=choices.device, dtype=choices.dtype)

    def predictions(split: str) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the probabilities [n, C], which are logits, and labels [n]."""
        examples = task.load_test() if split == "test" else task.validation
        if examples is None:
            raise RequestError(f"task {task.name} has no labelled test rows: give --split validation")
        labels = labels_for(examples, task.label_names, classifier.label_names)
        probabilities = np.asarray(classifier.probabilities(examples), np.float64)
        return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)), labels

    def fit() -> float:
        logits, labels = (torch.from_numpy(part) for part in predictions("validation"))
        notice(f"fitting the temperature on {len(labels):,} rows of validation")
        return fit_temperature(lambda: [(logits, labels)])

    measured: list[tuple[np.ndarray, np.ndarray]] = []  # read once, after the temperature is fitted

    def score(temperature: float) -> tuple[dict[str, float], Any]:
        if not measured:
            measured.append(predictions(choices.split))
        logits, labels = (torch.from_numpy(part) for part in measured[0])
        calibration = StreamingCalibration(choices.bins)
        calibration.update(logits / temperature, labels)
        probabilities = (logits / temperature).softmax(dim=-1).numpy()
        exact = classification_metrics(probabilities, measured[0][1], bins=choices.bins)
        return {**calibration.metrics(bootstrap=0), **exact}, calibration

    device = getattr(getattr(classifier, "model", None), "device", None)
    return score, fit, {"device": getattr(device, "type", "cpu"), "dtype": getattr(classifier, "dtype", "fp64")}


def _draw(result: dict[str, Any], output: Path) -> None:
    from diffmix.report.drawing import to_svg
    from diffmix.report.figures import reliability_diagram

    for name, stem in (("before", "reliability"), ("after", "reliability-scaled")):
        rows = result.get(f"reliability_{name}")
        if rows is None:
            continue
        figure = reliability_diagram(rows, of="tokens" if "perplexity" in result[name] else "examples")
        ece = result[name]["ece"]
        label = f"Reliability of {result['model']} on {result['task']} ({result['split']}), ECE {ece:.4f}"
        (output / f"{stem}.svg").write_text(to_svg(figure, label) + "\n", encoding="utf-8")
        figure.savefig(output / f"{stem}.png", dpi=160)


SHOWN = {
    "perplexity": "perplexity a token",
    "word_perplexity": "perplexity a word",
    "bits_per_byte": "bits a byte",
    "bits_per_dim": "bits a dimension",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "nll": "NLL, nats",
    "brier": "Brier score",
    "top_label_brier": "Brier score, top label",
    "ece": "ECE",
    "ece_equal_mass": "ECE, equal mass",
    "smece": "smECE",
    "ece_noise_floor": "ECE noise floor",
    "mce": "largest bin's error",
    "overconfidence": "overconfidence",
    "entropy": "entropy, nats",
}


def summary(result: dict[str, Any]) -> str:
    """A table for the screen."""
    after = result.get("after")
    lines = [
        f"{'':<24}{'before':>12}" + ("" if after is None else f"{'T = ' + format(result['temperature'], '.3f'):>12}")
    ]
    for key, name in SHOWN.items():
        if key in result["before"]:
            values = [each[key] for each in (result["before"], after) if each is not None]
            lines.append(f"{name:<24}" + "".join(f"{value:>12,.4f}" for value in values))
    n = result["before"]["n"]
    return "\n".join([*lines, f"{n:,.0f} predictions, {result['bins']} bins"])


def as_json(result: dict[str, Any]) -> str:
    """One line: flat keys, the metrics before and after with `/`."""
    flat = {key: result[key] for key in ("model", "task", "split", "temperature")}
    for name in ("before", "after"):
        flat |= {f"{name}/{key}": value for key, value in result.get(name, {}).items()}
    return json.dumps(flat)
