"""Finds the ego mask: image regions that move with the camera (bonnet, ornament, rectified borders, dirt on the lens).

While the vehicle drives, the scene flows through the image and everything fixed to the camera stays in place. A pixel
counts as ego if it never changes, or if it is part of an edge, near the bottom or the border of the image, that stays
in place in nine of ten frames. Pixels below such an edge at the bottom of the image are ego, too. The mask is kept
small rather than large, because a missed object is worse than a false alarm on the bonnet. On a straight road the
borders of the road stay in place as well, so pixels that change and are mostly labelled road or sidewalk are never ego.

    mask = find_ego(images, labels)      # H×W bool
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ..class_list import ClassList, cityscapes_classes
from ..errors import PebalError

SIDE = 240
"""Length in pixels of the longer side after the images are scaled down for the comparison."""
FEWEST = 12
"""Smallest number of images with which a fixed region can be told from chance."""
STILL = 6.0
"""Smallest change in grey levels that shows motion; a smaller one is camera noise or a vehicle at rest."""
BONNET = 0.15
"""Share of the image height, from the bottom, in which a fixed outline counts as the outline of a bonnet."""
ORNAMENT, BORDER = 0.3, 0.08
"""Fixed edges count within these shares of the image size, at the bottom and along the other borders respectively."""
SMALLEST = 0.0005
"""Regions smaller than this share of the image are attributed to chance."""


def find_ego(
    images: Sequence[np.ndarray], labels: Sequence[np.ndarray], classes: ClassList | None = None
) -> np.ndarray:
    """Find the pixels that stay in place over images of one camera on a moving vehicle.

    Args:
        images: H×W×3 uint8 RGB, all of one size, a few seconds apart.
        labels: classes (H×W) that the network predicts, one map per image.
        classes: the network's classes; None stands for the Cityscapes classes.

    Returns:
        H×W bool, true where the pixel moves with the camera.

    Raises:
        PebalError: there are too few images or images of several sizes, or the camera stands still.

    Examples:
        >>> images = list(np.random.default_rng(0).integers(0, 256, (FEWEST, 120, 160, 3), np.uint8))
        >>> for image in images:
        ...     image[110:] = 30  # a bonnet
        >>> mask = find_ego(images, [np.full((120, 160), 2, np.uint8)] * FEWEST)  # everything is labelled building
        >>> bool(mask[115].all()), bool(mask[:100].any())
        (True, False)
    """
    if len(images) < FEWEST:
        raise PebalError(f"The ego mask needs at least {FEWEST} different frames, but there are only {len(images)}.")
    if len({image.shape for image in images}) > 1:
        raise PebalError("The ego mask needs frames of one size. Use drives of one camera at one resolution.")
    height, width = images[0].shape[:2]
    factor = SIDE / max(height, width)
    size = round(width * factor), round(height * factor)
    small = np.stack(
        [cv2.resize(cv2.cvtColor(i, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA) for i in images]
    ).astype(np.float32)
    # Subtracting a blurred copy removes changes in brightness, which follow the exposure rather than the scene.
    edges = np.stack([cv2.GaussianBlur(i, (0, 0), 1) - cv2.GaussianBlur(i, (0, 0), 6) for i in small])
    centre = np.median(edges, axis=0)
    change = cv2.GaussianBlur(np.quantile(np.abs(edges - centre), 0.9, axis=0).astype(np.float32), (0, 0), 1.5)
    contrast = cv2.GaussianBlur(np.abs(centre), (0, 0), 1.5)
    half = len(small) // 2
    if float(np.median(np.abs(small[:half].mean(0) - small[half:].mean(0)))) + float(np.median(small.std(0))) < STILL:
        raise PebalError(
            "The camera does not move in this footage, so the parts of the image that move with it cannot be found. "
            "Use footage of a moving vehicle, or pass your own mask with --ego-mask."
        )
    # The median contrast of a fixed edge exceeds its change over time; a moving scene averages out.
    fixed = (contrast > change) & (contrast > 3.0)
    constant = small.std(0) < 2.0  # black borders of a rectified image
    seen = np.stack([cv2.resize(x, size, interpolation=cv2.INTER_NEAREST) for x in labels])
    known = classes or cityscapes_classes()
    sky = np.isin(seen, [n for n, name in enumerate(known.names) if name.lower() == "sky"]).mean(0) > 0.5
    ground = np.isin(seen, known.flagged("carries_objects")).mean(0) > 0.5
    found = _close(((fixed & _edge_zone(fixed.shape)) | (constant & ~sky)).astype(np.uint8))
    found[ground & ~constant] = 0
    count, regions, stats, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
    mask = np.zeros(found.shape, bool)
    for number in range(1, count):
        left, top, width_of, height_of, area = stats[number]
        outermost = left == 0 or top == 0 or left + width_of == found.shape[1] or top + height_of == found.shape[0]
        # Without this condition the edge of a wall or lane that runs beside the vehicle for long would count as well.
        if area >= SMALLEST * found.size and (outermost or top + height_of > (1 - BONNET) * found.shape[0]):
            mask |= regions == number
    filled = _fill_to_the_border(mask) & ~(ground & ~constant)
    return cv2.resize(filled.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0


def _edge_zone(shape: tuple[int, ...]) -> np.ndarray:
    """H×W bool, true where an edge of the vehicle or of a rectified image can lie."""
    zone = np.ones(shape, bool)
    height, width = shape
    top, side = round(BORDER * height), round(BORDER * width)
    zone[top : round((1 - ORNAMENT) * height), side : width - side] = False
    return zone


def moved_mounting(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the ego masks (H×W bool) of two drives differ so much that the camera must have been remounted.

    Examples:
        >>> low, high = np.zeros((2, 100, 100), bool)
        >>> low[95:], high[80:] = True, True
        >>> moved_mounting(low, low), moved_mounting(low, high)
        (False, True)
    """
    union = np.count_nonzero(first | second)
    share = union / first.size
    return bool(share > 0.02 and np.count_nonzero(first & second) / union < 0.3)


def _close(mask: np.ndarray) -> np.ndarray:
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))


def _fill_to_the_border(mask: np.ndarray) -> np.ndarray:
    """Add the pixels below a fixed outline at the bottom, because the inside of a bonnet has no edges of its own."""
    filled, height = mask.copy(), mask.shape[0]
    lowest = round((1 - BONNET) * height)
    for column in np.flatnonzero(mask[lowest:].any(0)):
        top = lowest + int(np.flatnonzero(mask[lowest:, column])[0])
        filled[top:, column] = True
    # A few columns alone are no bonnet; they may come from a lane marking that is always present.
    opened = cv2.morphologyEx(
        filled.astype(np.uint8), cv2.MORPH_OPEN, np.ones((1, max(3, mask.shape[1] // 4)), np.uint8)
    )
    return mask | (opened > 0)
