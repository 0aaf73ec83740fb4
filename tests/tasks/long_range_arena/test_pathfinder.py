"""Pathfinder images: dots at the ends of curves, balanced, repeatable, without shortcuts; and the official files."""

import numpy as np
import pytest
from PIL import Image
from refusals import refusal
from scipy.ndimage import uniform_filter
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from diffmix.tasks import load_task
from diffmix.tasks.long_range_arena.curriculum import shorter_contours
from diffmix.tasks.long_range_arena.pathfinder import PATHFINDER, PATHFINDER_X, Painter, draw


@pytest.fixture(scope="module")
def drawn():
    return draw(PATHFINDER, 400, np.random.default_rng(0))


def test_images_are_balanced_bright_and_repeat(drawn):
    images, labels = drawn
    assert images.shape == (400, 1024)
    assert labels.mean() == 0.5
    assert (images.max(axis=1) == 255).all()
    assert (images.min(axis=1) == 0).all()
    again, same = draw(PATHFINDER, 8, np.random.default_rng(3)), draw(PATHFINDER, 8, np.random.default_rng(3))
    assert all(np.array_equal(a, b) for a, b in zip(again, same, strict=True))
    assert len({image.tobytes() for image in images}) == 400


def test_brightness_and_the_amount_of_ink_tell_nothing(drawn):
    images, labels = drawn
    squares = images.reshape(-1, 32, 32)
    halves = [squares[:, :16], squares[:, 16:], squares[:, :, :16], squares[:, :, 16:]]
    simple = np.stack(
        [images.mean(axis=1), images.std(axis=1), (images > 30).sum(axis=1), (images > 200).sum(axis=1)]
        + [half.mean(axis=(1, 2)) for half in halves],
        axis=1,
    )
    scores = cross_val_score(LogisticRegression(), StandardScaler().fit_transform(simple), labels, cv=5)
    assert scores.mean() < 0.58  # three standard errors over chance are 0.575


def between_dots(images):
    """The distance between the two brightest spots of 3 x 3 pixels, which the dots are, in each image."""
    squares = uniform_filter(images.reshape(-1, 32, 32).astype(float), (0, 3, 3), mode="constant")
    there = np.stack(np.mgrid[:32, :32])
    spots = []
    for square in squares:
        for _ in range(2):
            spot = np.array(np.unravel_index(square.argmax(), square.shape))
            spots.append(spot)
            square[(np.abs(there - spot[:, None, None]) <= 2).all(axis=0)] = -1
    spots = np.array(spots).reshape(-1, 2, 2)
    return np.linalg.norm(spots[:, 0] - spots[:, 1], axis=1)


@pytest.mark.parametrize(
    ("strokes", "low", "high"), [(3, 0.74, 0.84), (4, 0.65, 0.75), (6, 0.5, 0.62), (14, 0.4, 0.56)]
)
def test_the_distance_between_the_dots_tells_of_the_shortest_contours_only(strokes, low, high):
    parameters = shorter_contours(PATHFINDER, strokes) if strokes < 14 else PATHFINDER
    images, labels = draw(parameters, 1500, np.random.default_rng(2))
    rule = DecisionTreeClassifier(max_leaf_nodes=8, random_state=0)
    scores = cross_val_score(rule, between_dots(images)[:, None], labels, cv=5)
    assert low < scores.mean() < high  # four standard errors to each side


@pytest.mark.parametrize("parameters", [PATHFINDER, PATHFINDER_X])
def test_contours_have_14_strokes_that_touch_no_other_contour(parameters):
    margin = parameters.paddle_margins[0]
    painter = Painter(parameters, margin)
    rng = np.random.default_rng(1)
    contours = np.empty((0,))
    while not len(contours):
        contours, _ = painter._contours(64, rng)
    assert contours.shape[1:] == (2, 14, 2)
    ends = np.stack(np.divmod(contours[..., 0], painter.width), axis=-1) - painter.border  # (y, x) of first pixels
    assert ends.min() >= 0
    assert ends.max() < parameters.side
    steps = np.linalg.norm(np.diff(ends[:, :, 1:], axis=2), axis=-1)  # from head to head
    assert steps.max() <= parameters.paddle_length + 3 * margin + 3
    apart = np.linalg.norm(ends[:, 0, 0] - ends[:, 1, 0], axis=-1)
    assert np.abs(apart - parameters.seed_distance).max() <= 1
    for row in contours:  # the strokes themselves share no pixel
        inked = []
        for contour in row:
            offsets, values = (kind[contour[:, 1]] for kind in painter.strokes)
            inked.append(set((contour[:, :1] + offsets)[values > 128].tolist()))
        assert not inked[0] & inked[1]


def official(folder, images, labels, lines=None):
    """Files as the benchmark has them."""
    root = folder / "pathfinder32/curv_contour_length_14"
    (root / "imgs/0").mkdir(parents=True, exist_ok=True)
    (root / "metadata").mkdir(exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image.reshape(32, 32)).save(root / f"imgs/0/sample_{number}.png")
    lines = lines or [f"imgs/0 sample_{number}.png {number} {label} 1.0 14 4 2" for number, label in enumerate(labels)]
    (root / "metadata/0.npy").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def test_official_files_are_read_and_empty_images_left_out(tmp_path, drawn):
    images, labels = drawn[0][:21], drawn[1][:21]
    root = official(tmp_path, images, labels)
    (root / "imgs/0/sample_3.png").write_bytes(b"")
    task = load_task("pathfinder", data=tmp_path)
    test = task.load_test()
    assert [len(part) for part in (task.train, task.validation, test)] == [16, 2, 2]
    assert "1 empty image" in task.facts["note"]
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    seen = [
        (row, label)
        for part in (task.train, task.validation, test)
        for row, label in zip(part.input_ids, part.labels, strict=True)
    ]
    assert all(known[(row - 1).astype(np.uint8).tobytes()] == label for row, label in seen)
    assert len(seen) == 20


def test_malformed_official_files_are_refused(tmp_path, drawn):
    images, labels = drawn[0][:12], drawn[1][:12]
    root = official(tmp_path, images, labels)
    lines = (root / "metadata/0.npy").read_text().splitlines()
    for wrong, message in (
        ("imgs/0 sample_0.png 0", "line 2: has 3 fields"),
        ("imgs/0 a.png 0 2", "label '2' is not 0 or 1"),
    ):
        official(tmp_path, [], [], [lines[0], wrong])
        assert message in refusal("pathfinder", data=tmp_path)
    official(tmp_path, [], [], lines[:3])
    assert "too few" in refusal("pathfinder", data=tmp_path)
    official(tmp_path, [], [], lines)
    Image.fromarray(np.zeros((31, 32), dtype=np.uint8)).save(root / "imgs/0/sample_5.png")
    wrong_size = []
    for seed in range(3):  # whichever split the image lies in
        try:
            load_task("pathfinder", data=tmp_path, seed=seed)
        except ValueError as error:
            wrong_size.append(str(error))
    assert wrong_size
    assert all("an image of 32 x 31 pixels; give images of 32 x 32" in line for line in wrong_size)
    for number in range(12):
        (root / f"imgs/0/sample_{number}.png").unlink()
    assert "cannot be read" in refusal("pathfinder", data=tmp_path)
    (root / "metadata/0.npy").write_bytes(b"\x93NUMPY\xff")
    assert "cannot be read as text" in refusal("pathfinder", data=tmp_path)


@pytest.mark.parametrize("count", [0, 3])
def test_counts_that_cannot_be_balanced_are_refused(count):
    with pytest.raises(ValueError, match="count"):
        draw(PATHFINDER, count, np.random.default_rng(0))
