"""transformers' Trainer, fed with our batches and judged by our validation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback

from diffmix.errors import RunError
from diffmix.training.batching import LengthBucketedBatches, StreamedBatches
from diffmix.training.callbacks import MovingAverage, Progress, RunRecorder

_MASKS = {"input_ids": "attention_mask", "input_ids_pair": "attention_mask_pair"}


class BucketedTrainer(Trainer):
    """transformers' Trainer with our batches, a loss averaged over the global batch, and our own validation.

    Args:
        batches: the micro-batches of this process.
        objective: (model, inputs) → (summed loss, right predictions or None); may take what it needs out of inputs.
        validate: model → metrics, on all processes.
        progress: counts tokens and time.
    """

    def __init__(self, *, batches: Any, objective: Any, validate: Any, progress: Progress, **kwargs: Any):
        # A loss function of our own tells the Trainer to count the labels of the whole batch over all processes.
        super().__init__(compute_loss_func=objective, **kwargs)
        self.remove_callback(PrinterCallback)
        self.batches, self.objective, self.validate, self.progress = batches, objective, validate, progress
        self.recorder: RunRecorder | None = None
        # Of a run that goes on from between two evaluations, the first process holds what all had counted.
        before = progress.since_evaluation if self.accelerator.is_main_process else (0, 0, 0)
        self._tokens, self._correct = (torch.tensor(count, device=self.args.device) for count in before[:2])
        self._examples = before[2]
        self._counts_correct = False

    def record_with(self, recorder: RunRecorder) -> None:
        """Report to `recorder`."""
        self.recorder = recorder
        recorder.since_evaluation = self._since_evaluation
        self.add_callback(recorder)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches, as this process's share: nothing shards them again."""
        if isinstance(self.batches, StreamedBatches):
            return DataLoader(self.batches, batch_size=None, collate_fn=self._collate)
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self._collate)  # pyright: ignore[reportArgumentType]

    def _collate(self, rows: Any) -> dict[str, torch.Tensor]:
        """A batch without masks that mask nothing, such as those of images: our models see that themselves on CPUs alone."""
        batch = self.data_collator(rows)
        return {name: values for name, values in batch.items() if name not in _MASKS.values() or not bool(values.all())}

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
        assert num_items_in_batch is not None  # the Trainer counts, because we gave it a loss function
        for ids, mask in _MASKS.items():
            if ids in inputs:
                self._tokens = self._tokens + (inputs[mask].sum() if mask in inputs else inputs[ids].numel())
        self._examples += len(inputs["input_ids"])
        summed, correct = self.objective(model, dict(inputs))
        self._counts_correct = correct is not None
        if correct is not None:
            self._correct = self._correct + correct
        return summed / num_items_in_batch * self.accelerator.num_processes

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass. Raises RunError where the loss is not finite."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            optimizer: Any = self.optimizer
            rate = optimizer.param_groups[0]["lr"]
            raise RunError(
                f"the loss is {float(loss)} at step {self.state.global_step + 1} (learning rate {rate:.2g}): "
                "lower learning_rate, raise warmup, set clip=1, or set dtype=fp32"
            )
        if self.recorder is not None:
            batch_loss = loss * self.args.gradient_accumulation_steps
            accuracy = self._correct / max(self._examples, 1) if self._counts_correct else None
            self.recorder.show(batch_loss, accuracy, self._tokens)
        return loss

    def _since_evaluation(self) -> tuple[int, int, int]:
        """Tokens, right answers and rows that all processes trained on since the last evaluation."""
        counts = torch.stack([self._tokens, self._correct, torch.full_like(self._tokens, self._examples)])
        total: Any = self.accelerator.reduce(counts, "sum")
        tokens, correct, examples = total.tolist()
        return tokens, correct, examples

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Validation metrics of the model, or of the average of its weights where one is kept."""
        tokens, correct, examples = self._since_evaluation()
        self._tokens, self._correct, self._examples = torch.zeros_like(self._tokens), torch.zeros_like(self._correct), 0
        self.progress.tokens += tokens
        average = None if self.recorder is None else self.recorder.average
        with _averaged(average):
            metrics = {f"{metric_key_prefix}_{key}": value for key, value in self.validate(self.model).items()}
        self.log(dict(metrics))
        shown = {**metrics, "train_accuracy": correct / examples} if self._counts_correct and examples else metrics
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, shown)
        return metrics


class EpochCallback(TrainerCallback):
    """Tells the batches, and rows or masks that differ from epoch to epoch, which epoch begins, also after a resume."""

    def __init__(self, batches: LengthBucketedBatches, rows: Any, collate: Any, steps_per_epoch: int):
        self.batches, self.rows, self.collate, self.steps_per_epoch = batches, rows, collate, steps_per_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch of the steps to come."""
        epoch = state.global_step // self.steps_per_epoch
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)
            self.batches.lengths = self.rows.lengths
        if hasattr(self.collate, "set_epoch"):
            self.collate.set_epoch(epoch)
        self.batches.set_epoch(epoch)


@contextlib.contextmanager
def _averaged(average: MovingAverage | None) -> Iterator[None]:
    if average is not None:
        average.swap()
    try:
        yield
    finally:
        if average is not None:
            average.swap()
