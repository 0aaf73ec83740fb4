"""Pathfinder: are two dots the ends of one dashed curve? Images drawn as by Linsley et al. (2018), thousands at a time.

Two contours of 14 strokes grow from starts that lie close together, stroke by stroke and by turns. Where one finds no room,
the last block of strokes of both is tried again some times, then the image is given up. Short distractors fill some of the
space that is left. One dot marks the start of a contour, the other the end of the same (label 1) or of the other one (label 0);
the label is drawn when the curves are there, so they cannot tell it.

n: images.  S: side of a canvas, the image's with a border.  T, Q: patches and their pixels (paddles.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diffmix.tasks.long_range_arena.paddles import FULL, Paddles, PathfinderParameters, marker, paddles

# lra_benchmarks/data/pathfinder.py names the values that differ from the defaults of the original generator.
PATHFINDER = PathfinderParameters(32, 7, 1.5, 20 // 4, 2, 0.5, (1,), 1.0, 2.0 * 0.75, 2.0, block=7, foresight=False)
PATHFINDER_X = PathfinderParameters(128, 20, 3.0, 35 // 4, 5, 1.5, (2, 3), 1.8, 0.9, 0.9, block=7, foresight=True)
_ATTEMPTS = 512  # pairs of contours at a time, which fit into a cache
_BLOCK_TRIES = 12  # the original starts an image anew wherever a contour finds no room, which takes far longer
_BLIND = 0.02  # with foresight: the weight of a head from where the way straight on is blocked
_TRIES = 3  # for a stroke (max_paddle_retrial 2)
_DISTRACTOR_TRIES = 5  # max_distractor_contour_retrial 4
_PLACES = 48  # looked at for the start of a distractor in each try
_TOUCH = round(1.8 * FULL)  # two masks that add up to this much touch
_TAKEN = round(0.3 * FULL)


@dataclass
class _Canvas:
    """What is occupied in some images, seen by one contour: its own last stroke is left out."""

    taken: np.ndarray  # uint8 [n, S·S]: masks of the strokes
    near: np.ndarray  # uint8 [n, S·S]: and a margin round them


class _Mark(NamedTuple):
    """What stood on a layer before strokes were put there."""

    layer: np.ndarray
    rows: np.ndarray
    places: np.ndarray  # int64 [rows, Q]: pixels of all rows, counted through
    before: np.ndarray  # uint8 [rows, Q]


class Painter:
    """Draws images of some parameters and a margin."""

    def __init__(self, parameters: PathfinderParameters, margin: int):
        self.parameters, self.margin = parameters, margin
        self.paddles: Paddles = paddles(parameters, margin)
        self.border = (
            self.paddles.reach
            + parameters.paddle_length
            + 3 * margin
            + 3
            + (parameters.paddle_length + 3 * margin if parameters.foresight else 0)
        )
        self.width = parameters.side + 2 * self.border
        self.steps = self._pixels(self.paddles.steps)
        # The head of a stroke that would go straight on, relative to the pivot of the one before.
        radius = parameters.paddle_length + margin
        self.ahead = self._pixels(np.rint(self.paddles.steps * (2 * radius + margin) / radius).astype(np.int64))
        self.strokes, self.masks, self.grown = (
            (self._pixels(spots.places), spots.values)
            for spots in (self.paddles.strokes, self.paddles.masks, self.paddles.grown)
        )  # each (offset on the canvas [T, Q], value [T, Q])
        angles = self.paddles.angles
        reach = parameters.paddle_length + 2 * margin
        direction = np.stack([np.sin(angles), np.cos(angles)], axis=1)
        self.advance = np.ceil(reach * direction).astype(np.int64)  # from a pivot to the next, [T, 2]
        turn = np.abs(angles[360:] - angles[:, None])
        turn = np.minimum(np.minimum(turn, 2 * np.pi - turn) * parameters.continuity, np.pi / 2)
        self.turning = (np.cos(turn) ** 2).astype(np.float32)  # weight of each step after each patch, [T, steps]
        blank = np.full((self.width, self.width), FULL, dtype=np.uint8)
        inner = slice(self.border + parameters.padding, self.border + parameters.side - parameters.padding)
        blank[inner, inner] = 0
        self.blank = blank.reshape(-1)

    def _pixels(self, places: np.ndarray) -> np.ndarray:
        """Places (y, x) as indices of a flat canvas."""
        return places[..., 0] * self.width + places[..., 1]

    def images(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`count` images, an even number: (uint8 [n, side²], labels uint8 [n]), half of each label."""
        parts, found = [], 0
        while found < count:
            contours, canvas = self._contours(min(_ATTEMPTS, 8 * count), rng)
            parts.append((contours, canvas.taken, canvas.near))
            found += len(contours)
        contours, taken, near = (np.concatenate(kind)[:count] for kind in zip(*parts, strict=True))
        distractors = self._distractors(_Canvas(taken, near), rng)
        labels = rng.permuted(np.tile(np.array([0, 1], dtype=np.uint8), (count // 2, 1)), axis=1).reshape(-1)
        return self._rendered(contours, distractors, labels, rng), labels

    def _contours(self, attempts: int, rng: np.random.Generator) -> tuple[np.ndarray, _Canvas]:
        """Pairs of contours that found room: int64 [n, 2, strokes, 2], (pixel, patch) of each stroke, and what they occupy."""
        parameters = self.parameters
        canvases = [_Canvas(np.tile(self.blank, (attempts, 1)), np.tile(self.blank, (attempts, 1))) for _ in range(2)]
        strokes = np.zeros((attempts, 2, parameters.contour_length, 2), dtype=np.int64)
        low, high = 2 * parameters.seed_distance, parameters.side - 2 * parameters.seed_distance
        first = rng.integers(low, high, (attempts, 2))
        apart = np.deg2rad(rng.integers(0, 360, attempts))
        second = first + np.rint(parameters.seed_distance * np.stack([np.sin(apart), np.cos(apart)], axis=1)).astype(
            int
        )
        patches = rng.integers(0, 360, (attempts, 2))
        starts = [first, second]
        pivots = [self._first_pivot(start, patches[:, contour]) for contour, start in enumerate(starts)]
        rows = np.arange(attempts)
        for contour, start in enumerate(starts):
            strokes[:, contour, 0, 0] = self._pixels(start + self.border)
            strokes[:, contour, 0, 1] = patches[:, contour]
        self._occupy(canvases[1], rows, strokes[:, 0, 0])
        rows = rows[self._free(canvases[1], rows, strokes[:, 1, 0])]
        self._occupy(canvases[0], rows, strokes[rows, 1, 0])
        for begin in range(1, parameters.contour_length, parameters.block):
            numbers = range(begin, min(begin + parameters.block, parameters.contour_length))
            rows = self._block(canvases, strokes, pivots, rows, numbers, rng)
        both = _Canvas(
            np.maximum(canvases[0].taken[rows], canvases[1].taken[rows]),
            np.maximum(canvases[0].near[rows], canvases[1].near[rows]),
        )
        return strokes[rows], both

    def _block(
        self,
        canvases: list[_Canvas],
        strokes: np.ndarray,
        pivots: list[np.ndarray],
        rows: np.ndarray,
        numbers: range,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Grow both contours of `rows` by turns by the strokes `numbers`, several times if need be; the rows that found room."""
        before = [pivot[rows] for pivot in pivots]
        missing = np.arange(len(rows))
        for _ in range(_BLOCK_TRIES):
            for pivot, start in zip(pivots, before, strict=True):
                pivot[rows[missing]] = start[missing]
            marks: list[_Mark] = []
            growing = missing
            for number in numbers:
                for contour in range(2):
                    here = rows[growing]
                    last = strokes[here, contour, number - 1]
                    stroke, pivot, fits = self._extend(canvases[contour], here, pivots[contour][here], last, rng)
                    growing, here, stroke = growing[fits], here[fits], stroke[fits]
                    pivots[contour][here] = pivot[fits]
                    strokes[here, contour, number] = stroke
                    marks += self._occupy(canvases[contour], here, last[fits])
                    marks += self._occupy(canvases[1 - contour], here, stroke)  # the other contour must not cross it
            missing = np.setdiff1d(missing, growing, assume_unique=True)
            _erase(marks, rows[missing], len(strokes))
            if not len(missing):
                break
        return np.delete(rows, missing)

    def _distractors(self, canvas: _Canvas, rng: np.random.Generator) -> np.ndarray:
        """Short contours where there is room, fewer where there is not: int64 [n, distractors, strokes, 2]; patch -1: none."""
        parameters = self.parameters
        shape = (len(canvas.taken), parameters.num_distractors, parameters.distractor_length, 2)
        strokes = np.full(shape, -1, dtype=np.int64)
        for number in range(parameters.num_distractors):
            missing = np.arange(len(strokes))
            for _ in range(_DISTRACTOR_TRIES):
                rows, start = self._room(canvas, missing, rng)
                marks: list[_Mark] = []
                tried, pivot = rows, self._first_pivot(self._place(start[:, 0]), start[:, 1])
                drawn = [start]
                for _ in range(parameters.distractor_length - 1):
                    stroke, pivot, fits = self._extend(canvas, rows, pivot, drawn[-1], rng)
                    rows, pivot = rows[fits], pivot[fits]
                    drawn = [*(earlier[fits] for earlier in drawn), stroke[fits]]
                    marks += self._occupy(canvas, rows, drawn[-2])
                self._occupy(canvas, rows, drawn[-1])
                _erase(marks, np.setdiff1d(tried, rows, assume_unique=True), len(strokes))
                strokes[rows, number] = np.stack(drawn, axis=1)
                missing = np.setdiff1d(missing, rows)
                if not len(missing):
                    break
        return strokes

    def _room(self, canvas: _Canvas, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows for which a free place for a first stroke was found, and the strokes, int64 [rows, 2]."""
        parameters = self.parameters
        patches = rng.integers(0, 360, len(rows))
        places = rng.integers(parameters.padding, parameters.side - parameters.padding, (len(rows), _PLACES, 2))
        pixels = self._pixels(places + self.border)
        offsets, core = self.masks[0][patches], self.masks[1][patches] == FULL
        open_rows = np.arange(len(rows))
        chosen = np.full(len(rows), -1, dtype=np.int64)
        for look in range(_PLACES):
            pixel = pixels[open_rows, look]
            taken = canvas.taken.take(_places(canvas.taken, rows[open_rows], pixel[:, None] + offsets[open_rows]))
            free = ~((taken > _TAKEN) & core[open_rows]).any(axis=1)
            chosen[open_rows[free]] = pixel[free]
            open_rows = open_rows[~free]
            if not len(open_rows):
                break
        found = chosen >= 0
        return rows[found], np.stack([chosen[found], patches[found]], axis=1)

    def _extend(
        self, canvas: _Canvas, rows: np.ndarray, pivots: np.ndarray, last: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The next stroke of a contour in each of `rows`: (strokes int64 [rows, 2], pivots [rows, 2], whether one fits [rows]).

        A head on the circle round the next pivot is drawn with the probability cos²(continuity · turn), 0 beyond 90°, times
        how free its pixel is.
        """
        parameters = self.parameters
        pivots = pivots + self.advance[last[:, 1]]
        inside = parameters.side + parameters.paddle_length + 2 * self.margin
        pivots = np.clip(pivots, parameters.side - inside, inside)  # beyond it all is taken anyway
        heads = self._pixels(pivots + self.border)[:, None] + self.steps
        weights = self.turning[last[:, 1]] * (
            FULL - canvas.near.take(_places(canvas.near, rows, heads)).astype(np.float32)
        )
        if parameters.foresight:
            straight = heads - self.steps + self.ahead
            weights *= (
                _BLIND + (FULL - canvas.near.take(_places(canvas.near, rows, straight)).astype(np.float32)) / FULL
            )
        chances = weights.cumsum(axis=1)
        strokes = np.zeros((len(rows), 2), dtype=np.int64)
        fits = np.zeros(len(rows), dtype=bool)
        searching = np.flatnonzero(chances[:, -1] > 1e-4 * FULL)
        for _ in range(_TRIES):
            draws = rng.random(len(searching)) * chances[searching, -1]
            step = (chances[searching] <= draws[:, None]).sum(axis=1)
            stroke = np.stack([heads[searching, step], 360 + step], axis=1)
            free = self._free(canvas, rows[searching], stroke)
            strokes[searching[free]], fits[searching[free]] = stroke[free], True
            searching = searching[~free]
        return strokes, pivots, fits

    def _first_pivot(self, start: np.ndarray, patches: np.ndarray) -> np.ndarray:
        """The point, int64 [rows, 2], that a first stroke would have come from."""
        angle = self.paddles.angles[patches]
        direction = np.stack([np.sin(angle), np.cos(angle)], axis=1)
        head = np.ceil(start + self.parameters.paddle_length * direction)
        return np.ceil(head - (self.parameters.paddle_length + self.margin) * direction).astype(np.int64)

    def _place(self, pixels: np.ndarray) -> np.ndarray:
        """(y, x) in the image of pixels of the canvas."""
        return np.stack(np.divmod(pixels, self.width), axis=1) - self.border

    def _free(self, canvas: _Canvas, rows: np.ndarray, strokes: np.ndarray) -> np.ndarray:
        """Whether each stroke, (pixel, patch), touches nothing, bool [rows]."""
        offsets, masks = (kind[strokes[:, 1]] for kind in self.masks)
        taken = canvas.taken.take(_places(canvas.taken, rows, strokes[:, :1] + offsets))
        return np.all(taken.astype(np.uint16) + masks < _TOUCH, axis=1)

    def _occupy(self, canvas: _Canvas, rows: np.ndarray, strokes: np.ndarray) -> list[_Mark]:
        return [_lay(canvas.taken, rows, strokes, self.masks), _lay(canvas.near, rows, strokes, self.grown)]

    def _rendered(
        self, contours: np.ndarray, distractors: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Grey images, uint8 [n, side²], as bright as possible."""
        parameters, count = self.parameters, len(contours)
        rows = np.arange(count)
        layers = []
        for strokes in (contours, distractors):
            layer = np.zeros((count, self.width**2), dtype=np.uint8)
            for stroke in np.moveaxis(strokes.reshape(count, -1, 2), 1, 0):
                there = stroke[:, 1] >= 0
                _lay(layer, rows[there], stroke[there], self.strokes)
            layers.append(layer)
        image = np.maximum(
            layers[0] * np.float32(parameters.contour_contrast), layers[1] * np.float32(parameters.distractor_contrast)
        )
        begin = rng.integers(0, 2, count)
        end = np.where(labels == 1, begin, 1 - begin)
        dot = marker(parameters.marker_radius, parameters.antialias)
        along = np.arange(len(dot)) - len(dot) // 2
        around = (along[:, None] * self.width + along).reshape(-1)
        for pixel in (contours[rows, begin, 0, 0], contours[rows, end, -1, 0]):
            where = (rows[:, None], pixel[:, None] + around)
            image[where] = np.maximum(image[where], dot.reshape(-1))
        inner = slice(self.border, self.border + parameters.side)
        image = image.reshape(count, self.width, self.width)[:, inner, inner].reshape(count, -1)
        return np.rint(image * (FULL / image.max(axis=1, keepdims=True))).astype(np.uint8)


def _lay(layer: np.ndarray, rows: np.ndarray, strokes: np.ndarray, patches: tuple[np.ndarray, np.ndarray]) -> _Mark:
    """Put the patch of each stroke, (pixel, patch), on its row of `layer`; the larger value stays."""
    offsets, values = (kind[strokes[:, 1]] for kind in patches)
    places = _places(layer, rows, strokes[:, :1] + offsets)
    before = layer.reshape(-1).take(places)
    layer.reshape(-1)[places] = np.maximum(before, values)
    return _Mark(layer, rows, places, before)


def _places(layer: np.ndarray, rows: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Pixels [rows, Q] of rows of `layer`, counted through all rows: `take` is faster than an index in two parts."""
    assert layer.flags.c_contiguous  # `reshape` is a view only then
    return (rows * layer.shape[1])[:, None] + pixels


def _erase(marks: list[_Mark], rows: np.ndarray, count: int) -> None:
    """Undo marks on some of the `count` rows, the last ones first."""
    if not len(rows):
        return
    wanted = np.zeros(count, dtype=bool)
    wanted[rows] = True
    for mark in reversed(marks):
        here = wanted[mark.rows]
        mark.layer.reshape(-1)[mark.places[here]] = mark.before[here]


def draw(parameters: PathfinderParameters, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` images: (uint8 [n, side²], row by row; labels uint8 [n], half of them 1), every margin equally often.

    Raises ValueError where `count` is no multiple of twice the number of margins.
    """
    margins = parameters.paddle_margins
    if count < 1 or count % (2 * len(margins)):
        raise ValueError(f"count: got {count}; give a multiple of {2 * len(margins)}")
    parts = [Painter(parameters, margin).images(count // len(margins), rng) for margin in margins]
    order = rng.permutation(count)
    images, labels = (np.concatenate(kind)[order] for kind in zip(*parts, strict=True))
    return images, labels
