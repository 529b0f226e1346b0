"""Geometric and photometric augmentation of one scene, which is an image H×W×3 uint8 RGB with labels H×W uint8.

Randomness comes from an explicit generator.
"""

from __future__ import annotations

import cv2
import numpy as np

from ..labels import VOID


def random_scale(
    image: np.ndarray, labels: np.ndarray, low: float, high: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Resize by a random factor, log-uniform on [low, high].

    Examples:
        >>> scene = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
        >>> image, labels = random_scale(*scene, 0.5, 2.0, np.random.default_rng(0))
        >>> image.shape, labels.shape
        ((48, 73, 3), (48, 73))
    """
    return scale_scene(image, labels, float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def scale_scene(image: np.ndarray, labels: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Resize height and width by a factor.

    Examples:
        >>> image, labels = np.zeros((2, 4, 3), np.uint8), np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.uint8)
        >>> scale_scene(image, labels, 0.5)[1].tolist()
        [[0, 1]]
    """
    height, width = image.shape[:2]
    return resize_scene(image, labels, max(1, round(height * factor)), max(1, round(width * factor)))


def resize_scene(image: np.ndarray, labels: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Resize the image bilinearly (by area averaging if it shrinks) and the labels by nearest neighbour.

    Examples:
        >>> image, labels = np.full((2, 2, 3), 90, np.uint8), np.array([[0, 1], [0, 1]], np.uint8)
        >>> image, labels = resize_scene(image, labels, height=1, width=4)
        >>> image.shape, labels.tolist()
        ((1, 4, 3), [[0, 0, 1, 1]])
    """
    if image.shape[:2] == (height, width):
        return image, labels
    how = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    size = (width, height)
    return cv2.resize(image, size, interpolation=how), cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)


def random_crop(
    image: np.ndarray,
    labels: np.ndarray,
    height: int,
    width: int,
    rng: np.random.Generator,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """Crop height×width at a uniformly random position; a smaller scene is padded with `fill` (RGB) and void.

    Examples:
        >>> image, labels = np.zeros((2, 4, 3), np.uint8), np.array([[0, 1, 2, 3], [4, 5, 6, 7]], np.uint8)
        >>> random_crop(image, labels, height=3, width=2, rng=np.random.default_rng(1))[1].tolist()
        [[1, 2], [5, 6], [255, 255]]
    """
    top, left = draw_window(labels.shape, height, width, rng)
    return cut_window(image, labels, top, left, height, width, fill)


def draw_window(shape: tuple[int, ...], height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a uniformly random window inside a scene; 0 along a side on which the scene is smaller.

    Examples:
        >>> draw_window((480, 640), height=480, width=600, rng=np.random.default_rng(0))
        (0, 34)
    """
    return int(rng.integers(max(0, shape[0] - height) + 1)), int(rng.integers(max(0, shape[1] - width) + 1))


def cut_window(
    image: np.ndarray,
    labels: np.ndarray,
    top: int,
    left: int,
    height: int,
    width: int,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a window height×width from a scene and pad it at the bottom and right with `fill` (RGB) and void.

    Examples:
        >>> image, labels = np.zeros((2, 3, 3), np.uint8), np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
        >>> cut_window(image, labels, top=1, left=1, height=2, width=2)[1].tolist()
        [[4, 5], [255, 255]]
    """
    window = slice(top, top + height), slice(left, left + width)
    image, labels = image[window], labels[window]
    border = (0, height - labels.shape[0], 0, width - labels.shape[1])
    if any(border):
        image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=fill)
        labels = cv2.copyMakeBorder(labels, *border, cv2.BORDER_CONSTANT, value=(VOID,))
    return image, labels


def random_mirror(
    image: np.ndarray, labels: np.ndarray, probability: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Swap left and right with a probability.

    Examples:
        >>> image, labels = np.zeros((1, 3, 3), np.uint8), np.array([[0, 1, 2]], np.uint8)
        >>> random_mirror(image, labels, probability=1.0, rng=np.random.default_rng(0))[1].tolist()
        [[2, 1, 0]]
    """
    if rng.random() < probability:
        return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(labels[:, ::-1])
    return image, labels


def random_color(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Vary contrast, brightness, saturation and white balance; ``strength`` 0 leaves the image unchanged.

    Examples:
        >>> image = np.full((1, 1, 3), 100, np.uint8)
        >>> random_color(image, strength=0.3, rng=np.random.default_rng(0)).tolist()
        [[[55, 68, 69]]]
    """
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


def random_camera(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Imitate another camera by gamma, blur, noise and JPEG artefacts; ``strength`` is the probability of each.

    Examples:
        >>> image = np.full((8, 8, 3), 100, np.uint8)
        >>> changed = random_camera(image, 1.0, np.random.default_rng(0))
        >>> changed.shape, bool(changed.std() > 0), random_camera(image, 0.0, np.random.default_rng(0)) is image
        ((8, 8, 3), True, True)
    """
    if rng.random() < strength:
        curve = 255 * (np.arange(256) / 255) ** np.exp(rng.uniform(-0.5, 0.5))
        image = cv2.LUT(image, np.rint(curve).astype(np.uint8))
    if rng.random() < strength:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.2))
    if rng.random() < strength:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1, 10))
        image = (image + noise).clip(0, 255).astype(np.uint8)
    if rng.random() < strength:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))]
        decoded = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
        assert decoded is not None
        image = decoded
    return image
