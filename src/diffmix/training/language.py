"""Training a causal language model in a run's folder, and taking it out again.

L: targets of a window.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import AutoModelForCausalLM, set_seed

import diffmix.models as models
from diffmix.errors import RequestError
from diffmix.evaluation.language import fit_text_temperature, language_metrics, score_text, total_nll
from diffmix.evaluation.streaming import StreamingCalibration
from diffmix.models.attention import attention_option
from diffmix.models.diffusion_time import recorded_times
from diffmix.models.positions import longest_input
from diffmix.models.token_loss import IGNORED
from diffmix.tasks.language import Documents, LanguageData, TokenWindows
from diffmix.tasks.pixels import PixelImages, PixelWindows
from diffmix.training.batching import RowSubset
from diffmix.training.building import drawn_model, load_tokenizer, model_config
from diffmix.training.distributed import is_first_process
from diffmix.training.gguf import load_gguf
from diffmix.training.hardware import resolve_device, resolve_dtype
from diffmix.training.phases import Run
from diffmix.training.prediction import load_whole, quiet_transformers, read_config, recorded_dtype, trained_attention
from diffmix.training.recipe import Recipe
from diffmix.training.run_folder import read_json, write_evaluation, write_json, write_run_files

EVALUATION_SCORES = 2**26  # logits of a batch in evaluation: 256 MB of them in fp32
EVALUATION_TOKENS = 2**15  # of such a batch, where the vocabulary is small
FITTED_TOKENS = 2**16  # of validation, that `temperature_scaling` fits on: one number needs no more

# Keys of a recipe that speak of labels or of single rows, with the value that leaves them out.
_FOR_CLASSIFIERS = {
    "class_balance": "none",
    "class_token": False,
    "label_smoothing": 0.0,
    "subword_dropout": 0.0,
    "extra_train": (),
    "text_column": None,
    "pair_column": None,
    "label_column": None,
    "stream": None,
    "length_warmup": 0.0,
    "embedding_init": "random",
    "pretraining": None,
    "self_training": None,
}


# And those that speak of tokens.
_FOR_LANGUAGE: dict[str, Any] = {"max_tokens": None, "temperature_scaling": False}


def check_classifier_recipe(recipe: Recipe) -> None:
    """Raise RequestError where a recipe of a classification task sets what only a language model has a use for."""
    for key, nothing in _FOR_LANGUAGE.items():
        if getattr(recipe, key) != nothing:
            raise RequestError(
                f"recipe key {key!r} is {getattr(recipe, key)!r}, which task {recipe.task} has no use for; leave it out"
            )


def check_language_recipe(recipe: Recipe) -> None:
    """Raise RequestError where a recipe of a language task sets what a language model has no use for."""
    for key, nothing in _FOR_CLASSIFIERS.items():
        if getattr(recipe, key) != nothing:
            raise RequestError(
                f"recipe key {key!r} is {getattr(recipe, key)!r}, which task {recipe.task} has no use for; leave it out"
            )
    if recipe.best_metric != "nll":
        raise RequestError(
            f"best_metric is {recipe.best_metric!r}; task {recipe.task} is judged by nll: set best_metric=nll"
        )
    if recipe.model == "tfidf":
        raise RequestError(
            f"model=tfidf classifies; task {recipe.task} takes diffmix or a causal Hugging Face model type"
        )
    if recipe.model == "diffmix":
        try:
            models.DiffmixConfig(**{**recipe.config, "is_causal": True})
        except ValueError as error:
            raise RequestError(f"task {recipe.task}: {' '.join(str(error).split())}") from None
    if recipe.max_length < 2:
        raise RequestError(f"max_length is {recipe.max_length}; a window needs 2 tokens or more")


class WindowCollator:
    """Windows to a batch: input_ids and attention_mask [B, L+1], and labels, IGNORED at padding and at the first token."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad `rows`, which only the last window of a text needs."""
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.full(mask.shape, self.pad_token_id)
        ids[mask] = torch.from_numpy(np.concatenate([row["input_ids"] for row in rows]).astype(np.int64))
        labels = ids.masked_fill(~mask, IGNORED)
        labels[:, 0] = IGNORED  # no state stands before it
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def windows_at_once(max_length: int, vocab_size: int) -> int:
    """How many windows are evaluated in a batch."""
    return max(1, min(EVALUATION_SCORES // (max_length * vocab_size), EVALUATION_TOKENS // max_length))


def train_language_model(run: Run, task: LanguageData) -> dict[str, Any]:
    """Train a causal language model; test it once; fill the folder. Its metrics."""
    recipe = run.recipe
    start = None if recipe.init_from is None else Path(recipe.init_from)
    text = task.train
    if isinstance(text, PixelImages):
        tokenizer, vocab_size, mark = None, text.vocab_size, text.start
    else:
        tokenizer = run.tokenizer(lambda: text.texts, start)
        vocab_size, mark = len(tokenizer), tokenizer.eos_token_id
    # A window's first token is no target, and training reads its last one, too.
    train: Any = text.windows(tokenizer, recipe.max_length - 1)
    most = len(train) if recipe.limit is None else recipe.limit
    if recipe.max_tokens is not None:
        most = min(most, max(1, recipe.max_tokens // recipe.max_length))
    if most < len(train):
        train = RowSubset(train, np.arange(most))
    validation = task.validation.windows(tokenizer, recipe.max_length)
    batch_size = windows_at_once(recipe.max_length, vocab_size)

    def build() -> Any:
        set_seed(recipe.seed)
        model = started(start) if start is not None else drawn()
        if recipe.model != "diffmix":
            _check_causal(model, recipe)
        return model

    def started(start: Path) -> Any:
        model = load_language_model(start, device="cpu", attention=recipe.attn_implementation).model
        kind, longest = model.config.model_type, longest_input(model.config)
        if kind != recipe.model:
            raise RequestError(f"init_from: {start} is of type {kind}: set model={kind}")
        if longest is not None and longest < recipe.max_length:
            raise RequestError(f"init_from: {start} takes {longest} tokens: set max_length={longest}")
        for key, wanted in recipe.config.items():
            own = getattr(model.config, key, None)
            if wanted is not None and own != wanted:  # nothing is what the configuration makes of it
                raise RequestError(
                    f"init_from: {start} has {key}={own!r} and the recipe {wanted!r}; a language model goes on as it began: set "
                    f"{key}={own!r}"
                )
        return model

    def drawn() -> Any:
        config = model_config(recipe, tokenizer, vocab_size, {})
        config.eos_token_id = config.bos_token_id = mark
        if isinstance(text, PixelImages):
            config.pixel_levels = text.levels  # what tells it from a model of text
        kind: Any = models.DiffmixForCausalLM if recipe.model == "diffmix" else AutoModelForCausalLM.from_config
        return drawn_model(recipe, lambda: kind(config))

    def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).loss

    def objective(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, None]:
        return model(**inputs).loss * (inputs["labels"][:, 1:] != IGNORED).sum(), None

    def validate(model: Any) -> dict[str, float]:
        shown = len(validation) if recipe.limit is None else min(recipe.limit, len(validation))
        own = range(run.rank, shown, run.processes)
        parts = gather_object([total_nll(model, validation, own, batch_size=batch_size, dtype=run.dtype)])
        total, count = (sum(column) for column in zip(*parts, strict=True))
        return {"nll": total / count, "perplexity": math.exp(min(total / count, 700.0))}

    collate = WindowCollator(0 if tokenizer is None else tokenizer.pad_token_id)
    fitted = run.fitter.fit(build, train, collate, loss, objective, validate, "nll")
    model = fitted.model
    metrics = {f"validation/{key}": value for key, value in validate(model).items()}
    metrics |= fitted.costs(recipe, len(train))
    if is_first_process():
        model.save_pretrained(run.folder)
        test = task.load_test()
        if test is None:
            run.notice(f"{task.name} has no test split: no test metrics")
        else:
            metrics = _test(run, model, tokenizer, validation, test) | metrics
        write_run_files(run.folder, recipe, task, metrics)
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    PartialState().wait_for_everyone()
    return read_json(run.folder / "metrics.json")


def _check_causal(model: Any, recipe: Recipe) -> None:
    """Raise RequestError where earlier scores have a gradient with respect to a window's last token."""
    copied = copy.deepcopy(model).eval()  # BigBird changes itself when it reads a short text
    ids = torch.zeros(1, recipe.max_length, dtype=torch.int64)
    states = copied.get_input_embeddings()(ids).detach().requires_grad_()
    copied(inputs_embeds=states).logits[:, :-1].square().sum().backward()
    assert states.grad is not None
    if states.grad[:, -1].any():
        raise RequestError(
            f"model={recipe.model} sees the tokens that it is to predict: set is_decoder=true where this family has it, or "
            "another model, such as gpt2 or diffmix"
        )


def _test(
    run: Run, model: Any, tokenizer: Any, validation: TokenWindows | PixelWindows, test: Documents | PixelImages
) -> dict[str, float]:
    """The test metrics; times.json gets the diffusion times, where the model finds its own.

    With `temperature_scaling` the `temperature`, and as `scaled_…` the scores that it changes.
    """
    started = time.perf_counter()
    language = LanguageModel(model, tokenizer, run.recipe.max_length, run.dtype)
    scaled: dict[str, float] = {}
    if run.recipe.temperature_scaling:
        some = range(min(len(validation), max(1, FITTED_TOKENS // validation.length)))
        temperature = fit_text_temperature(model, validation, some, batch_size=language.batch_size, dtype=run.dtype)
        after = language.score(test, temperature=temperature).metrics()
        scaled = {"temperature": temperature}
        scaled |= {f"scaled_{key}": after[key] for key in ("nll", "brier", "ece", "ece_equal_mass", "overconfidence")}
    with recorded_times(model) as times:
        calibration = language.score(test)
    metrics = language_metrics(calibration, test) | scaled
    write_evaluation(run.folder, int(metrics["n"]), calibration.confidence_bins().rows())
    if times:
        write_json(run.folder / "times.json", times)
    return {f"test/{key}": value for key, value in metrics.items()} | {"test/seconds": time.perf_counter() - started}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer."""

    model: Any
    tokenizer: Any  # None for models of pixels
    max_length: int  # tokens it takes at once
    dtype: str

    @property
    def batch_size(self) -> int:
        """Windows at once whose logits fit in memory."""
        size = self.model.config.vocab_size if self.tokenizer is None else len(self.tokenizer)
        return windows_at_once(self.max_length, size)

    def windows(self, documents: Documents | PixelImages) -> TokenWindows | PixelWindows:
        """A split in windows that the model takes. Raises RequestError for one of another kind."""
        levels = getattr(self.model.config, "pixel_levels", None)
        if isinstance(documents, PixelImages) and levels not in (None, documents.levels):
            raise RequestError(
                f"this model reads pixels of {levels} grey values but was given {documents.levels}: give the task that it "
                "was trained on"
            )
        return documents.windows(self.tokenizer, self.max_length)

    def score(
        self, documents: Documents | PixelImages, *, bins: int = 15, temperature: float = 1.0
    ) -> StreamingCalibration:
        """Every token of `documents` scored once, in windows of `max_length`; see `score_text`."""
        windows = self.windows(documents)
        with tqdm(total=len(windows), unit="window", disable=None) as bar:
            return score_text(
                self.model,
                windows,
                batch_size=self.batch_size,
                dtype=self.dtype,
                bins=bins,
                temperature=temperature,
                on_batch=bar.update,
            )


def load_language_model(
    folder: Path | str, *, device: str = "auto", dtype: str = "auto", attention: str | None = None
) -> LanguageModel:
    """The causal language model of a run's folder, of any Hugging Face folder, or of a GGUF file, whose weights are dequantised.

    `dtype="auto"` is what a run was trained and measured in, on the same kind of device. `attention` is the
    `attn_implementation` of a Hugging Face model: "heat_kernel" takes the time from its configuration.

    Raises:
        RequestError: no causal language model there, or no such attention.
        RunError: its files are damaged.
    """
    folder = Path(folder)
    quiet_transformers()
    chosen = attention_option(attention, "attention") or trained_attention(folder)
    if folder.suffix == ".gguf":
        model, tokenizer = load_gguf(folder, **chosen)
        device = resolve_device(device)
        longest = int(model.config.max_position_embeddings)
        return LanguageModel(model.to(device), tokenizer, longest, resolve_dtype(dtype, device))
    _, architectures = read_config(folder)
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise RequestError(f"{folder} holds a {', '.join(architectures) or 'backbone'}: give a causal language model")
    device = resolve_device(device)
    dtype = recorded_dtype(folder, device) if dtype == "auto" else dtype
    model = load_whole(AutoModelForCausalLM, folder, chosen).to(device)
    config = model.config
    pixels = getattr(config, "pixel_levels", None) is not None
    tokenizer = None if pixels else load_tokenizer(folder)
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise RequestError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}; give both of one model"
        )
    longest = longest_input(config) or getattr(tokenizer, "model_max_length", 10**6)
    return LanguageModel(model, tokenizer, int(min(longest, 10**6)), resolve_dtype(dtype, device))
