"""Images to learn a generative model from, pixel by pixel: each is one document and one window, behind a start token.

n: images of a split.  P: pixels of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, StreamedExamples
from diffmix.tasks.images import load_images
from diffmix.tasks.splits import Cut, Facts

PIXEL_TASKS = {  # task → the image task that it takes its images from
    "digits_pixels": "digits",
    "mnist_pixels": "mnist",
    "fashion_mnist_pixels": "fashion_mnist",
    "cifar10_pixels": "cifar10",
}


@dataclass(frozen=True)
class PixelImages:
    """A split. Grey value g is the id g + 1; 0 is padding, which a model never meets, and the last id starts an image."""

    pixels: np.ndarray  # int [n, P], 1 … levels
    levels: int  # grey values

    @property
    def start(self) -> int:
        """The id of the start token."""
        return self.levels + 1

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.levels + 2

    def windows(self, tokenizer: None, length: int) -> PixelWindows:
        """The images as windows, for a model that takes at most `length` targets at once and has no tokenizer.

        Raises RequestError for a model of text, or one that takes fewer.
        """
        if tokenizer is not None:
            raise RequestError("this model reads text but was given pixels: give the task that it was trained on")
        if length < self.pixels.shape[1]:
            raise RequestError(
                f"an image has {self.pixels.shape[1]} pixels and the windows at most {length}, but images are scored whole: "
                f"set max_length={self.pixels.shape[1] + 1} or more"
            )
        return PixelWindows(self)

    def first(self, tokens: int, tokenizer: None = None) -> PixelImages:
        """The first images that have at most `tokens` pixels together; never none."""
        return PixelImages(self.pixels[: max(1, tokens // self.pixels.shape[1])], self.levels)


def load_pixels(
    name: str, data: str | Path | None, how: Cut, on_notice: Callable[[str], None] = print
) -> tuple[PixelImages, PixelImages, Callable[[], PixelImages | None], Facts]:
    """Train, validation, how to load test, and the facts of a task of PIXEL_TASKS: the images of its classification task
    without their labels, in the same splits.
    """
    task = load_images(PIXEL_TASKS[name], data=data, how=how, on_notice=on_notice)
    assert task.vocab_size is not None
    levels = task.vocab_size - 1

    def images(examples: Examples | StreamedExamples) -> PixelImages:
        assert isinstance(examples, Examples)
        assert isinstance(examples.input_ids, np.ndarray)
        return PixelImages(examples.input_ids, levels)

    def load_test() -> PixelImages | None:
        test = task.load_test()
        return None if test is None else images(test)

    train = images(task.train)
    facts: Facts = {**task.facts, "pixels": train.pixels.shape[1], "grey_values": levels}
    return train, images(task.validation), load_test, facts


class PixelWindows(Dataset[dict[str, Any]]):
    """Images as windows, as `TokenWindows` has them: window k is {"input_ids": int [P + 1]}, the start token and image k."""

    def __init__(self, images: PixelImages):
        count, self.length = images.pixels.shape
        self._rows = np.empty((count, self.length + 1), dtype=np.int16)
        self._rows[:, 0], self._rows[:, 1:] = images.start, images.pixels

    @property
    def tokens(self) -> np.ndarray:
        """The ids of all windows, one after another."""
        return self._rows.reshape(-1)

    @property
    def targets(self) -> int:
        """How many pixels are predicted."""
        return len(self) * self.length

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._rows[index]}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window, int64."""
        return np.full(len(self), self.length + 1, dtype=np.int64)

    def documents(self, index: int) -> np.ndarray:
        """The document of each target of a window, int32 [P]: every image is one."""
        return np.full(self.length, index, dtype=np.int32)
