"""TF-IDF n-grams with logistic regression: what a user would pick instead, through the same splits and metrics.

n rows, F features (n-grams), C classes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from diffmix.errors import RequestError, RunError
from diffmix.evaluation import classification_metrics
from diffmix.tasks import TaskData
from diffmix.tasks.examples import Examples
from diffmix.training.hardware import environment, peak_memory, reset_peak_memory
from diffmix.training.recipe import Recipe
from diffmix.training.run_folder import finish_metrics, read_json, write_json, write_run_files


def _vectorizer(ngrams: int, min_count: int, vocabulary: dict[str, int] | None = None) -> TfidfVectorizer:
    return TfidfVectorizer(
        ngram_range=(1, ngrams),
        min_df=min_count,
        sublinear_tf=True,
        lowercase=True,
        token_pattern=r"(?u)\b\w+\b",
        vocabulary=vocabulary,
        dtype=np.float32,  # pyright: ignore[reportArgumentType]
    )


@dataclass(frozen=True)
class TfidfClassifier:
    """softmax(W·tfidf(text) + b): a fitted vectorizer, `weight` [C, F], `bias` [C]."""

    vectorizer: TfidfVectorizer
    weight: np.ndarray
    bias: np.ndarray
    label_names: tuple[str, ...]
    ngrams: int

    def probabilities(self, examples: Examples, first_row: int = 1) -> np.ndarray:
        """float64 [n, C] in the order of `examples`. Raises RequestError for anything but single texts."""
        features = self.vectorizer.transform(_texts(examples))
        logits = np.asarray(features @ self.weight.T, dtype=np.float64) + self.bias
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def save(self, folder: Path) -> None:
        """Write config.json, vocabulary.json and model.safetensors: no pickle."""
        terms = self.vectorizer.get_feature_names_out().tolist()
        write_json(folder / "vocabulary.json", {"terms": terms})
        arrays = {"weight": self.weight, "bias": self.bias, "idf": self.vectorizer.idf_}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "model.safetensors")
        config = {"model_type": "tfidf", "ngrams": self.ngrams, "labels": list(self.label_names)}
        write_json(folder / "config.json", config)

    @classmethod
    def load(cls, folder: Path) -> TfidfClassifier:
        """Read what `save` wrote. Raises RunError where a file is damaged."""
        try:
            config = read_json(folder / "config.json")
            terms = read_json(folder / "vocabulary.json")["terms"]
            arrays = load_file(folder / "model.safetensors")
            vectorizer = _vectorizer(config["ngrams"], 1, {term: index for index, term in enumerate(terms)})
            vectorizer.idf_ = arrays["idf"]
            return cls(vectorizer, arrays["weight"], arrays["bias"], tuple(config["labels"]), config["ngrams"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"{folder} holds a damaged model ({reason}): train the model again") from None


def train_tfidf(
    recipe: Recipe, task: TaskData, folder: Path, baseline: int, notice: Callable[[str], None]
) -> dict[str, Any]:
    """Fit on train, choose the regularisation by validation, measure on test, fill the run's folder."""
    if not isinstance(task.train, Examples):
        raise RequestError("model=tfidf needs train in memory but it is streamed: set stream=false")
    texts, labels = _texts(task.train), task.train.labels
    if len(np.unique(labels)) < 2:
        raise RequestError(
            f"model=tfidf needs two classes or more in train, which has {len(labels)} rows of one: give it more rows"
        )
    reset_peak_memory()
    started = time.perf_counter()
    vectorizer = _vectorizer(recipe.tfidf_ngrams, recipe.tfidf_min_count)
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise RequestError(f"model=tfidf found no n-grams ({error}): lower tfidf_min_count") from None
    best: tuple[float, float, TfidfClassifier] | None = None
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step, strength in enumerate(recipe.tfidf_c, start=1):
            balance = "balanced" if recipe.class_balance == "loss" else None
            fitted = LogisticRegression(C=strength, max_iter=1000, class_weight=balance, random_state=recipe.seed)
            fitted.fit(features, labels)
            candidate = _classifier(vectorizer, fitted, task.label_names, recipe.tfidf_ngrams)
            metrics = classification_metrics(
                candidate.probabilities(task.validation), task.validation.labels, bootstrap=0
            )
            row = {
                "step": step,
                "epoch": step,
                "tfidf_c": strength,
                "validation/accuracy": metrics["accuracy"],
                "validation/loss": metrics["nll"],
                "seconds": time.perf_counter() - started,
            }
            file.write(json.dumps(row) + "\n")
            notice(f"tfidf_c {strength:g}: validation accuracy {metrics['accuracy']:.4f}, nll {metrics['nll']:.4f}")
            score = -metrics["nll"] if recipe.best_metric == "nll" else metrics[recipe.best_metric]
            if best is None or score > best[0]:
                best = (score, strength, candidate)
    if best is None:
        raise RequestError("recipe key 'tfidf_c' is empty; give one or more numbers, as in tfidf_c=[1, 10, 100]")
    seconds = time.perf_counter() - started
    _, strength, classifier = best
    peak = peak_memory("cpu", baseline)
    validation = classification_metrics(classifier.probabilities(task.validation), task.validation.labels, bootstrap=0)
    metrics: dict[str, Any] = {f"validation/{key}": validation[key] for key in ("accuracy", "nll", "macro_f1", "ece")}
    metrics |= {
        "parameters": int(classifier.weight.size + classifier.bias.size),
        "train/examples": len(task.train),
        "train/seconds": seconds,
        "train/peak_memory_bytes": peak,
        "tfidf_c": strength,
    }
    classifier.save(folder)
    write_json(folder / "environment.json", environment("cpu"))
    test = task.load_test()
    if test is not None:
        started = time.perf_counter()
        probabilities = classifier.probabilities(test)
        metrics["test/seconds"] = time.perf_counter() - started
        metrics = finish_metrics(folder, probabilities, test.labels, task) | metrics
    write_run_files(folder, recipe, task, metrics)
    return read_json(folder / "metrics.json")


def _classifier(
    vectorizer: TfidfVectorizer, fitted: LogisticRegression, label_names: tuple[str, ...], ngrams: int
) -> TfidfClassifier:
    """The fitted regression over all classes; a class without train rows is never predicted."""
    weight, bias = fitted.coef_, np.asarray(fitted.intercept_)
    if len(fitted.classes_) == 2:  # one row for the odds of the second class
        weight, bias = np.vstack([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])
    full_weight = np.zeros((len(label_names), weight.shape[1]), dtype=weight.dtype)
    full_bias = np.full(len(label_names), -1e9)
    full_weight[fitted.classes_], full_bias[fitted.classes_] = weight, bias
    return TfidfClassifier(vectorizer, full_weight, full_bias, label_names, ngrams)


def _texts(examples: Examples) -> list[str]:
    if examples.texts is None or examples.pairs is not None:
        raise RequestError("model=tfidf reads single texts: choose a task of single texts, or another model")
    return list(examples.texts)
