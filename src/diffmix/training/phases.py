"""The two phases of a run, each with its data, objective and validation: denoising pre-training and classification."""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import AutoModelForMaskedLM, set_seed

import diffmix.models as models
from diffmix.errors import RequestError
from diffmix.evaluation import classification_metrics
from diffmix.models.token_loss import IGNORED
from diffmix.tasks import TaskData
from diffmix.tasks.encoding import PaddingCollator, StreamedDataset, encode, encode_texts, shortest_input
from diffmix.tasks.examples import Examples
from diffmix.tasks.subword_dropout import SubwordDropout
from diffmix.tasks.tokenizers import build_tokenizer
from diffmix.training.batching import RowSubset, batches_by_tokens
from diffmix.training.building import (
    VALIDATION_SEED,
    build_classifier,
    check_rows,
    drawn_model,
    load_tokenizer,
    model_config,
    start_embeddings,
)
from diffmix.training.distributed import is_first_process, on_first_process
from diffmix.training.embeddings import amount_embeddings, ppmi_embeddings
from diffmix.training.fitting import Fitter, Notice
from diffmix.training.losses import class_weights, classification_loss
from diffmix.training.prediction import BATCH_TOKENS, autocast, predict_probabilities, quiet_transformers
from diffmix.training.pretraining import MaskingCollator, first_of_equal, in_blocks, masked_metrics
from diffmix.training.recipe import Recipe
from diffmix.training.run_folder import finish_metrics, read_json, write_json, write_run_files

HELD_ROWS = 256  # at most, that pre-training holds out to validate; never more than a tenth


@dataclass(frozen=True)
class _Inputs:
    """The rows of pre-training and the ids among which hidden tokens are restored."""

    train: Any  # encoded rows
    held: Any  # to validate
    tokenizer: Any  # None: the task's rows are ids
    vocab_size: int
    pad_token_id: int
    mask_token_id: int
    special_ids: list[int]  # never hidden
    held_bytes: int | None  # of the held texts


def _parted(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows that pre-training reads, and of those that it holds out, rising."""
    if rows < 2:
        raise RequestError(f"pretraining needs two rows or more, one of them to validate, and has {rows}: raise limit")
    held = min(HELD_ROWS, max(1, rows // 10))
    order = np.random.default_rng(VALIDATION_SEED).permutation(rows)
    return np.sort(order[held:]), np.sort(order[:held])


class Run:
    """One run in one folder: shared steps of classification and pre-training."""

    def __init__(self, recipe: Recipe, folder: Path, device: str, dtype: str, baseline: int, notice: Notice):
        self.recipe, self.folder, self.device, self.dtype = recipe, folder, device, dtype
        self.notice = notice if is_first_process() else lambda _: None
        self.fitter = Fitter(recipe, folder, device, dtype, baseline, self.notice)
        self.processes, self.rank = self.fitter.processes, self.fitter.rank
        self._vectors: np.ndarray | None = None
        quiet_transformers()

    def classification(self, task: TaskData, start: Path | None) -> dict[str, Any]:
        """Train a classifier, from the backbone in `start` if given; test it once; fill the folder. Its metrics."""
        recipe = self.recipe
        check_rows(recipe, task)
        if start is not None and not start.is_dir():
            raise RequestError(f"init_from: there is no folder {start}: give a run's folder")
        tokenizer = None if task.vocab_size is not None else self.tokenizer(task.train.tokenizer_texts, start)
        pad = 0 if tokenizer is None else tokenizer.pad_token_id
        shape = model_config(recipe, tokenizer, task.vocab_size or len(tokenizer or ()), {}, start)
        collate = PaddingCollator(pad, recipe.max_length, shortest_input(shape, recipe.max_length))
        if recipe.model == "big_bird" and shape.attention_type == "block_sparse" and collate.shortest == 1:
            self.notice(
                f"max_length={recipe.max_length} is too short for big_bird's sparse attention: it is full attention"
            )
        validation = encode(task.validation, tokenizer, recipe.max_length)
        train_rows = self._train_rows(task, tokenizer)
        labels = len(task.label_names)
        weights = class_weights(task.train.label_counts(labels)) if recipe.class_balance == "loss" else None

        def build() -> Any:
            model = build_classifier(recipe, task, tokenizer, start)
            if start is None:
                self._start_embeddings(model, task, lambda: self._plain_rows(task, tokenizer))
            return model

        def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
            return classification_loss(outputs.logits, batch["labels"], weights, recipe.label_smoothing).mean()

        def validate(model: Any) -> dict[str, float]:
            probabilities = self._probabilities(model, validation, collate)
            metrics = classification_metrics(probabilities, task.validation.labels, bootstrap=0)
            return {key: metrics[key] for key in ("accuracy", "nll", "macro_f1", "ece")}

        def objective(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            targets = inputs.pop("labels")
            logits = model(**inputs).logits
            summed = classification_loss(logits, targets, weights, recipe.label_smoothing).sum()
            return summed, (logits.detach().argmax(dim=-1) == targets).sum()

        fitted = self.fitter.fit(build, train_rows, collate, loss, objective, validate, recipe.best_metric)
        model = fitted.model
        metrics = {f"validation/{key}": value for key, value in validate(model).items()}
        metrics |= fitted.costs(recipe, len(train_rows))
        if start is not None and (start / "metrics.json").is_file():
            before = read_json(start / "metrics.json")
            metrics |= {f"pretraining/{key}": value for key, value in before.items() if key.startswith("train/")}
        if is_first_process():
            model.save_pretrained(self.folder)
        test = task.load_test()
        if test is None:
            self.notice(f"{task.name} has no labelled test rows: no test metrics")
        else:
            rows = encode(test, tokenizer, recipe.max_length)
            started = time.perf_counter()
            probabilities = self._probabilities(model, rows, collate)
            metrics["test/seconds"] = time.perf_counter() - started
        if is_first_process():
            if test is not None:
                metrics = finish_metrics(self.folder, probabilities, test.labels, task) | metrics
            write_run_files(self.folder, recipe, task, metrics)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        PartialState().wait_for_everyone()
        return read_json(self.folder / "metrics.json")

    def pretraining(self, task: TaskData) -> None:
        """Train a backbone to restore hidden tokens of the task's inputs, with or without labels; fill the folder.

        Its metrics are NLL and accuracy of the hidden tokens of held rows; of texts also `bits_per_byte`, that NLL over bytes.
        """
        recipe = self.recipe
        given = self._inputs(task)
        collator = functools.partial(
            MaskingCollator,
            pad_token_id=given.pad_token_id,
            mask_token_id=given.mask_token_id,
            vocab_size=given.vocab_size,
            special_ids=given.special_ids,
            probability=recipe.mask_probability,
            longest=recipe.max_length,
            shortest=shortest_input(model_config(recipe, given.tokenizer, given.vocab_size, {}), recipe.max_length),
        )
        train_rows, validation = given.train, given.held
        # The scores of all tokens over the vocabulary must fit: about 256 MB of them.
        batches = batches_by_tokens(validation.lengths, max(1, min(BATCH_TOKENS, 2**26 // given.vocab_size)))

        def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return model(**batch).loss

        def objective(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, None]:
            asked: torch.Tensor = (inputs["labels"] != IGNORED).sum()
            summed = model(**inputs).loss * asked
            return torch.nan_to_num(summed) if asked == 0 else summed, None

        def validate(model: Any) -> dict[str, float]:
            model.eval()
            context = functools.partial(autocast, self.device, self.dtype)
            share = batches[self.rank :: self.processes]
            parts = gather_object([masked_metrics(model, validation, collator(seed=0), share, context)])
            total, asked, right = (sum(column) for column in zip(*parts, strict=True))
            return {"nll": total / max(asked, 1), "accuracy": right / max(asked, 1)}

        def build() -> Any:
            set_seed(recipe.seed)
            config = model_config(recipe, given.tokenizer, given.vocab_size, {})
            kind: Any = models.DiffmixForMaskedLM if recipe.model == "diffmix" else AutoModelForMaskedLM.from_config
            model = drawn_model(recipe, lambda: kind(config))
            self._start_embeddings(model, task, lambda: train_rows)
            return model

        fitted = self.fitter.fit(build, train_rows, collator(seed=recipe.seed), loss, objective, validate, "nll")
        model = fitted.model
        metrics = {f"validation/{key}": value for key, value in validate(model).items()}
        if given.held_bytes is not None:  # hidden tokens stand for all of the held texts
            tokens = int((~np.isin(validation.tokens, given.special_ids)).sum())
            metrics["validation/bits_per_byte"] = metrics["validation/nll"] / math.log(2) * tokens / given.held_bytes
        metrics |= fitted.costs(recipe, len(train_rows))
        if is_first_process():
            model.save_pretrained(self.folder)
            write_json(self.folder / "metrics.json", {**metrics, "task": task.name, "recipe": recipe.name})
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        PartialState().wait_for_everyone()

    def _inputs(self, task: TaskData) -> _Inputs:
        """What pre-training reads: different texts of the task, or different rows of a task whose rows are ids."""
        recipe = self.recipe
        texts = task.all_texts()
        if texts is None:
            assert isinstance(task.train, Examples)  # `check_pretraining` has seen to it
            encoded = encode(task.train, None, recipe.max_length)
            encoded = RowSubset(encoded, first_of_equal(encoded))
            train, held = _parted(len(encoded))
            assert task.vocab_size is not None
            # The id 0 is no token's. Hidden ones take it: its embedding starts at 0, as if the token were not there.
            return _Inputs(
                train=RowSubset(encoded, train),
                held=RowSubset(encoded, held),
                tokenizer=None,
                vocab_size=task.vocab_size,
                pad_token_id=0,
                mask_token_id=0,
                special_ids=[0],
                held_bytes=None,
            )
        train, held = _parted(len(texts))
        tokenizer = self.tokenizer(task.train.tokenizer_texts, None)
        if tokenizer.mask_token_id is None:
            raise RequestError(
                f"pretraining needs a mask token and tokenizer {recipe.tokenizer} has none: choose another"
            )
        encoded = encode_texts(texts, tokenizer, 10**9)
        return _Inputs(
            train=in_blocks(RowSubset(encoded, train).flat(), recipe.max_length),
            held=in_blocks(RowSubset(encoded, held).flat(), recipe.max_length),
            tokenizer=tokenizer,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            mask_token_id=tokenizer.mask_token_id,
            special_ids=[index for index in tokenizer.all_special_ids if index != tokenizer.unk_token_id],
            held_bytes=max(1, sum(len(texts[int(row)].encode()) for row in held)),
        )

    def tokenizer(self, texts: Callable[[], Iterable[str]], start: Path | None) -> Any:
        """The run's tokenizer, as its folder holds it, so that a resumed run reads the very same one.

        A new run trains it on `texts()` as its recipe says, or copies that of the folder `start`.
        """

        def build() -> None:
            if (self.folder / "tokenizer_config.json").is_file():
                return
            if start is not None:
                tokenizer = load_tokenizer(start)
                tokenizer.model_max_length = self.recipe.max_length
            else:
                own = self.recipe
                tokenizer = build_tokenizer(
                    own.tokenizer, texts(), max_length=own.max_length, class_token=own.class_token
                )
            part = self.folder / "tokenizer.part"
            shutil.rmtree(part, ignore_errors=True)
            tokenizer.save_pretrained(part)
            # tokenizer_config.json comes last: it says that the others are there.
            for file in sorted(part.iterdir(), key=lambda path: path.name == "tokenizer_config.json"):
                file.replace(self.folder / file.name)
            part.rmdir()

        on_first_process(build)
        return load_tokenizer(self.folder)

    def _train_rows(self, task: TaskData, tokenizer: Any) -> Any:
        recipe = self.recipe
        if recipe.subword_dropout > 0:
            assert isinstance(task.train, Examples)  # `check_rows` has seen to it
            assert task.train.texts is not None
            try:
                return SubwordDropout(
                    task.train.texts,
                    task.train.labels,
                    tokenizer,
                    max_length=recipe.max_length,
                    probability=recipe.subword_dropout,
                    seed=recipe.seed,
                )
            except ValueError as error:
                raise RequestError(f"subword_dropout: {error}") from None
        if isinstance(task.train, Examples):
            return encode(task.train, tokenizer, recipe.max_length)
        return StreamedDataset(
            task.train,
            tokenizer,
            recipe.max_length,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            pairs=task.validation.pairs is not None,
        )

    def _plain_rows(self, task: TaskData, tokenizer: Any) -> Any:
        """What the task has of texts, with or without labels, encoded without dropout."""
        return encode_texts(task.all_texts() or task.train.tokenizer_texts(), tokenizer, 10**9)

    def _start_embeddings(self, model: Any, task: TaskData, texts: Callable[[], Any]) -> None:
        how = self.recipe.embedding_init
        if how == "random":
            return
        fits = task.vocab_size is None if how == "ppmi" else task.vocab_size is not None and task.pixels
        if not fits:
            needs = "texts" if how == "ppmi" else "pixels"
            raise RequestError(
                f"embedding_init={how} needs {needs}, which {task.name} has not: set embedding_init=random"
            )
        if self.fitter.last_checkpoint() is not None:
            return
        if self._vectors is None:
            size = model.get_input_embeddings().weight.shape
            if how == "ppmi":
                self.notice("embeddings: from which tokens stand together in the task's texts")
                self._vectors = ppmi_embeddings(texts(), *size)
            else:
                self._vectors = amount_embeddings(*size, seed=self.recipe.seed)
        start_embeddings(model, self._vectors)

    def _probabilities(self, model: Any, rows: Any, collate: Any) -> np.ndarray:
        """`predict_probabilities`, each process taking every k-th row."""
        if self.processes == 1:
            return predict_probabilities(model, rows, collate, dtype=self.dtype)
        own = np.arange(self.rank, len(rows), self.processes)
        part = predict_probabilities(model, RowSubset(rows, own), collate, dtype=self.dtype)
        parts = gather_object([(own, part)])
        result = np.empty((len(rows), max(part.shape[1] for _, part in parts)))
        for indices, part in parts:
            if len(indices):
                result[indices] = part
        return result
