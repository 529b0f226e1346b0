"""The ego mask of a model: the parts of every image that move with the camera and raise no alarm.

It is kept in the model file as a small PNG in base64 (0 = scene, 255 = ego) and scaled to the image it is used on.

    ignore = ego_mask(detector.info, *image.shape[:2])      # H×W bool, or None where the model has no mask
"""

from __future__ import annotations

import base64
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from .errors import PebalError
from .model_file import ModelInfo

LONG_SIDE = 480
"""Pixels of the stored mask's longer side: finer than the network's own resolution, and a few kilobytes as a PNG."""


def ego_mask(info: ModelInfo, height: int, width: int) -> np.ndarray | None:
    """The pixels of an image H×W to leave out, bool and read-only; None where the model has no mask.

    Raises:
        PebalError: the mask is damaged.
    """
    return _scaled(info.ego_mask, height, width) if info.ego_mask else None


@lru_cache(maxsize=8)
def _scaled(text: str, height: int, width: int) -> np.ndarray:
    mask = decode_mask(text)
    scaled: np.ndarray = cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    scaled.flags.writeable = False
    return scaled


def encode_mask(mask: np.ndarray) -> str:
    """H×W bool → text; reduced to `LONG_SIDE`, where a pixel is ego if any of its part is."""
    factor = min(1.0, LONG_SIDE / max(mask.shape))
    if factor < 1:
        size = max(1, round(mask.shape[1] * factor)), max(1, round(mask.shape[0] * factor))
        mask = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 1e-3
    return base64.b64encode(cv2.imencode(".png", mask.astype(np.uint8) * np.uint8(255))[1].tobytes()).decode("ascii")


def decode_mask(text: str) -> np.ndarray:
    """Text → h×w bool.

    Raises:
        PebalError: the text is no PNG of one channel.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise PebalError(f"The ego mask of the model is damaged ({error}); adapt the model again.") from error
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) if content else None
    if pixels is None:
        raise PebalError("The ego mask of the model is damaged (it is no PNG); adapt the model again.")
    return pixels > 127


def read_mask(path: Path) -> np.ndarray:
    """H×W bool from an image file: bright pixels are ego.

    Raises:
        PebalError: the file cannot be read, or everything in it is ego.
    """
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise PebalError(f"The ego mask {path} cannot be read; give a black image with white where the vehicle is.")
    mask = pixels > 127
    if mask.all():
        raise PebalError(
            f"The ego mask {path} is white everywhere; black pixels are the scene, white ones the vehicle."
        )
    return mask
