"""Pathfinder's strokes ("paddles") as small patches of pixels, made once for each direction.

T: patches, squares of side 2·reach + 1 whose middle is the stroke's first pixel.  Q: pixels of a patch that are not empty.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

FULL = 255  # a pixel that is wholly covered


@dataclass(frozen=True)
class PathfinderParameters:
    """The names are those of the generator of Linsley et al. (2018), lengths in pixels."""

    side: int  # window_size
    seed_distance: int  # between the starts of the two contours
    marker_radius: float
    num_distractors: int  # num_distractor_snakes
    paddle_length: int
    paddle_thickness: float
    paddle_margins: tuple[int, ...]  # paddle_margin_list: gaps; one for each image
    continuity: float  # 1: a stroke turns by up to 90° against the one before; 1.8: by up to 50°
    contour_contrast: float  # snake_contrast · paddle_contrast
    distractor_contrast: float  # snake_contrast
    block: int  # strokes of both contours that are tried again together; ours
    foresight: bool  # whether contours avoid what lies straight ahead; ours
    contour_length: int = 14  # strokes
    distractor_length: int = 4  # contour_length // 3
    padding: int = 1  # free border
    antialias: int = 2  # antialias_scale


@dataclass(frozen=True)
class Spots:
    """The pixels of patches that are not empty; shorter lists repeat their last pixel."""

    places: np.ndarray  # int64 [T, Q, 2]: (y, x) from the stroke's first pixel
    values: np.ndarray  # uint8 [T, Q]


@dataclass(frozen=True)
class Paddles:
    """The patches of a margin: first one for each whole degree, then one for each step that a contour may take."""

    reach: int
    strokes: Spots  # brightness
    masks: Spots  # the stroke and its margin
    grown: Spots  # the mask and a margin more
    angles: (
        np.ndarray
    )  # float64 [T]: the direction a contour goes in; patches of steps are drawn backwards from their head
    steps: np.ndarray  # int64 [T - 360, 2]: from the pivot to the head, (y, x)


@functools.lru_cache(maxsize=8)
def paddles(parameters: PathfinderParameters, margin: int) -> Paddles:
    """The patches of `parameters` for strokes with a `margin`."""
    radius = parameters.paddle_length + margin
    around = np.arange(0.0, 2 * np.pi, 1.0 / radius)  # one pixel along the circle
    steps = np.unique(np.floor(radius * np.stack([np.sin(around), np.cos(around)], axis=1)).astype(np.int64), axis=0)
    ahead = np.arctan2(steps[:, 0], steps[:, 1])
    degrees = np.deg2rad(np.arange(-180, 180))
    drawn = [_patch(parameters, margin, angle) for angle in (*degrees, *(ahead + np.pi))]
    strokes, masks = (np.stack(kind) for kind in zip(*drawn, strict=True))
    angles = np.concatenate([degrees, ahead])
    # Masks decide at 0.3 and 1.8: what hardly covers a pixel is left out.
    return Paddles(
        strokes.shape[1] // 2, _spots(strokes, 1), _spots(masks, 8), _spots(_grown(masks, margin), 8), angles, steps
    )


def _spots(patches: np.ndarray, least: int) -> Spots:
    """The pixels of `patches`, uint8 [T, side, side], that hold `least` or more."""
    middle = patches.shape[1] // 2
    found = [np.argwhere(patch >= least) for patch in patches]
    most = max(map(len, found))
    places = np.stack([np.pad(spots, ((0, most - len(spots)), (0, 0)), mode="edge") for spots in found])
    values = np.take_along_axis(
        patches.reshape(len(patches), -1), places[..., 0] * patches.shape[2] + places[..., 1], axis=1
    )
    return Spots(places - middle, values)


def _patch(parameters: PathfinderParameters, margin: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """(stroke, mask) of a stroke from the middle in direction `angle`, uint8 [2·reach + 1, 2·reach + 1]."""
    from PIL import Image, ImageDraw
    from scipy.ndimage import distance_transform_edt

    scale, length = parameters.antialias, parameters.paddle_length
    near = length + int(np.ceil(parameters.paddle_thickness)) + margin
    middle, size = near * scale, 2 * near * scale + 1
    large = Image.new("L", (size, size))
    head = [int(np.ceil(middle + length * scale * part)) for part in (np.cos(angle), np.sin(angle))]
    width = round(parameters.paddle_thickness * scale)
    ImageDraw.Draw(large).line([(middle, middle), (head[0], head[1])], fill=FULL, width=width)
    away: Any = distance_transform_edt(np.asarray(large) == 0)  # pixels from the stroke
    covered = np.where(away <= margin * scale, FULL, 0).astype(np.uint8)
    small = (2 * near + 1, 2 * near + 1)
    stroke, mask = (
        np.pad(np.asarray(image.resize(small, Image.Resampling.LANCZOS)), margin)
        for image in (large, Image.fromarray(covered))
    )
    return stroke, mask


def _grown(masks: np.ndarray, margin: int) -> np.ndarray:
    """The largest value within `margin` pixels of each pixel, uint8 [T, side, side]; the patches' borders are empty."""
    grown = masks.copy()
    for y in range(-margin, margin + 1):
        for x in range(-margin, margin + 1):
            if x**2 + y**2 <= margin**2:
                np.maximum(grown, np.roll(masks, (y, x), axis=(1, 2)), out=grown)
    return grown


@functools.lru_cache(maxsize=8)
def marker(radius: float, antialias: int) -> np.ndarray:
    """A dot round the middle pixel, uint8 [odd, odd]."""
    from PIL import Image

    reach = int(np.ceil(radius)) + 3
    along = np.arange((2 * reach + 1) * antialias) - reach * antialias
    y, x = along[:, None], along
    large = Image.fromarray((x**2 + y**2 <= (radius * antialias) ** 2).astype(np.uint8) * np.uint8(FULL))
    return np.asarray(large.resize((2 * reach + 1, 2 * reach + 1), Image.Resampling.LANCZOS))
