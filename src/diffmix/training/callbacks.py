"""What a run shows and records while it trains: progress bar, metrics.jsonl, TensorBoard, early stopping, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import TrainerCallback

from diffmix.training.checkpoints import mark_complete, write_atomically
from diffmix.training.hardware import resident_memory

PROGRESS = "progress.json"
AVERAGED_WEIGHTS = "averaged.safetensors"
REFRESH_SECONDS = 0.5  # of the progress bar; reading a tensor waits for the device
LINE_SECONDS = 60.0  # between lines where there is no terminal for a bar


@dataclasses.dataclass
class Progress:
    """What a run has used and found so far; saved in every checkpoint, so that a resumed run counts on."""

    tokens: int = 0  # real ones, over all processes, up to the last evaluation
    # Tokens, right answers and rows since then, of a checkpoint between two evaluations
    since_evaluation: tuple[int, int, int] = (0, 0, 0)
    train_seconds: float = 0.0  # in training steps, without evaluations and checkpoints
    seconds: float = 0.0  # in all
    peak_memory_bytes: int = 0
    train_loss: float = float("nan")  # mean since the evaluation before the last
    evaluations_without_gain: int = 0
    stopped: bool = False

    @classmethod
    def load(cls, checkpoint: Path) -> Progress:
        """The progress that a checkpoint holds."""
        saved = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
        return cls(**saved | {"since_evaluation": tuple(saved.get("since_evaluation", (0, 0, 0)))})

    def save(self, checkpoint: Path) -> None:
        """Write the progress into a checkpoint."""
        write_atomically(checkpoint / PROGRESS, json.dumps(dataclasses.asdict(self)))

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second of training steps."""
        return self.tokens / self.train_seconds if self.train_seconds else 0.0


class MovingAverage:
    """Exponential moving average of a model's parameters: a ← d·a + (1-d)·p, d rising to `decay` over the first steps."""

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.averages = {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages toward the parameters after optimiser step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.parameters.items():
            self.averages[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's parameters and their averages."""
        for name, value in self.parameters.items():
            average = self.averages[name].clone()
            self.averages[name].copy_(value)
            value.copy_(average)

    def load(self, averages: dict[str, torch.Tensor]) -> None:
        """Take up saved averages."""
        for name, value in averages.items():
            self.averages[name].copy_(value)


class RunRecorder(TrainerCallback):
    """Records a run: one line of metrics.jsonl and TensorBoard an evaluation, and what makes a checkpoint whole.

    Args:
        folder: of the run.
        progress: counted on in place.
        best_metric: the validation metric that early stopping watches.
        patience: evaluations without a new best before training stops; 0: never.
        steps_per_epoch: optimiser steps.
        save_steps: optimiser steps between checkpoints that the evaluations do not ask for.
        average: the moving average to keep, if any.
    """

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        *,
        best_metric: str,
        patience: int,
        steps_per_epoch: int,
        save_steps: int | None = None,
        average: MovingAverage | None = None,
    ):
        self.folder, self.progress, self.average = folder, progress, average
        self.best_metric, self.patience, self.steps_per_epoch = best_metric, patience, steps_per_epoch
        self.save_steps = save_steps
        self.since_evaluation: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 0)  # the trainer counts
        self.bar: tqdm[Any] | None = None
        self.board: Any = None
        self.best: float | None = None
        self._started = self._mark = time.perf_counter()
        self._seconds_before = progress.seconds
        self._log: dict[str, float] = {}
        self._shown = self._started
        self._step = self._steps_before = self._steps = 0

    # The trainer hands over what it measured; `show` is cheap enough for every step.
    def show(self, loss: torch.Tensor, accuracy: torch.Tensor | None, tokens: torch.Tensor) -> None:
        """Refresh the progress bar; without a terminal, write a line now and then."""
        now = time.perf_counter()
        if self.bar is None or now - self._shown < (LINE_SECONDS if self.bar.disable else REFRESH_SECONDS):
            return
        self._shown = now
        seconds = now - self._started
        memory = torch.cuda.memory_allocated() if torch.cuda.is_available() else resident_memory()
        rate = (self.progress.tokens + float(tokens)) / max(self._seconds_before + seconds, 1e-9)
        right = "" if accuracy is None else f"accuracy {float(accuracy):.3f}, "
        shown = f"loss {float(loss):.3f}, {right}{rate:,.0f} tokens/s, {memory / 2**30:.2f} GiB"
        if not self.bar.disable:
            self.bar.set_postfix_str(shown, refresh=False)
        elif done := self._step - self._steps_before:
            left = tqdm.format_interval(seconds / done * (self._steps - self._step))
            tqdm.write(f"step {self._step}/{self._steps}, {left} left at this pace: {shown}", file=sys.stderr)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar and the log files; forget what was logged after the checkpoint that is resumed from."""
        self._started = self._mark = time.perf_counter()
        self.best = state.best_metric
        if not state.is_world_process_zero:
            return
        keep_lines(self.folder / "metrics.jsonl", state.global_step)
        self.board = SummaryWriter(str(self.folder / "logs"), purge_step=state.global_step + 1)
        self._step, self._steps_before, self._steps = state.global_step, state.global_step, state.max_steps
        self._shown = self._started
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", disable=None, file=sys.stderr)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step's time, move the average of the weights, and have the last evaluation's loss logged."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self.save_steps and state.global_step % self.save_steps == 0:
            control.should_save = True
        now = time.perf_counter()
        self.progress.train_seconds += now - self._mark
        self._mark = now
        if self.average is not None:
            self.average.update(state.global_step)
        self._step = state.global_step
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep the mean train loss and the learning rate for the evaluation's line."""
        if logs and "loss" in logs:
            self._log = logs
            self.progress.train_loss = logs["loss"]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Write the evaluation's line, and stop early where it brought nothing new for long enough."""
        validation = {key.removeprefix("eval_"): value for key, value in metrics.items() if key.startswith("eval_")}
        self._watch(validation[self.best_metric], control)
        self.progress.seconds = self._seconds_before + time.perf_counter() - self._started
        if state.is_world_process_zero:
            row = {
                "step": state.global_step,
                "epoch": round(state.global_step / self.steps_per_epoch, 4),
                "train/loss": self._log.get("loss"),
                "train/accuracy": metrics.get("train_accuracy"),
                **{f"validation/{'loss' if key == 'nll' else key}": value for key, value in validation.items()},
                "train/tokens_per_second": self.progress.tokens_per_second,
                "learning_rate": self._log.get("learning_rate"),
                "seconds": self.progress.seconds,
            }
            row = {key: value for key, value in row.items() if value is not None}
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            for key, value in row.items():
                if key not in ("step", "epoch", "seconds"):
                    self.board.add_scalar(key, value, state.global_step)
            self.board.flush()
            shown = ", ".join(
                f"{key} {value:.4f}" for key, value in row.items() if key.startswith(("train/l", "validation"))
            )
            tqdm.write(f"step {row['step']}/{state.max_steps}, epoch {row['epoch']:.2f}: {shown}", file=sys.stderr)
        self._mark = time.perf_counter()

    def _watch(self, value: float, control: Any) -> None:
        sign = -1 if self.best_metric == "nll" else 1
        if self.best is None or sign * value > sign * self.best:
            self.best, self.progress.evaluations_without_gain = value, 0
        else:
            self.progress.evaluations_without_gain += 1
        if self.patience and self.progress.evaluations_without_gain >= self.patience:
            control.should_training_stop = self.progress.stopped = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete the checkpoint that was just written."""
        PartialState().wait_for_everyone()  # every process writes its random state
        self.progress.since_evaluation = self.since_evaluation()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (checkpoint / "training_args.bin").unlink(missing_ok=True)  # a pickle, and nothing reads it
            self.progress.seconds = self._seconds_before + time.perf_counter() - self._started
            self.progress.save(checkpoint)
            if self.average is not None:
                averages = {name: value.contiguous() for name, value in self.average.averages.items()}
                save_file(averages, checkpoint / AVERAGED_WEIGHTS)
            mark_complete(checkpoint)
        self._mark = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar and the log files."""
        self.progress.seconds = self._seconds_before + time.perf_counter() - self._started
        self.close()

    def close(self) -> None:
        """Close the bar and the log files, also after an error."""
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()


def keep_lines(file: Path, last_step: int) -> None:
    """Drop the lines of a metrics.jsonl that were written after `last_step`, and a torn last line."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            break
    write_atomically(file, "".join(kept))
