"""Finds objects in one image by hysteresis thresholding, connected components, a minimum size and the place rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..errors import PebalError
from .rules import ObjectRules, RoadObject

LEVELS = 32
"""Number of thresholds at which `filter_energy` finds objects."""

SPLITS = 3
"""Number of times that a candidate without ground contact is split at a higher energy."""

MIN_STEP = 0.5
"""Smallest difference in nats between two splits."""

CELL = 8
"""Side in pixels of the cells with which unconnected pixels are removed; a row of a cell fits into one machine word."""

MIN_SIGMA = 1.5
"""The smoothing is skipped for a smaller sigma in pixels; for a larger one, the map is downscaled to about this."""


@dataclass(frozen=True)
class Found:
    """The objects of one image."""

    objects: list[RoadObject]
    """The objects, from the largest to the smallest."""
    left_out: int = 0
    """Number of candidates beyond `ObjectRules.max_objects`, the smallest ones, which were not examined."""


def find_objects(energy: np.ndarray, labels: np.ndarray, rules: ObjectRules, ignore: np.ndarray | None = None) -> Found:
    """Find the objects of one image.

    A candidate is an 8-connected component of the pixels with an energy of at least `rules.grow` whose smoothed energy
    reaches `rules.threshold` somewhere. It is an object if it has the minimum area and stands on the ground. It stands
    on the ground if, over at least `foot_share` of its width, there is a pixel of a carrier class at most `reach`
    pixels below its lower edge. A candidate that does not stand on the ground is split at higher energies, up to
    `SPLITS` times, because slightly raised energies in the background, for example of a distant tree line, may connect
    it to an object in front.

    Args:
        energy: H×W float32 in nats.
        labels: H×W uint8 class ids.
        rules: the criteria for an object.
        ignore: H×W bool or uint8, nonzero where nothing may alarm (bonnet, image borders).

    Raises:
        PebalError: the arrays differ in size.

    Examples:
        >>> energy, road = np.full((60, 80), -10, np.float32), np.zeros((60, 80), np.uint8)
        >>> energy[30:45, 20:40] = -2
        >>> rules = ObjectRules(threshold=-4, grow=-5)
        >>> [found.box for found in find_objects(energy, road, rules).objects]
        [(20, 30, 20, 15)]
        >>> building = np.full_like(road, 2)  # cannot carry an object
        >>> find_objects(energy, building, rules).objects
        []
    """
    _check_sizes(energy, labels, ignore)
    return _find(energy, None, labels, rules, ignore)


def _smooth(energy: np.ndarray, rules: ObjectRules, first: int = 0, last: int | None = None) -> np.ndarray:
    """Smooth the energy by a Gaussian of `rules.smoothing`; the result is downscaled if the Gaussian is wide.

    Args:
        energy: H×W float32 in nats.
        rules: the criteria for an object.
        first: the first row of the image that is needed; the result may be -inf in the rows before.
        last: the row behind the last one that is needed; the result may be -inf from there on.
    """
    sigma = rules.smoothing * energy.shape[1] / rules.reference_width
    if sigma < MIN_SIGMA:
        return energy
    height, width = energy.shape
    factor = max(1, int(sigma / MIN_SIGMA))
    size = max(1, width // factor), max(1, height // factor)
    reach = int(8 * sigma / factor + 1) // 2 + 1  # half the side of OpenCV's kernel, at least
    top = max(0, first // factor - reach)
    bottom = size[1] if last is None else min(size[1], last // factor + 1 + reach)
    if height % factor or (top == 0 and bottom == size[1]):
        small = cv2.resize(energy, size, interpolation=cv2.INTER_AREA)
        return cv2.GaussianBlur(small, (0, 0), sigma / factor, borderType=cv2.BORDER_REFLECT_101)
    rows = energy[top * factor : bottom * factor]
    small = cv2.resize(rows, (size[0], bottom - top), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(small, (0, 0), sigma / factor, borderType=cv2.BORDER_REFLECT_101)
    smoothed = np.full(size[::-1], -np.inf, np.float32)
    inner = slice(reach if top else 0, len(blurred) - (reach if bottom < size[1] else 0))
    smoothed[top:bottom][inner] = blurred[inner]  # the others lack neighbours
    return smoothed


def _reaches(smoothed: np.ndarray, threshold: float, candidate: _Component, shape: tuple[int, ...]) -> bool:
    """Whether the smoothed energy, upscaled by nearest neighbour, reaches a threshold inside a candidate."""
    x, y, width, height = candidate.box
    rows, columns = (
        np.arange(first, first + count) * small // full
        for first, count, small, full in zip((y, x), (height, width), smoothed.shape, shape, strict=True)
    )
    crop = smoothed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    reached = crop >= np.float32(threshold)
    if not reached.any():
        return False
    first_rows, first_columns = (np.searchsorted(at, np.arange(at[0], at[-1] + 1)) for at in (rows, columns))
    if (
        reached & candidate.inside[first_rows[:, None], first_columns]
    ).any():  # one pixel of each value, which is quick
        return True
    return bool((reached[(rows - rows[0])[:, None], columns - columns[0]] & candidate.inside).any())


def _find(
    energy: np.ndarray, smoothed: np.ndarray | None, labels: np.ndarray, rules: ObjectRules, ignore: np.ndarray | None
) -> Found:
    step = max(rules.threshold - rules.grow, MIN_STEP)
    levels = [rules.grow, *(rules.threshold + step * number for number in range(SPLITS))]
    objects: list[RoadObject] = []
    mask, cells = _reach_energy(energy, rules.grow, ignore)
    occupied = np.flatnonzero(cells.any(axis=1))
    if not len(occupied):
        return Found(objects)
    if smoothed is None:
        smoothed = _smooth(energy, rules, int(occupied[0]) * CELL, (int(occupied[-1]) + 1) * CELL)
    seeds = smoothed >= np.float32(rules.threshold)
    if not seeds.any():
        return Found(objects)
    smallest = rules.area_in(energy.shape[1])
    top, left, grown = _keep_connected(mask, cells, seeds, energy.shape)
    candidates = _components(grown, left, top, smallest, lambda boxes: _contain_seeds(boxes, seeds, energy.shape))
    waiting = [(0, one) for one in candidates]
    for examined in range(len(waiting) + rules.max_objects):
        if not waiting:
            break
        if examined == rules.max_objects:
            return Found(objects, len(waiting))
        level, candidate = waiting.pop(0)
        x, y, width, height = candidate.box
        window = slice(y, y + height), slice(x, x + width)
        if not _reaches(smoothed, rules.threshold, candidate, energy.shape):
            continue
        found = _examine(energy, labels, ignore, candidate, rules)
        if found is not None:
            objects.append(found)
        elif level + 1 < len(levels):
            rest = (candidate.inside & (energy[window] >= np.float32(levels[level + 1]))).view(np.uint8)
            waiting += [(level + 1, one) for one in _components(rest, x, y, smallest)]
    return Found(objects)


def filter_energy(
    energy: np.ndarray, labels: np.ndarray, rules: ObjectRules, ignore: np.ndarray | None = None
) -> np.ndarray:
    """Lower the energy of all pixels that belong to no object at any threshold.

    The size and place rules are applied at each of `LEVELS` thresholds between `rules.sweep_from` and the highest
    energy of the image, to the components of the pixels above the threshold. A pixel keeps its energy up to the level
    after the highest one at which its component passes. If its component passes at no level, the pixel gets the lowest
    energy of the image. A threshold on the result therefore reports the pixels that pass the rules at that threshold
    or at a higher one. At each level, objects are seeded and grow at the level itself.

    Args:
        energy: H×W float32 in nats.
        labels: H×W uint8 class ids.
        rules: the criteria for an object.
        ignore: H×W bool or uint8, nonzero where nothing may alarm.

    Returns:
        H×W float32 in nats, nowhere above `energy`.

    Raises:
        PebalError: the arrays differ in size.

    Examples:
        >>> energy, road = np.full((60, 80), -10, np.float32), np.zeros((60, 80), np.uint8)
        >>> energy[30:45, 20:40], energy[5, 5] = -2, -2  # an object and a single pixel
        >>> rules = ObjectRules(threshold=-4, grow=-5, smoothing=0, reference_width=80)
        >>> filtered = filter_energy(energy, road, rules)
        >>> filtered[35, 30].item(), filtered[5, 5].item()
        (-2.0, -10.0)
    """
    _check_sizes(energy, labels, ignore)
    lowest, highest = float(energy.min()), float(energy.max())
    if highest <= rules.sweep_from:
        return np.minimum(energy, np.float32(lowest))
    smoothed = _smooth(energy, rules)
    # At the lowest energy all pixels are one object.
    start = max(rules.sweep_from, lowest + (highest - lowest) / LEVELS)
    levels = np.linspace(start, highest, LEVELS, endpoint=False)
    ceiling = np.full(energy.shape, lowest, np.float32)
    for level, following in zip(levels, [*levels[1:], highest]):
        at_level = replace(rules, threshold=float(level), grow=float(level), max_objects=10000)
        for found in _find(energy, smoothed, labels, at_level, ignore).objects:
            x, y, width, height = found.box
            ceiling[y : y + height, x : x + width][found.mask] = following
    return np.minimum(energy, ceiling)


@dataclass(frozen=True)
class _Component:
    """An 8-connected group of pixels."""

    box: tuple[int, int, int, int]
    """x, y, width and height in the image."""
    inside: np.ndarray
    """height×width bool, the component's pixels inside the box."""
    outline: np.ndarray
    """N×2 int32, x and y in the image."""


def _reach_energy(energy: np.ndarray, least: float, ignore: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mark the pixels with at least an energy in nats, and the cells of `CELL`×`CELL` pixels that have any.

    Returns:
        The pixels as bool, filled up with False to whole cells, and the cells as bool.
    """
    height, width = energy.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    mask = np.zeros((rows * CELL, columns * CELL), bool)
    np.greater_equal(energy, np.float32(least), out=mask[:height, :width])
    if ignore is not None:
        mask[:height, :width][ignore != 0] = False
    return mask, np.bitwise_or.reduce(_as_words(mask), axis=1) != 0


def _as_words(mask: np.ndarray) -> np.ndarray:
    """View a mask of whole cells as cell rows × `CELL` × cell columns, with eight pixels per word."""
    return mask.view(np.uint64).reshape(len(mask) // CELL, CELL, -1)


def _keep_connected(
    mask: np.ndarray, cells: np.ndarray, seeds: np.ndarray, shape: tuple[int, ...]
) -> tuple[int, int, np.ndarray]:
    """Remove most of the marked pixels that are not connected to a seed.

    Connected pixels are in connected cells. The components of the cells, which are few, therefore show which pixels
    can be left out.

    Args:
        mask: the pixels that `_reach_energy` marked; changed in place.
        cells: the cells that it marked.
        seeds: h×w bool, a downscaled map of the image.
        shape: height and width of the image.

    Returns:
        Row and column of the upper left corner, and the mask (uint8), of the part of the image with all remaining
        pixels.
    """
    numbers = cv2.connectedComponents(cells.view(np.uint8), connectivity=8)[1]
    at = cv2.findNonZero(seeds.view(np.uint8)).reshape(-1, 2)
    near: np.ndarray = np.zeros(cells.shape, np.uint8)
    near[at[:, 1] * shape[0] // seeds.shape[0] // CELL, at[:, 0] * shape[1] // seeds.shape[1] // CELL] = 1
    reach = -(-shape[1] // seeds.shape[1] // CELL) + 1  # cells over which one pixel of the downscaled map extends
    near = cv2.dilate(near, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    kept = np.bincount(numbers[near != 0], minlength=numbers.max() + 1) > 0
    kept[0] = False
    keep = kept[numbers]
    if not keep.any():
        return 0, 0, mask[:0].view(np.uint8)
    x, y, columns, rows = cv2.boundingRect(keep.view(np.uint8))
    words = _as_words(mask)[y : y + rows, :, x : x + columns]
    words &= np.where(keep[y : y + rows, x : x + columns], ~np.uint64(0), np.uint64(0))[:, None]
    top, left = y * CELL, x * CELL
    bottom, right = min(shape[0], (y + rows) * CELL), min(shape[1], (x + columns) * CELL)
    return top, left, mask[top:bottom, left:right].view(np.uint8)


def _contain_seeds(boxes: np.ndarray, seeds: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which boxes (N×4: x, y, width, height in the image) contain a pixel of the downscaled map of seeds."""
    sums = cv2.integral(seeds.view(np.uint8))
    x, y, width, height = boxes.T
    rows = (y * seeds.shape[0] // shape[0], (y + height - 1) * seeds.shape[0] // shape[0] + 1)
    columns = (x * seeds.shape[1] // shape[1], (x + width - 1) * seeds.shape[1] // shape[1] + 1)
    inside = sums[rows[1], columns[1]] - sums[rows[0], columns[1]] - sums[rows[1], columns[0]]
    return inside + sums[rows[0], columns[0]] > 0


def _components(
    mask: np.ndarray, left: int, top: int, min_area: float, wanted: Callable[[np.ndarray], np.ndarray] | None = None
) -> list[_Component]:
    """The components of a mask whose box has at least an area, the largest first.

    Filling the contours of the few large components is several times faster than labelling all components with OpenCV.

    Args:
        mask: h×w uint8, a window of the image.
        left, top: position of the window in the image.
        min_area: smallest area of the box in pixels.
        wanted: function from boxes (N×4 int64, in the image) to N bool that selects components; None selects all.
    """
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    outer = np.flatnonzero(hierarchy[0, :, 3] < 0)  # contours without a parent; the others are holes
    boxes = np.array([cv2.boundingRect(contours[int(number)]) for number in outer], np.int64)
    areas = boxes[:, 2] * boxes[:, 3]
    keep = areas >= min_area
    if wanted is not None:
        keep &= wanted(boxes + np.array([left, top, 0, 0]))
    kept = np.flatnonzero(keep)
    components = []
    for index in kept[np.argsort(-areas[kept], kind="stable")]:
        x, y, width, height = (int(value) for value in boxes[index])
        number = int(outer[index])
        rings, hole = [contours[number]], int(hierarchy[0, number, 2])
        while hole >= 0:
            rings.append(contours[hole])
            hole = int(hierarchy[0, hole, 0])
        inside = np.zeros((height, width), np.uint8)
        cv2.fillPoly(inside, rings, (1,), offset=(-x, -y))  # pixels within two rings are a hole
        outline = rings[0][:, 0, :] + np.array([left, top], np.int32)
        components.append(_Component((left + x, top + y, width, height), inside.view(bool), outline))
    return components


def _examine(
    energy: np.ndarray,
    labels: np.ndarray,
    ignore: np.ndarray | None,
    candidate: _Component,
    rules: ObjectRules,
) -> RoadObject | None:
    """Measure a candidate as an object; None if it breaks a rule."""
    (x, y, width, height), inside = candidate.box, candidate.inside
    area = cv2.countNonZero(inside.view(np.uint8))
    if area < rules.area_in(energy.shape[1]):
        return None
    lowest = height - 1 - inside[::-1].argmax(axis=0)  # row of the lowest pixel in each column; no column is empty
    columns, rows = np.arange(x, x + width), y + lowest
    if rules.carriers is not None:
        standing = _standing(labels, ignore, columns, rows, rules.carriers, rules.reach_in(energy.shape[1]))
        if standing.sum() < max(rules.foot_share * width, 1):
            return None
        columns, rows = columns[standing], rows[standing]
    bottom = int(rows.max())
    touching = columns[rows == bottom]
    values = energy[y : y + height, x : x + width]
    return RoadObject(
        box=candidate.box,
        area=area,
        mean_energy=cv2.mean(values, inside.view(np.uint8))[0],
        peak_energy=cv2.minMaxLoc(values, inside.view(np.uint8))[1],
        label=int(
            cv2.calcHist([labels[y : y + height, x : x + width]], [0], inside.view(np.uint8), [256], [0, 256]).argmax()
        ),
        contact=(int(touching[len(touching) // 2]), bottom),
        foot=np.stack([columns, rows], axis=1).astype(np.int32),
        contour=candidate.outline,
        mask=inside,
    )


def _standing(
    labels: np.ndarray,
    ignore: np.ndarray | None,
    columns: np.ndarray,
    rows: np.ndarray,
    carriers: tuple[int, ...],
    reach: int,
) -> np.ndarray:
    """For each pixel of the lower edge, whether there is a carrier within reach below it.

    The lower border of the image and the ignore mask count as carriers, because they may hide the ground.
    """
    last = labels.shape[0] - 1
    below = rows[:, None] + np.arange(1, reach + 1)
    at = np.minimum(below, last), columns[:, None]
    carrying = np.zeros(256, bool)
    carrying[list(carriers)] = True
    carries = carrying[labels[at]] | (below > last)
    if ignore is not None:
        carries |= ignore[at] != 0
    return carries.any(axis=1)


def _check_sizes(energy: np.ndarray, labels: np.ndarray, ignore: np.ndarray | None) -> None:
    for what, array in (("labels", labels), ("ignore mask", ignore)):
        if array is not None and array.shape != energy.shape:
            sizes = ["×".join(map(str, shape)) for shape in (array.shape, energy.shape)]
            raise PebalError(f"The {what} is {sizes[0]} pixels (height×width) but the energy is {sizes[1]}.")
