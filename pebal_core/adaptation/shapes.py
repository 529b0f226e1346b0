"""Makes the outliers for `pebal adapt` where no data set of objects is given.

They are random shapes with synthetic textures, stored in the layout of ``pebal prepare-coco``.
"""

from __future__ import annotations

import json
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


def write_shapes(folder: Path, seed: int = 0) -> None:
    """Write the images, masks and index of all families to a folder.

    Args:
        folder: the folder to write.
        seed: seed of all shapes.

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
    for order, family in enumerate(FAMILIES):
        for number in range(PER_FAMILY):
            rng = np.random.default_rng([seed, order, number])
            height, width = (int(n) for n in rng.integers(SIDE // 2, SIDE, 2))
            image, mask = _draw_texture(family, height, width, rng), random_blob(height, width, rng)
            name = f"{family}_{number:02d}.png"
            cv2.imwrite(str(folder / "images" / name), image[..., ::-1])
            cv2.imwrite(str(folder / "masks" / name), mask.astype(np.uint8))
            box = [int(n) for n in cv2.boundingRect(mask.astype(np.uint8))]
            entries.append({"file": name, "instances": [{"number": 1, "category": family, "box": box}]})
    index = {"split": "shapes", "rule": "family", "image_folder": str(folder / "images"), "images": entries}
    write_atomically(folder / INDEX, json.dumps(index).encode())


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
