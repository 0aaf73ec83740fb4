"""Training a recipe, from its data to the run's folder.

Everything that decides the result follows from the recipe: the same seed gives the same rows in the same order, whatever
the number of processes, and a run that was killed and resumed ends as the uninterrupted one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, find_executable_batch_size, gather_object
from safetensors.torch import load_file, load_model
from torch.utils.data import DataLoader, Dataset
from transformers import (
    CONFIG_MAPPING,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

import diffmix.models as models
from diffmix.errors import RequestError, RunError
from diffmix.evaluation import classification_metrics, confusion_matrix, mean_interval, reliability
from diffmix.tasks import TaskData, load_task
from diffmix.tasks.encoding import PaddingCollator, StreamedDataset, encode, encode_texts
from diffmix.tasks.examples import Examples, StreamedExamples
from diffmix.tasks.tokenizers import build_tokenizer
from diffmix.training.batch_size import fitting_micro_batch, halvings
from diffmix.training.batching import LengthBucketedBatches, StreamedBatches, batches_by_tokens
from diffmix.training.callbacks import AVERAGED_WEIGHTS, MovingAverage, Progress, RunRecorder
from diffmix.training.checkpoints import checkpoint_step, damage, find_checkpoints, write_atomically
from diffmix.training.hardware import (
    environment,
    peak_memory,
    reset_peak_memory,
    resident_memory,
    resolve_device,
    resolve_dtype,
)
from diffmix.training.prediction import BATCH_TOKENS, autocast, predict_probabilities
from diffmix.training.pretraining import IGNORED, MaskingCollator, in_blocks, masked_metrics
from diffmix.training.recipe import Recipe, recipe_from_mapping
from diffmix.training.run_folder import claim_folder, model_card, recorded_data, release_folder, write_json

VALIDATION_SEED = 0  # of the cut of validation: runs of different seeds share it
UNLABELLED_VALIDATION = 1000  # texts at most that pre-training holds out, never more than a tenth
Notice = Callable[[str], None]


def train(
    recipe: Recipe,
    *,
    data: Path | str | None = None,
    output: Path | str,
    resume: bool = False,
    notice: Notice = print,
) -> dict[str, Any]:
    """Train `recipe` and fill the run's folder `output`; the metrics of its metrics.json.

    Started by torchrun, the processes share every global batch. Test data are read once, at the end.

    Raises:
        RequestError: the folder is in use, the data or a value is wrong. Nothing was changed.
        RunError: the loss is not finite, no space is left, no whole checkpoint is left. The run can be resumed.
    """
    return _train_one(recipe, data, Path(output), resume, notice, resident_memory())


def train_seeds(
    recipe: Recipe,
    seeds: int,
    *,
    data: Path | str | None = None,
    output: Path | str,
    resume: bool = False,
    notice: Notice = print,
) -> dict[str, Any]:
    """Train `recipe` with seeds 0 … seeds-1 into seed-0 …; each metric's mean with its 95 % t-interval.

    Pre-training is done once, in `output`/pretraining, and shared. Raises like `train`.
    """
    if seeds < 1:
        raise RequestError(f"seeds is {seeds}; give 1 or more")
    output = Path(output)
    with _one_process():
        baseline = resident_memory()
        _on_first(lambda: claim_folder(output, recipe, data, resume=resume))
        data = recorded_data(output) if data is None else data
        if recipe.pretraining is not None:
            _pretrain(recipe, data, output / "pretraining", notice, baseline)
        runs = []
        for seed in range(seeds):
            folder = output / f"seed-{seed}"
            notice(f"seed {seed} of {seeds}: {folder}")
            started = resume and folder.is_dir()
            one = recipe.replace(seed=seed)
            pretrained = output / "pretraining" if recipe.pretraining is not None else None
            runs.append(_train_one(one, data, folder, started, notice, baseline, pretrained=pretrained))
        summary = summarise(runs)
        _on_first(lambda: write_json(output / "metrics.json", summary))
    return summary


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of every number that all `runs` have; with several runs `KEY_low` and `KEY_high`, its 95 % t-interval.

    The intervals of the single runs, which are over test rows and not over seeds, are left out.
    """
    summary: dict[str, Any] = {"seeds": len(runs)}
    for key, first in runs[0].items():
        values = [run.get(key) for run in runs]
        if key.endswith(("_low", "_high")):
            continue
        if isinstance(first, int | float) and not isinstance(first, bool) and all(v is not None for v in values):
            numbers = [float(value) for value in values if value is not None]
            summary[key] = statistics.fmean(numbers)
            if len(runs) > 1:
                _, summary[f"{key}_low"], summary[f"{key}_high"] = mean_interval(numbers)
        elif all(value == first for value in values):
            summary[key] = first
    return summary


def _train_one(
    recipe: Recipe,
    data: Path | str | None,
    folder: Path,
    resume: bool,
    notice: Notice,
    baseline: int,
    *,
    pretrained: Path | None = None,
) -> dict[str, Any]:
    if recipe.model == "tfidf":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RequestError("model=tfidf trains in one process: start it without torchrun")
        state = claim_folder(folder, recipe, data, resume=resume)
        if state == "finished":
            return _finished(folder, notice)
        from diffmix.training.baselines import train_tfidf

        with _explained(folder), _undone(folder, state):
            task = _load_task(recipe, recorded_data(folder), notice)
            return train_tfidf(recipe, task, folder, baseline, notice)
    device = resolve_device(recipe.device)
    dtype = resolve_dtype(recipe.dtype, device)
    with _one_process(device):
        state = _on_first(lambda: claim_folder(folder, recipe, data, resume=resume))
        if state == "finished":
            return _finished(folder, notice)
        with _explained(folder), _undone(folder, state):
            run = _Run(recipe, folder, device, dtype, baseline, notice)
            start = pretrained
            if recipe.pretraining is not None and pretrained is None:
                start = _pretrain(recipe, recorded_data(folder), folder / "pretraining", notice, baseline)
            elif recipe.init_from is not None:
                start = Path(recipe.init_from)
            return run.classification(_load_task(recipe, recorded_data(folder), notice), start)


def _finished(folder: Path, notice: Notice) -> dict[str, Any]:
    notice(f"{folder} is finished: nothing to do")
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def _pretrain(recipe: Recipe, data: Path | str | None, folder: Path, notice: Notice, baseline: int) -> Path:
    """The folder of the denoising phase of `recipe`, trained or continued as needed."""
    phase = recipe.pretraining_recipe()
    assert phase is not None
    device = resolve_device(phase.device)
    exists = (folder / "recipe.yaml").is_file()
    state = _on_first(lambda: claim_folder(folder, phase, data, resume=exists))
    if state != "finished":
        notice(f"pre-training: {folder}")
        with _explained(folder), _undone(folder, state):
            run = _Run(phase, folder, device, resolve_dtype(phase.dtype, device), baseline, notice)
            run.pretraining(_load_task(phase, data, notice))
    return folder


def _load_task(recipe: Recipe, data: Path | str | None, notice: Notice) -> TaskData:
    return load_task(
        recipe.task,
        data=data,
        validation_fraction=recipe.validation_fraction,
        seed=VALIDATION_SEED,
        text_column=recipe.text_column,
        pair_column=recipe.pair_column,
        label_column=recipe.label_column,
        extra_train=recipe.extra_train,
        limit=recipe.limit,
        stream=recipe.stream,
        on_notice=notice if _is_first() else lambda _: None,
    )


class _Run:
    """One run in one folder: shared steps of classification and pre-training."""

    def __init__(self, recipe: Recipe, folder: Path, device: str, dtype: str, baseline: int, notice: Notice):
        self.recipe, self.folder, self.device, self.dtype = recipe, folder, device, dtype
        self.baseline = baseline
        self.notice = notice if _is_first() else lambda _: None
        self.processes, self.rank = PartialState().num_processes, PartialState().process_index
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def classification(self, task: TaskData, start: Path | None) -> dict[str, Any]:
        recipe = self.recipe
        tokenizer = self._tokenizer(task, start)
        pad = 0 if tokenizer is None else tokenizer.pad_token_id
        collate = PaddingCollator(pad)
        validation = encode(task.validation, tokenizer, recipe.max_length)
        train_rows = self._train_rows(task, tokenizer)
        labels = len(task.label_names)
        weights = _class_weights(task.train.label_counts(labels)) if recipe.class_balance == "loss" else None

        def build() -> Any:
            return _build_classifier(recipe, task, tokenizer, start)

        def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
            return _classification_loss(outputs.logits, batch["labels"], weights, recipe.label_smoothing).mean()

        def validate(model: Any) -> dict[str, float]:
            probabilities = self._probabilities(model, validation, collate)
            metrics = classification_metrics(probabilities, task.validation.labels, bootstrap=0)
            return {key: metrics[key] for key in ("accuracy", "nll", "macro_f1", "ece")}

        def objective(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            targets = inputs.pop("labels")
            logits = model(**inputs).logits
            summed = _classification_loss(logits, targets, weights, recipe.label_smoothing).sum()
            return summed, (logits.detach().argmax(dim=-1) == targets).sum()

        model, progress, steps, best_step = self._fit(build, train_rows, collate, loss, objective, validate, recipe.best_metric)
        metrics = {f"validation/{key}": value for key, value in validate(model).items()}
        metrics |= self._costs(model, progress, steps, best_step, len(train_rows))
        if _is_first():
            model.save_pretrained(self.folder)
        test = task.load_test()
        if test is None:
            self.notice(f"{task.name} has no labelled test rows: no test metrics")
        else:
            rows = encode(test, tokenizer, recipe.max_length)
            started = time.perf_counter()
            probabilities = self._probabilities(model, rows, collate)
            metrics["test/seconds"] = time.perf_counter() - started
        if _is_first():
            if test is not None:
                metrics = finish_metrics(self.folder, probabilities, test.labels, task) | metrics
            write_run_files(self.folder, recipe, task, metrics, pairs=task.validation.pairs is not None)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        PartialState().wait_for_everyone()
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))

    def pretraining(self, task: TaskData) -> None:
        recipe = self.recipe
        if isinstance(task.train, StreamedExamples) and task.load_unlabelled is None:
            raise RequestError("pretraining needs texts in memory but train is streamed: set stream=false or pretraining=null")
        texts: Sequence[str] | None
        texts = task.load_unlabelled() if task.load_unlabelled is not None else task.train.texts  # pyright: ignore[reportAttributeAccessIssue]
        if texts is None:
            raise RequestError(f"pretraining needs texts and task {task.name} has none: set pretraining=null")
        tokenizer = self._tokenizer(task, None)
        if tokenizer is None or tokenizer.mask_token_id is None:
            raise RequestError(f"pretraining needs a mask token and tokenizer {recipe.tokenizer} has none: choose another")
        held = min(UNLABELLED_VALIDATION, max(1, len(texts) // 10))
        order = np.random.default_rng(VALIDATION_SEED).permutation(len(texts))
        encoded = encode_texts(texts, tokenizer, 10**9)
        train_rows = in_blocks(_Rows(encoded, np.sort(order[held:])).flat(), recipe.max_length)
        validation = in_blocks(_Rows(encoded, np.sort(order[:held])).flat(), recipe.max_length)
        collator = functools.partial(
            MaskingCollator,
            pad_token_id=tokenizer.pad_token_id,
            mask_token_id=tokenizer.mask_token_id,
            vocab_size=len(tokenizer),
            special_ids=[index for index in tokenizer.all_special_ids if index != tokenizer.unk_token_id],
            probability=recipe.mask_probability,
        )
        # The scores of all tokens over the vocabulary must fit: about 256 MB of them.
        batches = batches_by_tokens(validation.lengths, max(1, min(BATCH_TOKENS, 2**26 // len(tokenizer))))

        def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return model(**batch).loss

        def objective(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            asked = (inputs["labels"] != IGNORED).sum()
            summed = model(**inputs).loss * asked
            return torch.nan_to_num(summed) if asked == 0 else summed, torch.zeros_like(asked)

        def validate(model: Any) -> dict[str, float]:
            model.eval()
            context = functools.partial(autocast, self.device, self.dtype)
            share = batches[self.rank :: self.processes]
            parts = gather_object([masked_metrics(model, validation, collator(seed=0), share, context)])
            total, asked, right = (sum(column) for column in zip(*parts, strict=True))
            return {"nll": total / max(asked, 1), "accuracy": right / max(asked, 1)}

        def build() -> Any:
            set_seed(recipe.seed)
            config = _model_config(recipe, tokenizer, len(tokenizer), {})
            if recipe.model == "diffmix":
                return models.DiffmixForMaskedLM(config)
            return AutoModelForMaskedLM.from_config(config)

        model, progress, steps, best_step = self._fit(build, train_rows, collator(), loss, objective, validate, "nll")
        metrics = {f"validation/{key}": value for key, value in validate(model).items()}
        metrics |= self._costs(model, progress, steps, best_step, len(train_rows))
        if _is_first():
            model.save_pretrained(self.folder)
            write_json(self.folder / "metrics.json", {**metrics, "task": task.name, "recipe": recipe.name})
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        PartialState().wait_for_everyone()

    def _tokenizer(self, task: TaskData, start: Path | None) -> Any:
        """The run's tokenizer, as its folder holds it, so that a resumed run reads the very same one; None for pixels."""
        if task.vocab_size is not None:
            return None

        def build() -> None:
            if (self.folder / "tokenizer_config.json").is_file():
                return
            if start is not None:
                tokenizer = _load_tokenizer(start)
                tokenizer.model_max_length = self.recipe.max_length
            else:
                texts = task.train.tokenizer_texts()
                tokenizer = build_tokenizer(self.recipe.tokenizer, texts, max_length=self.recipe.max_length)
            part = self.folder / "tokenizer.part"
            shutil.rmtree(part, ignore_errors=True)
            tokenizer.save_pretrained(part)
            # tokenizer_config.json comes last: it says that the others are there.
            for file in sorted(part.iterdir(), key=lambda path: path.name == "tokenizer_config.json"):
                file.replace(self.folder / file.name)
            part.rmdir()

        _on_first(build)
        return _load_tokenizer(self.folder)

    def _train_rows(self, task: TaskData, tokenizer: Any) -> Any:
        recipe = self.recipe
        if isinstance(task.train, Examples):
            return encode(task.train, tokenizer, recipe.max_length)
        return StreamedDataset(
            task.train, tokenizer, recipe.max_length, batch_size=recipe.batch_size, seed=recipe.seed
        )

    def _fit(
        self,
        build: Callable[[], Any],
        rows: Any,
        collate: Any,
        loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor],
        objective: Callable[[Any, dict[str, Any]], tuple[torch.Tensor, torch.Tensor]],
        validate: Callable[[Any], dict[str, float]],
        best_metric: str,
    ) -> tuple[Any, Progress, int, int]:
        """Train, from the last whole checkpoint if there is one: the best model, the progress, steps, the best step."""
        recipe = self.recipe
        share = -(-recipe.batch_size // self.processes)
        if len(rows) < self.processes:
            raise RequestError(f"train has {len(rows)} rows for {self.processes} processes: start fewer")
        micro = _on_first(lambda: self._micro_batch(build, rows, collate, loss, share))
        if _is_first():
            record = {**environment(self.device), "dtype": self.dtype, "micro_batch_size": micro}
            write_json(self.folder / "environment.json", record)

        def fit(micro: int) -> tuple[Any, Progress, int, int]:
            return self._fit_with(micro, share, build(), rows, collate, objective, validate, best_metric)

        if self.device == "cuda" and recipe.micro_batch_size is None and self.processes == 1:
            # Halving keeps the global batch; what a checkpoint holds is not trained again.
            halved = iter(halvings(share, micro >> power) for power in range(1, 40))
            return find_executable_batch_size(fit, micro, reduce_batch_size_fn=lambda: max(next(halved), 1))()
        return fit(micro)

    def _micro_batch(self, build: Any, rows: Any, collate: Any, loss: Any, share: int) -> int:
        try:  # a resumed run adds up in the same portions
            return int(json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))["micro_batch_size"])
        except (OSError, ValueError, KeyError):
            pass
        if self.recipe.micro_batch_size is not None:
            return min(self.recipe.micro_batch_size, share)
        if self.device == "cuda" or not hasattr(rows, "lengths"):
            return share

        def step(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            with autocast(self.device, self.dtype):
                return loss(model, batch)

        fitting = fitting_micro_batch(step, build(), rows, collate, rows=share, processes=self.processes)
        micro = halvings(share, fitting)
        if micro < share:
            self.notice(f"memory holds {micro} rows at once: batches of {share} are accumulated")
        return micro

    def _fit_with(
        self,
        micro: int,
        share: int,
        model: Any,
        rows: Any,
        collate: Any,
        objective: Any,
        validate: Any,
        best_metric: str,
    ) -> tuple[Any, Progress, int, int]:
        recipe, folder = self.recipe, self.folder
        accumulation = -(-share // micro)
        dealing = {"accumulation": accumulation, "processes": self.processes, "rank": self.rank}
        batches: Any
        if isinstance(rows, StreamedDataset):
            batches = StreamedBatches(rows, batch_size=recipe.batch_size, **dealing)
        else:
            batches = LengthBucketedBatches(rows.lengths, batch_size=recipe.batch_size, seed=recipe.seed, **dealing)
        steps_per_epoch = batches.batches_per_epoch
        max_steps = recipe.max_steps or math.ceil(recipe.epochs * steps_per_epoch)
        every = max(1, round(steps_per_epoch / recipe.evaluations_per_epoch))
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        arguments = TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            max_steps=max_steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adam_beta2=recipe.adam_beta2,
            warmup_steps=recipe.warmup if recipe.warmup < 1 else int(recipe.warmup),
            lr_scheduler_type="constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
            max_grad_norm=recipe.clip,
            optim="adamw_torch_fused",
            bf16=self.dtype == "bf16",
            fp16=self.dtype == "fp16",
            use_cpu=self.device == "cpu",
            ddp_backend=("gloo" if self.device == "cpu" else "nccl") if self.processes > 1 else None,
            ddp_find_unused_parameters=False,
            seed=recipe.seed,
            eval_strategy="steps",
            save_strategy="steps",
            logging_strategy="steps",
            eval_steps=every,
            save_steps=every,
            logging_steps=every,
            save_total_limit=2,
            metric_for_best_model=f"eval_{best_metric}",
            greater_is_better=best_metric != "nll",
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            disable_tqdm=True,
            log_level="error",
            report_to=list(recipe.report_to) or "none",
        )
        checkpoint = self._last_checkpoint()
        progress = Progress() if checkpoint is None else Progress.load(checkpoint)
        trainer = BucketedTrainer(
            model=model,
            args=arguments,
            data_collator=collate,
            train_dataset=rows,
            eval_dataset=rows,  # `validate` brings its own
            batches=batches,
            objective=objective,
            validate=validate,
            progress=progress,
        )
        average = MovingAverage(trainer.model, recipe.ema_decay) if recipe.ema_decay > 0 else None
        if average is not None and checkpoint is not None:
            average.load(load_file(checkpoint / AVERAGED_WEIGHTS))
        recorder = RunRecorder(
            folder,
            progress,
            best_metric=best_metric,
            patience=recipe.early_stopping_patience,
            steps_per_epoch=steps_per_epoch,
            average=average,
        )
        trainer.record_with(recorder)
        if isinstance(batches, LengthBucketedBatches):
            trainer.add_callback(_EpochCallback(batches, steps_per_epoch))
        if not progress.stopped:
            reset_peak_memory()
            try:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            finally:
                recorder.close()
            progress.peak_memory_bytes = max(progress.peak_memory_bytes, peak_memory(self.device, self.baseline))
        PartialState().wait_for_everyone()
        last = self._last_checkpoint()
        if last is None:
            raise RunError(f"no whole checkpoint is left in {folder / 'checkpoints'}: give another folder with --output")
        state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
        best_step = state["best_global_step"] or checkpoint_step(last)
        _load_weights(trainer.model, folder / "checkpoints" / f"checkpoint-{best_step}")
        return trainer.model, progress, int(state["global_step"]), int(best_step)

    def _last_checkpoint(self) -> Path | None:
        """The latest whole checkpoint; None where none was begun. Raises RunError where all of them are damaged."""
        found = find_checkpoints(self.folder / "checkpoints")
        for checkpoint in found:
            problem = damage(checkpoint)
            if problem is None:
                return checkpoint
            self.notice(f"{checkpoint.name} {problem}: taking the one before it")
        if found and any((checkpoint / "complete.json").is_file() for checkpoint in found):
            raise RunError(f"no whole checkpoint is left in {self.folder / 'checkpoints'}: train into another --output")
        return None

    def _probabilities(self, model: Any, rows: Any, collate: Any) -> np.ndarray:
        """`predict_probabilities`, each process taking every k-th row."""
        if self.processes == 1:
            return predict_probabilities(model, rows, collate, dtype=self.dtype)
        own = np.arange(self.rank, len(rows), self.processes)
        part = predict_probabilities(model, _Rows(rows, own), collate, dtype=self.dtype)
        parts = gather_object([(own, part)])
        result = np.empty((len(rows), max(part.shape[1] for _, part in parts)))
        for indices, part in parts:
            if len(indices):
                result[indices] = part
        return result

    def _costs(self, model: Any, progress: Progress, steps: int, best_step: int, rows: int) -> dict[str, Any]:
        return {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "train/examples": rows,
            "train/steps": steps,
            "train/epochs": steps / max(1, -(-rows // self.recipe.batch_size)),
            "train/best_step": best_step,
            "train/loss": progress.train_loss,
            "train/seconds": progress.seconds,
            "train/seconds_per_epoch": progress.train_seconds / steps * max(1, -(-rows // self.recipe.batch_size)),
            "train/tokens": progress.tokens,
            "train/tokens_per_second": progress.tokens_per_second,
            "train/peak_memory_bytes": progress.peak_memory_bytes,
        }


class BucketedTrainer(Trainer):
    """transformers' Trainer with our batches, a loss averaged over the global batch, and our own validation.

    Args:
        batches: the micro-batches of this process.
        objective: (model, inputs) → (summed loss, right predictions); may take what it needs out of inputs.
        validate: model → metrics, on all processes.
        progress: counts tokens and time.
    """

    def __init__(self, *, batches: Any, objective: Any, validate: Any, progress: Progress, **kwargs: Any):
        # A loss function of our own tells the Trainer to count the labels of the whole batch over all processes.
        super().__init__(compute_loss_func=objective, **kwargs)
        self.remove_callback(PrinterCallback)
        self.batches, self.objective, self.validate, self.progress = batches, objective, validate, progress
        self.recorder: RunRecorder | None = None
        self._tokens = self._correct = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self._examples = 0

    def record_with(self, recorder: RunRecorder) -> None:
        """Report to `recorder`."""
        self.recorder = recorder
        self.add_callback(recorder)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches, as this process's share: nothing shards them again."""
        if isinstance(self.batches, StreamedBatches):
            return DataLoader(self.batches, batch_size=None, collate_fn=self.data_collator)
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)  # pyright: ignore[reportArgumentType]

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices decay; biases, norms and step sizes do not."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The summed loss over the global batch's labels, times the processes that average their gradients."""
        assert num_items_in_batch is not None and not return_outputs
        self._tokens = self._tokens + sum(
            inputs[name].sum() for name in ("attention_mask", "attention_mask_pair") if name in inputs
        )
        self._examples += len(inputs["input_ids"])
        summed, correct = self.objective(model, dict(inputs))
        self._correct = self._correct + correct
        return summed / num_items_in_batch * self.accelerator.num_processes

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass. Raises RunError where the loss is not finite."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            rate = self.lr_scheduler.get_last_lr()[0] if self.lr_scheduler is not None else self.args.learning_rate
            raise RunError(
                f"the loss is {float(loss)} at step {self.state.global_step + 1} (learning rate {rate:.2g}): "
                "lower learning_rate, raise warmup, set clip=1, or set dtype=fp32"
            )
        if self.recorder is not None:
            batch_loss = loss * self.args.gradient_accumulation_steps
            self.recorder.show(batch_loss, self._correct, self._examples, self._tokens)
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Validation metrics of the model, or of the average of its weights where one is kept."""
        counts = torch.stack([self._tokens, self._correct, torch.full_like(self._tokens, self._examples)])
        tokens, correct, examples = self.accelerator.reduce(counts, "sum").tolist()
        self._tokens, self._correct, self._examples = torch.zeros_like(self._tokens), torch.zeros_like(self._correct), 0
        self.progress.tokens += tokens
        average = None if self.recorder is None else self.recorder.average
        with _averaged(average):
            metrics = {f"{metric_key_prefix}_{key}": value for key, value in self.validate(self.model).items()}
        self.log(dict(metrics))
        shown = {**metrics, "train_accuracy": correct / examples} if correct and examples else metrics
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, shown)
        return metrics


class _EpochCallback(TrainerCallback):
    """Tells the batches which epoch begins, also after a resume."""

    def __init__(self, batches: LengthBucketedBatches, steps_per_epoch: int):
        self.batches, self.steps_per_epoch = batches, steps_per_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.set_epoch(state.global_step // self.steps_per_epoch)


@contextlib.contextmanager
def _averaged(average: MovingAverage | None) -> Iterator[None]:
    if average is not None:
        average.swap()
    try:
        yield
    finally:
        if average is not None:
            average.swap()


class _Rows(Dataset[Any]):
    """Some rows of an encoded data set."""

    def __init__(self, dataset: Any, indices: np.ndarray):
        self.dataset, self.indices = dataset, indices
        self.lengths = np.asarray(dataset.lengths)[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def flat(self) -> Any:
        """These rows as an EncodedDataset of their own, without labels."""
        from diffmix.tasks.encoding import EncodedDataset

        bounds = [(self.dataset.offsets[row], self.dataset.offsets[row + 1]) for row in self.indices]
        tokens = np.concatenate([self.dataset.tokens[first:last] for first, last in bounds])
        return EncodedDataset(tokens, np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64))


def _class_weights(counts: np.ndarray) -> torch.Tensor:
    """Weights inverse to class frequency, their mean over the train rows 1: w_c = n / (C n_c). float32 [C]."""
    present = np.maximum(counts, 1)
    return torch.tensor(counts.sum() / ((counts > 0).sum() * present), dtype=torch.float32)


def _classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    """Cross-entropy of each row in fp32 [B], times the weight of its label's class."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
    return losses if weights is None else losses * weights.to(labels.device)[labels]


def _model_config(recipe: Recipe, tokenizer: Any, vocab_size: int, labels: dict[str, Any]) -> Any:
    """The model's configuration. Raises RequestError where its keys contradict each other."""
    config_class = CONFIG_MAPPING[recipe.model]
    keys = dict(recipe.config)
    default_positions = getattr(config_class(), "max_position_embeddings", None)
    if default_positions is not None and "max_position_embeddings" not in keys:
        # Another family keeps its own shape where the texts fit in it.
        longest = recipe.max_length if recipe.model == "diffmix" else max(recipe.max_length, int(default_positions))
        keys["max_position_embeddings"] = longest
    keys["vocab_size"] = vocab_size
    keys["pad_token_id"] = None if tokenizer is None else tokenizer.pad_token_id
    if tokenizer is None:
        keys["pad_token_id"] = 0
    try:
        return config_class(**keys, **labels)
    except (TypeError, ValueError) as error:
        raise RequestError(" ".join(str(error).split())) from None


def _build_classifier(recipe: Recipe, task: TaskData, tokenizer: Any, start: Path | None) -> Any:
    names = task.label_names
    labels = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    vocab_size = task.vocab_size if tokenizer is None else len(tokenizer)
    assert vocab_size is not None
    config = _model_config(recipe, tokenizer, vocab_size, labels)
    pairs = task.validation.pairs is not None
    if pairs and recipe.model != "diffmix":
        raise RequestError(f"model={recipe.model} reads single texts but the data are pairs: set model=diffmix")
    set_seed(recipe.seed)
    if start is not None:
        kind: Any = models.DiffmixForSequencePairClassification if pairs else AutoModelForSequenceClassification
        try:
            return kind.from_pretrained(start, config=config, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RequestError(f"init_from: {start} does not fit this recipe's model ({reason})") from None
    if pairs:
        return models.DiffmixForSequencePairClassification(config)
    return AutoModelForSequenceClassification.from_config(config)


def _load_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder} holds no tokenizer ({' '.join(str(error).split())[:120]}): give a run's folder") from None


def _load_weights(model: Any, checkpoint: Path) -> None:
    """A checkpoint's weights, the averaged ones where it has them (buffers are not averaged)."""
    load_model(model, checkpoint / "model.safetensors", device=str(next(model.parameters()).device))
    averaged = checkpoint / AVERAGED_WEIGHTS
    if averaged.is_file():
        averages = load_file(averaged)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(averages[name])


def finish_metrics(folder: Path, probabilities: np.ndarray, labels: np.ndarray, task: TaskData) -> dict[str, float]:
    """The test metrics, flat; writes evaluation.json with the confusion matrix and the reliability diagram."""
    metrics = classification_metrics(probabilities, labels)
    write_json(
        folder / "evaluation.json",
        {
            "split": "test",
            "n": len(labels),
            "labels": list(task.label_names),
            "confusion": confusion_matrix(probabilities, labels).tolist(),
            "reliability": list(reliability(probabilities, labels)),
        },
    )
    return {f"test/{key}": value for key, value in metrics.items()}


def write_run_files(folder: Path, recipe: Recipe, task: TaskData, metrics: dict[str, Any], *, pairs: bool) -> None:
    """README.md and, last of all files, metrics.json: it says that the run is finished."""
    card = model_card(recipe, metrics, task.facts, task.label_names, pairs=pairs)
    write_atomically(folder / "README.md", card)
    facts = {f"data/{key}": value for key, value in task.facts.items()}
    write_json(folder / "metrics.json", {"task": task.name, "recipe": recipe.name, **metrics, **facts})


def _is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def _one_process(device: str = "cpu") -> Iterator[None]:
    """Join the other processes of torchrun, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=device == "cpu", backend="gloo" if device == "cpu" else "nccl")
    yield


def _on_first(work: Callable[[], Any]) -> Any:
    """Run `work` on the first process; its result, or its error, on all of them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return work()
    outcome: list[Any] = [None, None]
    if _is_first():
        try:
            outcome[0] = work()
        except (RequestError, RunError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn the ways in which writing can fail into one line."""
    try:
        yield
    except (RequestError, RunError):
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RunError(_no_space(folder)) from error
    except Exception as error:  # safetensors and torch.save raise types of their own
        text = str(error)
        if "No space left" in text or "os error 28" in text or "PytorchStreamWriter failed" in text:
            raise RunError(_no_space(folder)) from error
        raise


@contextlib.contextmanager
def _undone(folder: Path, state: str) -> Iterator[None]:
    """Leave an empty folder empty where the request turns out to be wrong."""
    try:
        yield
    except RequestError:
        if state == "new" and _is_first():
            release_folder(folder)
        raise


def _no_space(folder: Path) -> str:
    return f"no space left while writing {folder}: free some, then continue the run with --resume"


__all__ = ["recipe_from_mapping", "summarise", "train", "train_seeds"]
