"""Makes, varies and pastes objects, which are cut from images or are random shapes with random textures."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .augment import random_color


@dataclass(frozen=True)
class Cutout:
    """An object: image h×w×3 uint8 RGB, opacity h×w float32 in [0, 1], and labels h×w uint8."""

    image: np.ndarray
    opacity: np.ndarray
    labels: np.ndarray


def cut_out(image: np.ndarray, mask: np.ndarray, labels: np.ndarray | int) -> Cutout:
    """Cut the bounding box of a mask out of an image.

    Args:
        image: H×W×3 uint8 RGB.
        mask: H×W bool, not empty.
        labels: H×W uint8, or one label for the whole object.

    Examples:
        >>> image, mask = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), bool)
        >>> mask[1, 2:4] = mask[2, 2] = True
        >>> cutout = cut_out(image, mask, 254)
        >>> cutout.opacity.tolist(), cutout.labels.tolist()
        ([[1.0, 1.0], [1.0, 0.0]], [[254, 254], [254, 254]])
    """
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    window = slice(top, top + height), slice(left, left + width)
    kept = np.full((height, width), labels, np.uint8) if isinstance(labels, int) else labels[window]
    return Cutout(image[window], mask[window].astype(np.float32), kept)


def random_blob(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a random shape that fills a box (height×width bool), either a convex polygon or a smooth blob.

    Examples:
        >>> blob = random_blob(30, 40, np.random.default_rng(0))
        >>> blob.shape, blob.dtype, bool(blob.any())
        ((30, 40), dtype('bool'), True)
    """
    if rng.random() < 0.3:  # a polygon
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        corners = np.stack([np.cos(angles), np.sin(angles)], 1)
        corners = (corners - corners.min(0)) / np.maximum(np.ptp(corners, axis=0), 1e-3)
        polygon = np.round(corners * (width - 1, height - 1)).astype(np.int32)
        return cv2.fillConvexPoly(np.zeros((height, width), np.uint8), polygon, (1,)) > 0
    cells = int(rng.integers(3, 8))
    noise = cv2.resize(rng.standard_normal((cells, cells)).astype(np.float32), (64, 64), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    field = (0.6 * noise + 1.4 - 2.4 * np.hypot(x, y)).astype(np.float32)
    field[28:36, 28:36] = 1  # never empty
    left, top, w, h = cv2.boundingRect((field > 0).astype(np.uint8))
    return cv2.resize(field[top : top + h, left : left + w], (width, height), interpolation=cv2.INTER_LINEAR) > 0


def random_texture(source: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a texture, height×width×3 uint8: a flat colour with noise, or a window of an image.

    The window is enlarged if the image is too small.

    Examples:
        >>> grey = np.full((10, 10, 3), 90, np.uint8)
        >>> texture = random_texture(grey, 20, 30, np.random.default_rng(0))  # a window of the image
        >>> texture.shape, np.unique(texture).tolist()
        ((20, 30, 3), [90])
    """
    if rng.random() < 0.3:
        flat = rng.integers(0, 256, 3) + rng.normal(0, rng.uniform(0, 25), (height, width, 1))
        return flat.clip(0, 255).astype(np.uint8)
    factor = max(1.0, height / source.shape[0], width / source.shape[1])
    h, w = max(1, int(height / factor)), max(1, int(width / factor))
    top, left = int(rng.integers(source.shape[0] - h + 1)), int(rng.integers(source.shape[1] - w + 1))
    return cv2.resize(source[top : top + h, left : left + w], (width, height), interpolation=cv2.INTER_LINEAR)


def join_pieces(source: np.ndarray, label: int, rng: np.random.Generator) -> Cutout:
    """Make an object of one to three overlapping pieces of an image in other colours and orientations.

    Such an object has the texture of a real scene without showing anything that belongs there. The idea comes from
    CutPaste (Li et al., CVPR 2021).

    Args:
        source: H×W×3 uint8 RGB.
        label: the label of the object.
        rng: the generator.

    Examples:
        >>> scene = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
        >>> made = join_pieces(scene, 254, np.random.default_rng(0))
        >>> made.image.shape[:2] == made.opacity.shape, np.unique(made.opacity).tolist()
        (True, [0.0, 1.0])
    """
    height, width = (int(side) for side in rng.integers(64, 160, 2))
    mask = random_blob(height, width, rng)
    image = _recolored_piece(source, height, width, rng)  # also outside the mask, so that no edge has a foreign rim
    for _ in range(int(rng.integers(3))):
        h, w = (int(side * rng.uniform(0.3, 0.8)) for side in (height, width))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        window, inside = (slice(top, top + h), slice(left, left + w)), random_blob(h, w, rng)
        image[window][inside] = _recolored_piece(source, h, w, rng)[inside]
        mask[window] |= inside
    return cut_out(image, mask, label)


def _recolored_piece(source: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a window of an image, turned and in another hue and brightness, height×width×3 uint8."""
    factor = rng.uniform(0.5, 2)
    sides = [int(np.clip(side / factor, min(8, most), most)) for side, most in zip((height, width), source.shape)]
    top, left = (int(rng.integers(most - side + 1)) for side, most in zip(sides, source.shape))
    piece = np.rot90(source[top : top + sides[0], left : left + sides[1]], int(rng.integers(1, 4)))
    hsv = cv2.cvtColor(np.ascontiguousarray(piece), cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(20, 160)) % 180  # OpenCV's hue has 180 steps
    hsv[..., 1] = hsv[..., 1] * rng.uniform(0.2, 1.4) + rng.uniform(0, 40)
    hsv[..., 2] = (hsv[..., 2] - 128) * rng.uniform(0.6, 1.6) + 128 + rng.uniform(-60, 60)
    colored = cv2.cvtColor(hsv.clip(0, (179, 255, 255)).astype(np.uint8), cv2.COLOR_HSV2RGB)
    return cv2.resize(colored, (width, height), interpolation=cv2.INTER_LINEAR)


def resize(cutout: Cutout, height: int) -> Cutout:
    """Scale to a height in pixels and keep the aspect ratio; shrinking averages areas.

    Examples:
        >>> cutout = cut_out(np.zeros((40, 60, 3), np.uint8), np.ones((40, 60), bool), 254)
        >>> resize(cutout, 10).opacity.shape
        (10, 15)
    """
    factor = height / cutout.image.shape[0]
    size = max(2, round(cutout.image.shape[1] * factor)), max(2, height)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return Cutout(
        cv2.resize(cutout.image, size, interpolation=how),
        cv2.resize(cutout.opacity, size, interpolation=how),
        cv2.resize(cutout.labels, size, interpolation=cv2.INTER_NEAREST),
    )


def vary(cutout: Cutout, color: float, tilt: float, rng: np.random.Generator) -> Cutout:
    """Mirror with probability ½, rotate by up to ±`tilt` degrees, and vary the colours by the strength `color`.

    Examples:
        >>> cutout = cut_out(np.zeros((40, 60, 3), np.uint8), np.ones((40, 60), bool), 254)
        >>> opacity = vary(cutout, color=0.0, tilt=20.0, rng=np.random.default_rng(0)).opacity
        >>> opacity.shape, float(opacity[0, 0]), float(opacity[25, 33])  # the rotated box has transparent corners
        ((50, 66), 0.0, 1.0)
    """
    image, opacity, labels = cutout.image, cutout.opacity, cutout.labels
    if rng.random() < 0.5:
        image, opacity, labels = (np.ascontiguousarray(a[:, ::-1]) for a in (image, opacity, labels))
    angle = rng.uniform(-tilt, tilt)
    if abs(angle) > 1:
        height, width = opacity.shape
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
        cos, sin = np.abs(matrix[0, :2])
        size = int(height * sin + width * cos) + 1, int(height * cos + width * sin) + 1
        matrix[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2
        image = cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        opacity = cv2.warpAffine(opacity, matrix, size)
        labels = cv2.warpAffine(labels, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return Cutout(random_color(image, color, rng), opacity, labels)


def soften(cutout: Cutout, blur: float, edge: float) -> Cutout:
    """Blur the image and the edge of the opacity, by sigmas in pixels.

    Examples:
        >>> cutout = cut_out(np.zeros((9, 9, 3), np.uint8), np.ones((9, 9), bool), 254)
        >>> soft = soften(cutout, blur=0.0, edge=1.0).opacity
        >>> bool(soft[4, 0] < soft[4, 1] < soft[4, 4])
        True
    """
    image, opacity = cutout.image, cutout.opacity
    if blur > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    if edge > 0.2:
        opacity = cv2.GaussianBlur(opacity, (0, 0), edge, borderType=cv2.BORDER_CONSTANT)
    return Cutout(image, opacity, cutout.labels)


def harmonise(cutout: Cutout, surroundings: np.ndarray, strength: float) -> Cutout:
    """Shift mean colour and contrast towards the surrounding pixels.

    Args:
        cutout: the object.
        surroundings: pixels around it, N×3.
        strength: share of the difference to remove, in [0, 1].

    Examples:
        >>> cutout = cut_out(np.full((4, 4, 3), 200, np.uint8), np.ones((4, 4), bool), 254)
        >>> harmonise(cutout, surroundings=np.full((8, 3), 100), strength=0.5).image[0, 0].tolist()
        [150, 150, 150]
    """
    inside = cutout.opacity > 0.5
    if not inside.any() or surroundings.size == 0:
        return cutout
    pixels = cutout.image[inside].astype(np.float32)
    mean, spread = pixels.mean(0), pixels.std(0).mean() + 1
    goal, contrast = surroundings.mean(0), surroundings.std(0).mean() + 1
    gain = 1 + strength * (float(np.clip(contrast / spread, 0.5, 1.5)) - 1)
    moved = (cutout.image - mean) * gain + mean + strength * (goal - mean)
    return Cutout(moved.clip(0, 255).astype(np.uint8), cutout.opacity, cutout.labels)


def paste(image: np.ndarray, labels: np.ndarray, cutout: Cutout, top: int, left: int) -> None:
    """Blend a cut-out into image and labels in place; parts outside the scene are cut off.

    A pixel takes the object's label where its opacity exceeds ½.

    Examples:
        >>> image, labels = np.zeros((3, 4, 3), np.uint8), np.zeros((3, 4), np.uint8)
        >>> paste(image, labels, cut_out(np.full((2, 2, 3), 200, np.uint8), np.ones((2, 2), bool), 254), top=2, left=1)
        >>> image[2, :, 0].tolist(), labels[2].tolist()
        ([0, 200, 200, 0], [0, 254, 254, 0])
    """
    height, width = cutout.opacity.shape
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(image.shape[0], top + height), min(image.shape[1], left + width)
    if y0 >= y1 or x0 >= x1:
        return
    source = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    opacity = cutout.opacity[source]
    under = image[y0:y1, x0:x1]
    blended = under + opacity[..., None] * (cutout.image[source].astype(np.float32) - under)
    image[y0:y1, x0:x1] = np.rint(blended).astype(np.uint8)
    inside = opacity > 0.5
    labels[y0:y1, x0:x1][inside] = cutout.labels[source][inside]
