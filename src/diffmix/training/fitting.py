"""One training: the model, its batches and Hugging Face's Trainer, from a recipe's optimisation keys."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import find_executable_batch_size
from safetensors.torch import load_file
from transformers import TrainingArguments

from diffmix.errors import RequestError, RunError
from diffmix.tasks.encoding import StreamedDataset, rows_of_length
from diffmix.training.batch_size import PROBE_ROWS, fitting_micro_batch, halvings
from diffmix.training.batching import LengthBucketedBatches, StreamedBatches
from diffmix.training.bucketed_trainer import BucketedTrainer, EpochCallback
from diffmix.training.building import load_weights
from diffmix.training.callbacks import AVERAGED_WEIGHTS, MovingAverage, Progress, RunRecorder
from diffmix.training.checkpoints import checkpoint_step, damage, find_checkpoints
from diffmix.training.distributed import is_first_process, on_first_process
from diffmix.training.hardware import environment, peak_memory, reset_peak_memory
from diffmix.training.prediction import autocast
from diffmix.training.recipe import Recipe
from diffmix.training.run_folder import read_json, write_json

Notice = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The best model of a training, and what it took."""

    model: Any
    progress: Progress
    steps: int
    best_step: int

    def costs(self, recipe: Recipe, rows: int) -> dict[str, Any]:
        """The metrics of training on `rows` rows."""
        progress, steps_per_epoch = self.progress, max(1, -(-rows // recipe.batch_size))
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "train/examples": rows,
            "train/steps": self.steps,
            "train/epochs": self.steps / steps_per_epoch,
            "train/best_step": self.best_step,
            "train/loss": progress.train_loss,
            "train/seconds": progress.seconds,
            "train/seconds_per_epoch": progress.train_seconds / self.steps * steps_per_epoch,
            "train/tokens": progress.tokens,
            "train/tokens_per_second": progress.tokens_per_second,
            "train/peak_memory_bytes": progress.peak_memory_bytes,
        }


class Fitter:
    """Trains models in one folder as a recipe says: batches that fit in memory, checkpoints, the best of them at the end.

    Args:
        recipe: its optimisation keys are read, not its task.
        folder: of the run; checkpoints lie in `folder`/checkpoints until it is finished.
        device, dtype: resolved, not "auto".
        baseline: bytes resident just after the imports.
        notice: told what was decided.
    """

    def __init__(self, recipe: Recipe, folder: Path, device: str, dtype: str, baseline: int, notice: Notice):
        self.recipe, self.folder, self.device, self.dtype = recipe, folder, device, dtype
        self.baseline, self.notice = baseline, notice
        self.processes, self.rank = PartialState().num_processes, PartialState().process_index

    def fit(
        self,
        build: Callable[[], Any],
        rows: Any,
        collate: Any,
        loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor],
        objective: Callable[[Any, dict[str, Any]], tuple[torch.Tensor, torch.Tensor | None]],
        validate: Callable[[Any], dict[str, float]],
        best_metric: str,
    ) -> Fitted:
        """Train, from the last whole checkpoint if there is one.

        Args:
            build: a fresh model, called once for each attempt.
            rows: to train on.
            collate: rows → batch.
            loss: (model, batch) → mean loss, to measure a step with.
            objective: (model, batch) → (summed loss, number of right answers; None where they are not counted).
            validate: model → metrics.
            best_metric: of those, the one that decides which checkpoint is kept.
        """
        recipe = self.recipe
        share = -(-recipe.batch_size // self.processes)
        if len(rows) == 0:
            raise RequestError("train has no rows that hold a token: give more texts")
        if len(rows) < self.processes:
            raise RequestError(f"train has {len(rows)} rows for {self.processes} processes: start fewer")
        micro = on_first_process(lambda: self._micro_batch(build, rows, collate, loss, share))

        def attempt(micro: int) -> Fitted:
            if is_first_process():  # a resumed run adds up in the same portions
                record = {**environment(self.device), "dtype": self.dtype, "micro_batch_size": micro}
                write_json(self.folder / "environment.json", record)
            return self._fit_with(micro, share, build(), rows, collate, objective, validate, best_metric)

        if self.device == "cuda" and recipe.micro_batch_size is None and self.processes == 1:
            # Halving keeps the global batch; what a checkpoint holds is not trained again.
            smaller = [halvings(share, micro >> power) for power in range(1, micro.bit_length())]
            sizes = iter(dict.fromkeys([*smaller, 0]))  # 0 ends the search
            try:
                return find_executable_batch_size(attempt, micro, reduce_batch_size_fn=lambda: next(sizes))()
            except RuntimeError as error:
                if "No executable batch size" not in str(error):
                    raise
                raise RunError(
                    "the device's memory does not hold a training step of one row: lower max_length or hidden_size, or set "
                    "gradient_checkpointing=true"
                ) from None
        return attempt(micro)

    def _micro_batch(self, build: Any, rows: Any, collate: Any, loss: Any, share: int) -> int:
        record = self.folder / "environment.json"
        before = read_json(record).get("micro_batch_size") if record.is_file() else None
        if isinstance(before, int):
            return before
        if self.recipe.micro_batch_size is not None:
            return min(self.recipe.micro_batch_size, share)
        if self.device == "cuda":
            return share
        if isinstance(rows, StreamedDataset):  # how long they are is not known before
            rows = rows_of_length(self.recipe.max_length, PROBE_ROWS, pairs=rows.pairs)

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
    ) -> Fitted:
        recipe, folder = self.recipe, self.folder
        accumulation = -(-share // micro)
        dealing = {"accumulation": accumulation, "processes": self.processes, "rank": self.rank}
        batches: Any
        if isinstance(rows, StreamedDataset):
            if recipe.length_warmup:
                raise RequestError(
                    "length_warmup needs rows in memory but train is streamed: set stream=false or length_warmup=0"
                )
            batches = StreamedBatches(rows, batch_size=recipe.batch_size, **dealing)
        else:
            batches = LengthBucketedBatches(
                rows.lengths,
                batch_size=recipe.batch_size,
                seed=recipe.seed,
                growth=getattr(rows, "growth", None),
                **dealing,
            )
        steps_per_epoch = batches.batches_per_epoch
        max_steps = recipe.max_steps or math.ceil(recipe.epochs * steps_per_epoch)
        if recipe.length_warmup:
            batches.length_warmup = round(recipe.length_warmup * (max_steps if recipe.length_warmup < 1 else 1))
        every = recipe.eval_steps or max(1, round(steps_per_epoch / recipe.evaluations_per_epoch))
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
        checkpoint = self.last_checkpoint()
        progress = Progress() if checkpoint is None else Progress.load(checkpoint)
        try:
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
        except (ImportError, RuntimeError) as error:
            if not recipe.report_to or "install" not in str(error):
                raise
            raise RequestError(f"report_to: {' '.join(str(error).split())}") from None
        average = MovingAverage(model, recipe.ema_decay) if recipe.ema_decay > 0 else None
        if average is not None and checkpoint is not None:
            average.load(load_file(checkpoint / AVERAGED_WEIGHTS))
        recorder = RunRecorder(
            folder,
            progress,
            best_metric=best_metric,
            patience=recipe.early_stopping_patience,
            steps_per_epoch=steps_per_epoch,
            save_steps=recipe.save_steps,
            average=average,
        )
        trainer.record_with(recorder)
        if isinstance(batches, LengthBucketedBatches):
            trainer.add_callback(EpochCallback(batches, rows, collate, steps_per_epoch))
        if self.rank:  # every process draws noise and dropout of its own
            torch.manual_seed(recipe.seed + 1_000_003 * self.rank)
        # Else the run was killed after its last step, or after it stopped early; Trainer would add a step.
        if not progress.stopped and (checkpoint is None or checkpoint_step(checkpoint) < max_steps):
            reset_peak_memory()
            try:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            finally:
                recorder.close()
            progress.peak_memory_bytes = max(progress.peak_memory_bytes, peak_memory(self.device, self.baseline))
        PartialState().wait_for_everyone()
        last = self.last_checkpoint()
        if last is None:
            raise RunError(
                f"no whole checkpoint is left in {folder / 'checkpoints'}: give another folder with --output"
            )
        state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
        best_step = state["best_global_step"] or checkpoint_step(last)
        load_weights(model, folder / "checkpoints" / f"checkpoint-{best_step}")
        return Fitted(model, progress, int(state["global_step"]), int(best_step))

    def last_checkpoint(self) -> Path | None:
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
