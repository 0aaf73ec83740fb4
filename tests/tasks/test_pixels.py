"""Images as windows of pixels behind a start token."""

import numpy as np
import pytest
from image_files import write_idx

from diffmix.errors import RequestError
from diffmix.tasks import load_task
from diffmix.tasks.language import LANGUAGE_TASKS, Documents, load_language
from diffmix.tasks.pixels import PIXEL_TASKS, PixelImages
from diffmix.tasks.tokenizers import build_tokenizer


def test_every_pixel_is_a_target_once_behind_the_start_token():
    images = PixelImages(np.arange(1, 13, dtype=np.int16).reshape(3, 4), levels=12)
    windows = images.windows(None, 4)
    assert [windows[k]["input_ids"].tolist() for k in range(3)] == [
        [13, 1, 2, 3, 4],
        [13, 5, 6, 7, 8],
        [13, 9, 10, 11, 12],
    ]
    assert (len(windows), windows.length, windows.targets) == (3, 4, 12)
    assert windows.lengths.tolist() == [5, 5, 5]
    assert windows.documents(2).tolist() == [2] * 4
    assert windows.tokens.max() < images.vocab_size == 14
    assert [len(images.first(pixels).pixels) for pixels in (1, 7, 8, 100)] == [1, 1, 2, 3]


def test_the_splits_are_those_of_the_classification_task(tmp_path):
    write_idx(tmp_path / "fashion_mnist")
    for name, data in (("digits_pixels", None), ("fashion_mnist_pixels", tmp_path)):
        assert name in LANGUAGE_TASKS
        pixels, images = load_language(name, data=data), load_task(PIXEL_TASKS[name], data=data)
        pairs = [(pixels.train, images.train), (pixels.validation, images.validation)]
        for ours, theirs in [*pairs, (pixels.load_test(), images.load_test())]:
            assert isinstance(ours, PixelImages)
            assert np.array_equal(ours.pixels, theirs.input_ids)
            assert ours.levels == {"digits_pixels": 17, "fashion_mnist_pixels": 256}[name]
    few = load_language("fashion_mnist_pixels", data=tmp_path, limit=2)
    assert (len(few.train.pixels), len(few.load_test().pixels)) == (2, 2)
    assert load_language("digits_pixels").facts["grey_values"] == 17


def test_what_does_not_fit_is_refused():
    images = PixelImages(np.ones((2, 9), dtype=np.int16), levels=17)
    with pytest.raises(RequestError, match="set max_length=10 or more"):
        images.windows(None, 8)
    tokenizer = build_tokenizer("bytes", [], max_length=64)
    with pytest.raises(RequestError, match="reads text but was given pixels"):
        images.windows(tokenizer, 64)
    with pytest.raises(RequestError, match="reads pixels but was given text"):
        Documents.of(["a text"]).windows(None, 64)
    with pytest.raises(RequestError, match="task 'digits_pixels' takes none"):
        load_language("digits_pixels", data="x")
