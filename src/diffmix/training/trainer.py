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
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import find_executable_batch_size, gather_object
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    TrainingArguments,
    set_seed,
)

import diffmix.models as models
from diffmix.errors import RequestError, RunError
from diffmix.evaluation import classification_metrics, mean_interval
from diffmix.tasks import TaskData, load_task
from diffmix.tasks.encoding import PaddingCollator, StreamedDataset, encode, encode_texts
from diffmix.tasks.examples import Examples, StreamedExamples
from diffmix.tasks.subword_dropout import SubwordDropout
from diffmix.tasks.tokenizers import build_tokenizer
from diffmix.training.batch_size import fitting_micro_batch, halvings
from diffmix.training.batching import LengthBucketedBatches, RowSubset, StreamedBatches, batches_by_tokens
from diffmix.training.bucketed_trainer import BucketedTrainer, EpochCallback
from diffmix.training.building import build_classifier, load_tokenizer, load_weights, model_config, start_embeddings
from diffmix.training.callbacks import AVERAGED_WEIGHTS, MovingAverage, Progress, RunRecorder
from diffmix.training.checkpoints import checkpoint_step, damage, find_checkpoints
from diffmix.training.distributed import is_first_process, join_processes, on_first_process, process_count
from diffmix.training.embeddings import ppmi_embeddings
from diffmix.training.hardware import (
    environment,
    peak_memory,
    reset_peak_memory,
    resident_memory,
    resolve_device,
    resolve_dtype,
)
from diffmix.training.losses import class_weights, classification_loss
from diffmix.training.prediction import BATCH_TOKENS, autocast, predict_probabilities, quiet_transformers
from diffmix.training.pretraining import IGNORED, MaskingCollator, in_blocks, masked_metrics
from diffmix.training.recipe import Recipe
from diffmix.training.run_folder import (
    claim_folder,
    finish_metrics,
    recorded_data,
    release_folder,
    write_json,
    write_run_files,
)

VALIDATION_SEED = 0  # of the cut of validation: runs of different seeds share it
UNLABELLED_VALIDATION = 256  # texts at most that pre-training holds out, never more than a tenth
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
    output, baseline = Path(output), resident_memory()
    if recipe.model != "tfidf":
        join_processes(resolve_device(recipe.device))
    state = on_first_process(lambda: claim_folder(output, recipe, data, resume=resume))
    if state == "finished":
        return _finished(output, notice)
    data = recorded_data(output)
    with _explained(output), _undone(output, state):
        pretrained = None
        if recipe.pretraining is not None:
            pretrained = _pretrain(recipe, data, output / "pretraining", notice, baseline)
        runs = []
        for seed in range(seeds):
            folder = output / f"seed-{seed}"
            notice(f"seed {seed} of {seeds}: {folder}")
            started = (folder / "recipe.yaml").is_file()
            one = recipe.replace(seed=seed)
            runs.append(_train_one(one, data, folder, started, notice, baseline, pretrained=pretrained))
        summary = summarise(runs)
        on_first_process(lambda: write_json(output / "metrics.json", summary))
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
        if process_count() > 1:
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
    join_processes(device)
    state = on_first_process(lambda: claim_folder(folder, recipe, data, resume=resume))
    if state == "finished":
        return _finished(folder, notice)
    with _explained(folder), _undone(folder, state):
        data = recorded_data(folder)
        if recipe.pretraining is not None and pretrained is None:
            pretrained = _pretrain(recipe, data, folder / "pretraining", notice, baseline)
        start = Path(recipe.init_from) if recipe.init_from is not None else pretrained
        run = _Run(recipe, folder, device, dtype, baseline, notice)
        return run.classification(_load_task(recipe, data, notice), start)


def _finished(folder: Path, notice: Notice) -> dict[str, Any]:
    notice(f"{folder} is finished: nothing to do")
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def _pretrain(recipe: Recipe, data: Path | str | None, folder: Path, notice: Notice, baseline: int) -> Path:
    """The folder of the denoising phase of `recipe`, trained or continued as needed."""
    phase = recipe.pretraining_recipe()
    assert phase is not None
    device = resolve_device(phase.device)
    exists = (folder / "recipe.yaml").is_file()
    state = on_first_process(lambda: claim_folder(folder, phase, data, resume=exists))
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
        on_notice=notice if is_first_process() else lambda _: None,
    )


class _Run:
    """One run in one folder: shared steps of classification and pre-training."""

    def __init__(self, recipe: Recipe, folder: Path, device: str, dtype: str, baseline: int, notice: Notice):
        self.recipe, self.folder, self.device, self.dtype = recipe, folder, device, dtype
        self.baseline = baseline
        self.notice = notice if is_first_process() else lambda _: None
        self.processes, self.rank = PartialState().num_processes, PartialState().process_index
        self._vectors: np.ndarray | None = None
        quiet_transformers()

    def classification(self, task: TaskData, start: Path | None) -> dict[str, Any]:
        recipe = self.recipe
        tokenizer = self._tokenizer(task, start)
        pad = 0 if tokenizer is None else tokenizer.pad_token_id
        collate = PaddingCollator(pad)
        validation = encode(task.validation, tokenizer, recipe.max_length)
        train_rows = self._train_rows(task, tokenizer)
        labels = len(task.label_names)
        weights = class_weights(task.train.label_counts(labels)) if recipe.class_balance == "loss" else None

        def build() -> Any:
            model = build_classifier(recipe, task, tokenizer, start)
            if start is None and tokenizer is not None:
                self._start_embeddings(model, lambda: self._plain_rows(task, tokenizer))
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

        model, progress, steps, best_step = self._fit(
            build, train_rows, collate, loss, objective, validate, recipe.best_metric
        )
        metrics = {f"validation/{key}": value for key, value in validate(model).items()}
        metrics |= self._costs(model, progress, steps, best_step, len(train_rows))
        if start is not None and (start / "metrics.json").is_file():
            before = json.loads((start / "metrics.json").read_text(encoding="utf-8"))
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
            write_run_files(self.folder, recipe, task, metrics, pairs=task.validation.pairs is not None)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        PartialState().wait_for_everyone()
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))

    def pretraining(self, task: TaskData) -> None:
        recipe = self.recipe
        if isinstance(task.train, StreamedExamples) and task.load_unlabelled is None:
            raise RequestError(
                "pretraining needs texts in memory but train is streamed: set stream=false or pretraining=null"
            )
        texts: Sequence[str] | None
        texts = task.load_unlabelled() if task.load_unlabelled is not None else task.train.texts  # pyright: ignore[reportAttributeAccessIssue]
        if texts is None:
            raise RequestError(f"pretraining needs texts and task {task.name} has none: set pretraining=null")
        tokenizer = self._tokenizer(task, None)
        if tokenizer is None or tokenizer.mask_token_id is None:
            raise RequestError(
                f"pretraining needs a mask token and tokenizer {recipe.tokenizer} has none: choose another"
            )
        held = min(UNLABELLED_VALIDATION, max(1, len(texts) // 10))
        order = np.random.default_rng(VALIDATION_SEED).permutation(len(texts))
        encoded = encode_texts(texts, tokenizer, 10**9)
        train_rows = in_blocks(RowSubset(encoded, np.sort(order[held:])).flat(), recipe.max_length)
        validation = in_blocks(RowSubset(encoded, np.sort(order[:held])).flat(), recipe.max_length)
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
            asked: torch.Tensor = (inputs["labels"] != IGNORED).sum()
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
            config = model_config(recipe, tokenizer, len(tokenizer), {})
            kind: Any = models.DiffmixForMaskedLM if recipe.model == "diffmix" else AutoModelForMaskedLM.from_config
            model = kind(config)
            self._start_embeddings(model, lambda: train_rows)
            return model

        model, progress, steps, best_step = self._fit(build, train_rows, collator(), loss, objective, validate, "nll")
        metrics = {f"validation/{key}": value for key, value in validate(model).items()}
        metrics |= self._costs(model, progress, steps, best_step, len(train_rows))
        if is_first_process():
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
                tokenizer = load_tokenizer(start)
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

        on_first_process(build)
        return load_tokenizer(self.folder)

    def _train_rows(self, task: TaskData, tokenizer: Any) -> Any:
        recipe = self.recipe
        if recipe.subword_dropout > 0:
            if not isinstance(task.train, Examples) or task.train.texts is None or task.train.pairs is not None:
                raise RequestError("subword_dropout takes single texts held in memory: set subword_dropout=0")
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
        return StreamedDataset(task.train, tokenizer, recipe.max_length, batch_size=recipe.batch_size, seed=recipe.seed)

    def _plain_rows(self, task: TaskData, tokenizer: Any) -> Any:
        """What the task has of texts, with or without labels, encoded without dropout."""
        unlabelled = task.load_unlabelled() if task.load_unlabelled is not None else None
        return encode_texts(unlabelled or task.train.tokenizer_texts(), tokenizer, 10**9)

    def _start_embeddings(self, model: Any, texts: Callable[[], Any]) -> None:
        if self.recipe.embedding_init != "ppmi" or self._last_checkpoint() is not None:
            return
        if self._vectors is None:
            self.notice("embeddings: from which tokens stand together in the task's texts")
            self._vectors = ppmi_embeddings(texts(), *model.get_input_embeddings().weight.shape)
        start_embeddings(model, self._vectors)

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
        micro = on_first_process(lambda: self._micro_batch(build, rows, collate, loss, share))
        if is_first_process():
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
            # transformers renames it on the way from 5.17 to 6.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
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
        average = MovingAverage(model, recipe.ema_decay) if recipe.ema_decay > 0 else None
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
            trainer.add_callback(EpochCallback(batches, rows, steps_per_epoch))
        if not progress.stopped:  # else the run was killed after it stopped early
            reset_peak_memory()
            try:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            finally:
                recorder.close()
            progress.peak_memory_bytes = max(progress.peak_memory_bytes, peak_memory(self.device, self.baseline))
        PartialState().wait_for_everyone()
        last = self._last_checkpoint()
        if last is None:
            raise RunError(
                f"no whole checkpoint is left in {folder / 'checkpoints'}: give another folder with --output"
            )
        state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
        best_step = state["best_global_step"] or checkpoint_step(last)
        load_weights(model, folder / "checkpoints" / f"checkpoint-{best_step}")
        return model, progress, int(state["global_step"]), int(best_step)

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
        part = predict_probabilities(model, RowSubset(rows, own), collate, dtype=self.dtype)
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
        if state == "new" and is_first_process():
            release_folder(folder)
        raise


def _no_space(folder: Path) -> str:
    return f"no space left while writing {folder}: free some, then continue the run with --resume"
