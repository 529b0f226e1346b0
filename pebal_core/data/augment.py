"""Geometric and photometric augmentation of one scene, drawn from an explicit random generator."""

from __future__ import annotations

import cv2
import numpy as np

from ..labels import VOID


def random_scale(
    image: np.ndarray, labels: np.ndarray, low: float, high: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Resize by a factor uniform in its logarithm on [low, high]: bilinear for the image, nearest for the labels."""
    factor = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    shrink = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=shrink), cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)


def random_crop(
    image: np.ndarray, labels: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Crop height×width at a uniform position; where the scene is smaller, pad with black and void."""
    missing = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if any(missing):
        border = (0, missing[0], 0, missing[1])
        image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        labels = cv2.copyMakeBorder(labels, *border, cv2.BORDER_CONSTANT, value=(VOID,))
    top = int(rng.integers(image.shape[0] - height + 1))
    left = int(rng.integers(image.shape[1] - width + 1))
    window = slice(top, top + height), slice(left, left + width)
    return image[window], labels[window]


def random_mirror(
    image: np.ndarray, labels: np.ndarray, probability: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Swap left and right."""
    if rng.random() < probability:
        return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(labels[:, ::-1])
    return image, labels


def random_color(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Vary contrast, brightness, saturation and white balance; ``strength`` 0 leaves the image as it is."""
    if strength == 0:
        return image
    contrast = rng.uniform(1 - strength, 1 + strength)
    saturation = rng.uniform(1 - strength, 1 + strength)
    brightness = rng.uniform(-strength, strength) * 128
    balance = rng.uniform(1 - strength / 4, 1 + strength / 4, 3)
    # One affine map of the RGB values: grey mixing for saturation, then gain per channel, then offset.
    grey = np.full((3, 1), 1.0) @ np.array([[0.299, 0.587, 0.114]])
    matrix = np.diag(balance * contrast) @ (saturation * np.eye(3) + (1 - saturation) * grey)
    offset = 128 * (1 - contrast) + brightness
    affine = np.hstack([matrix, np.full((3, 1), offset)]).astype(np.float32)
    return cv2.transform(image, affine)  # saturates at 0 and 255
