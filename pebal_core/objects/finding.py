"""Objects in one image: hysteresis in energy, connected components, a minimum size and the place rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..errors import PebalError
from .rules import ObjectRules, RoadObject

LEVELS = 24
"""Thresholds at which `filter_energy` looks for objects."""

SPLITS = 3
"""How often a candidate that does not stand on the ground is cut at a higher energy."""

MIN_STEP = 0.5
"""Nats between two cuts at least."""

CELL = 8
"""Side in pixels of the cells in which what is connected to no seed is found; a row of one has the size of a word."""

MIN_SIGMA = 1.5
"""Pixels of the smoothing Gaussian below which it is left out, and for which the map is made smaller."""


@dataclass(frozen=True)
class Found:
    """The objects of one image."""

    objects: list[RoadObject]
    """From the largest to the smallest."""
    left_out: int = 0
    """Candidates beyond `ObjectRules.max_objects`, the smallest, which were not looked at."""


def find_objects(energy: np.ndarray, labels: np.ndarray, rules: ObjectRules, ignore: np.ndarray | None = None) -> Found:
    """Find the objects of one image.

    A candidate is an 8-connected component of the pixels with an energy of at least `rules.grow` whose smoothed energy
    reaches `rules.threshold` somewhere. It is an object if it has the minimum area and stands on the ground: over at
    least `foot_share` of its width, a pixel of a carrier class lies at most `reach` pixels below its lower edge. What
    does not stand on the ground is cut at higher energies, `SPLITS` times at most: the glow of a far tree line may join
    what stands before it.

    Args:
        energy: H×W float32 in nats.
        labels: H×W uint8 class ids.
        rules: what counts as an object.
        ignore: H×W bool or uint8, nonzero where nothing may alarm (bonnet, image borders).

    Raises:
        PebalError: the arrays differ in size.
    """
    _check_sizes(energy, labels, ignore)
    return _find(energy, smooth(energy, rules), labels, rules, ignore)


def smooth(energy: np.ndarray, rules: ObjectRules) -> np.ndarray:
    """Energy after a Gaussian of `rules.smoothing`, on a smaller map h×w where the Gaussian is wide enough for it."""
    sigma = rules.smoothing * energy.shape[1] / rules.reference_width
    if sigma < MIN_SIGMA:
        return energy
    height, width = energy.shape
    factor = max(1, int(sigma / MIN_SIGMA))
    small = cv2.resize(energy, (max(1, width // factor), max(1, height // factor)), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), sigma / factor, borderType=cv2.BORDER_REFLECT_101)


def _reaches(smoothed: np.ndarray, threshold: float, candidate: _Component, shape: tuple[int, ...]) -> bool:
    """Whether the smoothed energy, the nearest value of its map for each pixel, reaches a threshold in a candidate."""
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
    energy: np.ndarray, smoothed: np.ndarray, labels: np.ndarray, rules: ObjectRules, ignore: np.ndarray | None
) -> Found:
    step = max(rules.threshold - rules.grow, MIN_STEP)
    levels = [rules.grow, *(rules.threshold + step * number for number in range(SPLITS))]
    seeds = smoothed >= np.float32(rules.threshold)
    objects: list[RoadObject] = []
    if not seeds.any():
        return Found(objects)
    smallest = rules.area_in(energy.shape[1])
    top, left, grown = _grown_from(seeds, energy, rules.grow, ignore)
    candidates = _components(grown, left, top, smallest, lambda boxes: _hold(boxes, seeds, energy.shape))
    waiting = [(0, one) for one in candidates]
    for looked_at in range(len(waiting) + rules.max_objects):
        if not waiting:
            break
        if looked_at == rules.max_objects:
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
    """Lower the energy of everything that can be no object at any threshold.

    At each of `LEVELS` thresholds t between the lowest energy that matters and the highest of the image, components
    of the pixels above t are held against size and place. A pixel keeps its energy up to the next level above the
    highest at which its component passes; where none passes it takes the lowest energy. A threshold on the result
    therefore reports what passes the rules at that threshold or at a higher one. `rules.threshold` sets the first
    level only: the levels begin at `rules.grow`.

    Args:
        energy: H×W float32 in nats.
        labels: H×W uint8 class ids.
        rules: what counts as an object.
        ignore: H×W, nonzero where nothing may alarm.

    Returns:
        H×W float32 in nats, nowhere above `energy`.

    Raises:
        PebalError: the arrays differ in size.
    """
    _check_sizes(energy, labels, ignore)
    lowest, highest = float(energy.min()), float(energy.max())
    if highest <= rules.grow:
        return np.minimum(energy, np.float32(lowest))
    smoothed = smooth(energy, rules)
    levels = np.linspace(rules.grow, highest, LEVELS, endpoint=False)
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
    """x, y, width, height in the image."""
    inside: np.ndarray
    """height×width bool."""
    outline: np.ndarray
    """N×2 int32: x, y in the image."""


def _grown_from(
    seeds: np.ndarray, energy: np.ndarray, grow: float, ignore: np.ndarray | None
) -> tuple[int, int, np.ndarray]:
    """The pixels of at least an energy, without most of what is connected to no seed.

    Connected pixels lie in connected cells of `CELL`×`CELL` pixels, so the components of the few cells tell which
    pixels can be left out.

    Args:
        seeds: h×w bool, a smaller map of the image.

    Returns:
        Row and column of the upper left corner, and the mask uint8 of the part of the image that holds all that is
        left.
    """
    height, width = energy.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    mask = np.zeros((rows * CELL, columns * CELL), bool)
    np.greater_equal(energy, np.float32(grow), out=mask[:height, :width])
    if ignore is not None:
        mask[:height, :width][ignore != 0] = False
    words = mask.view(np.uint64).reshape(rows, CELL, columns)  # eight pixels in a word
    cells = np.bitwise_or.reduce(words, axis=1) != 0
    numbers = cv2.connectedComponents(cells.view(np.uint8), connectivity=8)[1]
    near = cv2.resize(seeds.view(np.uint8) * np.uint8(255), (columns, rows), interpolation=cv2.INTER_AREA)
    near = cv2.dilate(near, np.ones((3, 3), np.uint8))  # the borders of the two maps' pixels do not coincide
    kept = np.bincount(numbers[near != 0], minlength=numbers.max() + 1) > 0
    kept[0] = False
    keep = kept[numbers]
    if not keep.any():
        return 0, 0, mask[:0].view(np.uint8)
    words &= np.where(keep, ~np.uint64(0), np.uint64(0))[:, None]
    down, across = np.flatnonzero(keep.any(axis=1)), np.flatnonzero(keep.any(axis=0))
    top, left = int(down[0]) * CELL, int(across[0]) * CELL
    window = mask[top : min(height, (int(down[-1]) + 1) * CELL), left : min(width, (int(across[-1]) + 1) * CELL)]
    return top, left, window.view(np.uint8)


def _hold(boxes: np.ndarray, seeds: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which boxes N×4 (x, y, width, height) of the image hold a pixel of the smaller map of seeds."""
    sums = cv2.integral(seeds.view(np.uint8))
    x, y, width, height = boxes.T
    rows = (y * seeds.shape[0] // shape[0], (y + height - 1) * seeds.shape[0] // shape[0] + 1)
    columns = (x * seeds.shape[1] // shape[1], (x + width - 1) * seeds.shape[1] // shape[1] + 1)
    inside = sums[rows[1], columns[1]] - sums[rows[0], columns[1]] - sums[rows[1], columns[0]]
    return inside + sums[rows[0], columns[0]] > 0


def _components(
    mask: np.ndarray, left: int, top: int, min_area: float, wanted: Callable[[np.ndarray], np.ndarray] | None = None
) -> list[_Component]:
    """The components of a mask whose box has the area, the largest first.

    Filling the contours of the few large components is several times faster than OpenCV's labelling of all of them.

    Args:
        mask: h×w uint8, a window of the image.
        left, top: where the window lies in the image.
        wanted: from boxes N×4 int64 in the image to N bool; None: all are.
    """
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    outer = np.flatnonzero(hierarchy[0, :, 3] < 0)  # those without a parent; the others are holes
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
        cv2.fillPoly(inside, rings, (1,), offset=(-x, -y))  # what lies within two rings is a hole
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
    """The candidate as an object; None where it breaks a rule."""
    (x, y, width, height), inside = candidate.box, candidate.inside
    area = cv2.countNonZero(inside.view(np.uint8))
    if area < rules.area_in(energy.shape[1]):
        return None
    lowest = height - 1 - inside[::-1].argmax(axis=0)  # row of the lowest pixel of each column; every column has one
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
    """For each pixel of the lower edge, whether a carrier lies within reach below it.

    What is cut off by the lower border of the image or by the ignore mask may stand on ground that is not seen.
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
