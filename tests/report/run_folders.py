"""Run folders as `diffmix train` leaves them, with numbers that belong together: a simulated model is really scored."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml

from diffmix.evaluation import classification_metrics, confusion_matrix, mean_interval, reliability
from diffmix.evaluation.language import language_metrics
from diffmix.evaluation.streaming import StreamingCalibration
from diffmix.tasks.language import Documents


def write_run(
    folder: Path,
    *,
    labels=("World", "Sports", "Business", "Sci/Tech"),
    skill=2.5,
    sharpness=1.0,
    n=600,
    seed=0,
    mixer="neighbor",
    tokens_per_second=110_000.0,
    peak_memory=160_000_000,
):
    """A finished run with one seed. `skill` is how far the right logit stands out, `sharpness` > 1 is overconfidence."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    truth = random.integers(0, len(labels), n)
    logits = random.normal(size=(n, len(labels)))
    logits[np.arange(n), truth] += skill
    logits *= sharpness * skill
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    scores = classification_metrics(probabilities, truth, bootstrap=100)
    metrics = {f"test/{key}": value for key, value in scores.items()} | {
        "train/examples": 18066,
        "train/seconds": 212.4,
        "train/tokens_per_second": tokens_per_second,
        "train/peak_memory_bytes": peak_memory,
        "parameters": 2_314_756,
    }
    recipe = {
        "name": "ag_news",
        "task": "ag_news",
        "model": "diffmix",
        "mixer": mixer,
        "seed": seed,
        "learning_rate": 0.001,
    }
    evaluation = {
        "labels": list(labels),
        "confusion": confusion_matrix(probabilities, truth).tolist(),
        "reliability": reliability(probabilities, truth),
        "split": "test",
        "n": n,
    }
    history = [
        {
            "step": step,
            "epoch": step / 500,
            "train/loss": 0.3 + 1.1 * np.exp(-step / 400) + 0.02 * random.normal(),
            "validation/loss": 0.35 + np.exp(-step / 350) + 0.01 * random.normal(),
            "validation/accuracy": scores["accuracy"] - 0.3 * np.exp(-step / 300),
            "train/tokens_per_second": tokens_per_second,
            "learning_rate": 1e-3,
            "seconds": step / 10,
        }
        for step in range(100, 2001, 100)
    ]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "environment.json").write_text(
        json.dumps({"python": "3.11.9", "torch": "2.13.0", "device": "cpu", "cores": 2})
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    return folder


def write_language_run(folder: Path, *, vocabulary=50, n=4000, seed=0, mixer="softmax", times=None, task="wikitext2"):
    """A finished language model's run: `vocabulary` tokens, `n` of them scored in ten documents of 5 words each hundred."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(size=(n, vocabulary)) * 1.5)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
    calibration = StreamingCalibration()
    calibration.update(logits, labels, torch.arange(n) * 10 // n)
    scores = language_metrics(calibration, Documents([], words=n // 5, bytes=3 * n), bootstrap=100)
    metrics = {"task": task, **{f"test/{key}": value for key, value in scores.items()}} | {
        "validation/nll": 2.5,
        "validation/perplexity": float(np.exp(2.5)),
        "train/examples": 9000,
        "train/seconds": 754.0,
        "train/tokens_per_second": 21_000.0,
        "train/peak_memory_bytes": 310_000_000,
        "parameters": 1_100_000,
    }
    losses = [(step, 2.5 + 4 * np.exp(-step / 300)) for step in range(100, 1001, 100)]
    history = [
        {"step": step, "train/loss": loss - 0.05, "validation/loss": loss, "validation/perplexity": float(np.exp(loss))}
        for step, loss in losses
    ]
    recipe = {"name": task, "task": task, "model": "diffmix", "mixer": mixer, "seed": seed}
    evaluation = {"split": "test", "n": n, "labels": [], "confusion": []}
    evaluation["reliability"] = calibration.confidence_bins().rows()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    if times is not None:
        (folder / "times.json").write_text(json.dumps(times))
    return folder


def head(mean, spread=1.0):
    """A head's times in times.json."""
    return {"mean": mean, "std": 0.0, "min": mean / spread, "max": mean * spread}


def write_seeds(folder: Path, count=3, write=write_run, **options):
    """What `--seeds N` writes: seed-0, seed-1, ... and their mean with t-intervals beside them."""
    runs = [write(folder / f"seed-{seed}", seed=seed, **options) for seed in range(count)]
    each = [json.loads((run / "metrics.json").read_text()) for run in runs]
    summary = {}
    for key in each[0]:
        if not key.endswith(("_low", "_high")) and not isinstance(each[0][key], str):
            summary[key], summary[f"{key}_low"], summary[f"{key}_high"] = mean_interval([one[key] for one in each])
    (folder / "metrics.json").write_text(json.dumps(summary))
    return folder
