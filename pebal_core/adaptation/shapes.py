"""Makes the outliers for `pebal adapt` where no data set of objects is given.

They are random shapes. Some have synthetic textures. Others consist of pieces of the user's own frames in other colours
and orientations, as in CutPaste (Li et al., CVPR 2021), so that the model does not learn that only synthetic textures
are foreign. All are stored in the layout of ``pebal prepare-coco``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..data.coco import INDEX
from ..data.cutouts import random_blob
from ..files import write_atomically

FAMILIES = ("noise", "stripes", "checks", "cells", "gradient", "scraps")
HELD_BACK = ("cells", "scraps")
"""Families that are used for evaluation only."""
PER_FAMILY = 24
SIDE = 160
PIECE_FAMILIES = 6
"""Number of families that are made of pieces of frames, so that they are drawn as often as all synthetic ones."""


def write_shapes(folder: Path, seed: int = 0, frames: Sequence[np.ndarray] = ()) -> None:
    """Write the images, masks and index of all families to a folder.

    Args:
        folder: the folder to write.
        seed: seed of all shapes.
        frames: H×W×3 uint8 RGB, of which `PIECE_FAMILIES` more families are made; empty leaves those families out.

    Examples:
        >>> import tempfile
        >>> from pebal_core.data.coco import OutlierSet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_shapes(Path(folder))
        ...     len(OutlierSet.open(folder))  # 24 of each of the six families
        144
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    entries = []
    pieces = [f"pieces {number}" for number in range(PIECE_FAMILIES if len(frames) else 0)]
    for order, family in enumerate((*FAMILIES, *pieces)):
        for number in range(PER_FAMILY):
            rng = np.random.default_rng([seed, order, number])
            height, width = (int(n) for n in rng.integers(SIDE // 2, SIDE, 2))
            if family in FAMILIES:
                image, mask = _draw_texture(family, height, width, rng), random_blob(height, width, rng)
            else:
                image, mask = _join_pieces(frames, height, width, rng)
            name = f"{family.replace(' ', '')}_{number:02d}.png"
            cv2.imwrite(str(folder / "images" / name), image[..., ::-1])
            cv2.imwrite(str(folder / "masks" / name), mask.astype(np.uint8))
            box = [int(n) for n in cv2.boundingRect(mask.astype(np.uint8))]
            entries.append({"file": name, "instances": [{"number": 1, "category": family, "box": box}]})
    index = {"split": "shapes", "rule": "family", "image_folder": str(folder / "images"), "images": entries}
    write_atomically(folder / INDEX, json.dumps(index).encode())


def _join_pieces(
    frames: Sequence[np.ndarray], height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One to three overlapping shapes, each a piece of a frame in other colours and another orientation.

    Returns:
        height×width×3 uint8 RGB, and the mask height×width bool.
    """
    image, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
    for part in range(int(rng.integers(1, 4))):
        h, w = (height, width) if part == 0 else (int(side * rng.uniform(0.3, 0.8)) for side in (height, width))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        window = slice(top, top + h), slice(left, left + w)
        inside = random_blob(h, w, rng)
        image[window][inside] = _recolored_piece(frames, h, w, rng)[inside]
        mask[window] |= inside
    return image, mask


def _recolored_piece(frames: Sequence[np.ndarray], height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A turned window of a random frame with another hue and brightness, height×width×3 uint8 RGB."""
    frame = frames[int(rng.integers(len(frames)))]
    factor = rng.uniform(0.5, 2)  # of the size in the frame
    sides = [int(np.clip(side / factor, 8, least)) for side, least in zip((height, width), frame.shape)]
    top, left = (int(rng.integers(least - side + 1)) for side, least in zip(sides, frame.shape))
    piece = np.rot90(frame[top : top + sides[0], left : left + sides[1]], int(rng.integers(1, 4)))
    hsv = cv2.cvtColor(np.ascontiguousarray(piece), cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(20, 160)) % 180
    hsv[..., 1] = hsv[..., 1] * rng.uniform(0.2, 1.4) + rng.uniform(0, 40)
    hsv[..., 2] = (hsv[..., 2] - 128) * rng.uniform(0.6, 1.6) + 128 + rng.uniform(-60, 60)
    colored = cv2.cvtColor(hsv.clip(0, (179, 255, 255)).astype(np.uint8), cv2.COLOR_HSV2RGB)
    return cv2.resize(colored, (width, height), interpolation=cv2.INTER_LINEAR)


def _draw_texture(family: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Two colours, mixed by a pattern and lit from one side.

    Args:
        family: one of `FAMILIES`.

    Returns:
        height×width×3 uint8 RGB.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    period, angle = rng.uniform(6, 40), rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    if family == "noise":
        pattern = np.sum([4 * _noise(height, width, cells, rng) / cells for cells in (4, 8, 16, 32)], axis=0)
    elif family == "stripes":
        pattern = np.sin(along * 2 * np.pi / period) * rng.uniform(0.5, 3)
    elif family == "checks":
        pattern = np.sign(np.sin(along * np.pi / period) * np.sin(across * np.pi / period))
    elif family == "cells":
        points = rng.uniform(0, 1, (int(rng.integers(8, 40)), 2)) * (height, width)
        distance = np.min([np.hypot(y - a, x - b) for a, b in points], axis=0)
        pattern = distance / distance.max() * 4 - 2
    elif family == "gradient":
        pattern = (along - along.mean()) / (np.ptp(along) + 1) * 4
    else:
        pattern = np.sign(_noise(height, width, int(rng.integers(5, 14)), rng)) * rng.uniform(0.3, 1.5)
    share = 1 / (1 + np.exp(-2 * pattern[..., None]))
    first, second = rng.uniform(0, 255, (2, 3))
    light = 1 + rng.uniform(0, 0.5) * ((across - across.mean()) / (np.ptp(across) + 1))[..., None]
    grain = rng.normal(0, rng.uniform(0, 12), (height, width, 1))
    return ((first * share + second * (1 - share)) * light + grain).clip(0, 255).astype(np.uint8)


def _noise(height: int, width: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    grid = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
