"""Computes exact thresholds that bound a risk, by conformal risk control over drives or with a given confidence.

A unit is a drive, or a block of time if there are too few drives. Frames of one drive resemble each other, so the units
rather than the frames are assumed to be exchangeable with later data. A loss measures how bad a threshold is for one
unit. It lies in [0, bound] and never rises with the threshold. There are two losses:

- *pixels*: share of the unit's known pixels with an energy at or above the threshold, clipped at the bound;
- *objects*: share of the unit's frames with at least one connected region of alarmed pixels of a given size. (The
  number of regions cannot be used as a loss, because it can rise with the threshold when a region falls apart.)

Pixels with an energy ≥ threshold in float32 are alarmed. The losses therefore change only just above energies that
occur, and the thresholds computed here are exact; one float32 step lower, their condition is violated.

    losses = [object_loss([2.0, 3.5, 1.0]), object_loss([2.5, 0.5, 1.5])]      # one per unit
    threshold = smallest_threshold(losses, largest_mean_risk(0.5, 1.0, len(losses)))

Sources: Angelopoulos, Bates, Fisch, Lei, Schuster, "Conformal risk control" (ICLR 2024), and Angelopoulos, Bates,
Candès, Jordan, Lei, "Learn then test" (2021), whose p-values bound the binomial tail (Hoeffding, Bentkus).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .metrics.score_counts import ScoreCounts

CLIP = 0.05
"""Bound of the loss *pixels*, at which a unit's share of false alarms is clipped."""


@dataclass(frozen=True)
class Loss:
    """The loss of one unit as a step function of the threshold.

    The loss at t is ``losses[i]``, where ``energies[i]`` is the lowest listed energy ≥ t. It is 0 above all listed
    energies, and ``losses[-1]`` below all of them.

    Examples:
        >>> loss = Loss(np.array([-2.0, -5.0], np.float32), np.array([0.1, 0.3]))
        >>> [loss.at(threshold) for threshold in (-1, -2, -4, -5, -9)]
        [0.0, 0.1, 0.1, 0.3, 0.3]
    """

    energies: np.ndarray
    """n distinct float32 energies in nats, in descending order."""
    losses: np.ndarray
    """n float64, in ascending order."""

    def at(self, threshold: float) -> float:
        """The loss at one threshold."""
        count = len(self.energies) - int(np.searchsorted(self.energies[::-1], np.float32(threshold), "left"))
        return float(self.losses[count - 1]) if count else 0.0


def pixel_loss(counts: ScoreCounts, bound: float = CLIP) -> Loss:
    """Share of alarmed pixels of a unit, clipped at a bound.

    Args:
        counts: energies of the unit's known pixels, added as the second argument of `ScoreCounts.add`.
        bound: the bound.

    Examples:
        >>> counts = ScoreCounts()
        >>> counts.add(np.empty(0, np.float32), np.array([-8, -8, -8, -2], np.float32))
        >>> loss = pixel_loss(counts, bound=0.5)
        >>> loss.at(0), loss.at(-2), loss.at(-9)
        (0.0, 0.25, 0.5)
    """
    total = int(counts.page_totals()[1].sum())
    energies, losses = [], []
    for stretch in counts.outlier_scores():
        share = stretch.tp / total
        # The list ends with the first energy at which the loss reaches the bound.
        end = int(np.searchsorted(share, bound, "left")) + 1
        energies.append(stretch.score[:end])
        losses.append(np.minimum(share[:end], bound))
        if end <= len(share):
            break
    return Loss(np.concatenate(energies).astype(np.float32), np.concatenate(losses))


def object_loss(critical: Sequence[float]) -> Loss:
    """Share of a unit's frames that show a false object.

    Args:
        critical: `critical_energy` of each frame, in any order.

    Examples:
        >>> loss = object_loss([-3.0, -5.0, -7.0, -9.0])
        >>> loss.at(-2), loss.at(-5), loss.at(-9)
        (0.0, 0.5, 1.0)
    """
    values, number = np.unique(np.asarray(critical, np.float32), return_counts=True)
    shown = np.isfinite(values)
    return Loss(values[shown][::-1].copy(), np.cumsum(number[shown][::-1]) / len(critical))


def critical_energy(energy: np.ndarray, size: int, ignore: np.ndarray | None = None) -> float:
    """The highest threshold at which a frame shows a connected region (8 neighbours) of at least `size` alarmed pixels.

    It is one of the frame's energies. A higher threshold leaves subsets of the alarmed regions, so the frame shows such
    a region at exactly the thresholds up to this one.

    Args:
        energy: H×W float32 in nats.
        size: smallest area of a region in pixels.
        ignore: H×W bool, pixels that raise no alarm.

    Returns:
        An energy, or -inf if no region is large enough at any threshold.

    Examples:
        >>> critical_energy(np.array([[-9, -3, -4], [-9, -9, -5]], np.float32), size=2)
        -4.0
    """
    energy = energy if ignore is None else np.where(ignore, np.float32(-np.inf), energy)
    values = np.unique(energy[np.isfinite(energy)])
    if len(values) == 0:
        return -math.inf

    def shows(threshold: np.float32) -> bool:
        stats = cv2.connectedComponentsWithStats((energy >= threshold).view(np.uint8), connectivity=8)[2]
        return bool((stats[1:, cv2.CC_STAT_AREA] >= size).any())

    if not shows(values[0]):
        return -math.inf
    low, high = 0, len(values)
    # Regions of this size occur in the upper tail, so the search starts there with steps that double.
    step = 2 * size
    while len(values) - step > 0 and not shows(values[len(values) - step]):
        high, step = len(values) - step, 2 * step
    low = max(low, len(values) - step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if shows(values[middle]) else (low, middle)
    return float(values[low])


def smallest_threshold(losses: Sequence[Loss], risk: float) -> float:
    """The smallest float32 threshold at which the mean loss of the units is at most `risk`.

    Args:
        losses: one per unit.
        risk: mean loss as returned by `largest_mean_risk` or `largest_confident_risk`.

    Returns:
        The threshold, or -inf if the mean loss is at most the risk at every threshold.

    Raises:
        ValueError: the risk is negative, so no threshold can satisfy it.

    Examples:
        >>> one = Loss(np.array([-2.0, -5.0], np.float32), np.array([0.1, 0.3]))
        >>> other = Loss(np.array([-3.0], np.float32), np.array([0.2]))
        >>> round(smallest_threshold([one, other], risk=0.1), 4)  # just above -3
        -3.0
        >>> round(mean_risk([one, other], -2.5), 4), round(mean_risk([one, other], -3), 4)
        (0.05, 0.15)
    """
    if risk < 0:
        raise ValueError("no threshold has a negative risk")
    energies = np.concatenate([loss.energies for loss in losses])
    steps = np.concatenate([np.diff(loss.losses, prepend=0.0) for loss in losses])
    order = np.argsort(-energies, kind="stable")
    energies, mean = energies[order], np.cumsum(steps[order]) / len(losses)
    last = np.append(energies[1:] != energies[:-1], True) if len(energies) else np.zeros(0, bool)
    energies, mean = energies[last], mean[last]
    # The tolerance exceeds the rounding errors, and is far below the weight of one pixel of one unit.
    above = np.flatnonzero(mean > risk + 1e-12)
    with np.errstate(over="ignore"):  # infinity follows the largest number
        return float(np.nextafter(energies[above[0]], np.float32(np.inf))) if len(above) else -math.inf


def mean_risk(losses: Sequence[Loss], threshold: float) -> float:
    """Mean loss of the units at a threshold.

    Examples:
        >>> losses = [object_loss([-3.0, -5.0]), object_loss([-4.0])]
        >>> mean_risk(losses, -3.5), mean_risk(losses, -4.5)
        (0.25, 0.75)
    """
    return float(np.mean([loss.at(threshold) for loss in losses]))


def largest_mean_risk(alpha: float, bound: float, units: int) -> float:
    """The largest mean loss R of the n units with (n·R + bound) / (n + 1) ≤ alpha; negative if there are too few units.

    Source: Conformal risk control, theorem 1.

    Examples:
        >>> round(largest_mean_risk(alpha=0.01, bound=0.1, units=99), 4)
        0.0091
    """
    return ((units + 1) * alpha - bound) / units


def largest_confident_risk(alpha: float, bound: float, units: int, confidence: float) -> float:
    """The largest mean loss for which a risk above alpha is rejected at level 1 - confidence; -1 for too few units.

    All float32 thresholds, from the highest down, form a fixed sequence of tests that ends at the first test without
    rejection. Because the losses never rise with the threshold, this is the first threshold whose mean loss exceeds the
    returned value.

    Examples:
        >>> round(largest_confident_risk(alpha=0.01, bound=0.05, units=99, confidence=0.95), 4)
        0.0056
    """
    level = 1 - confidence
    low, high = 0.0, alpha
    if hoeffding_bentkus(0.0, alpha / bound, units) > level:
        return -1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if hoeffding_bentkus(middle / bound, alpha / bound, units) <= level else (low, middle)
        )
    return low


def hoeffding_bentkus(mean: float, alpha: float, units: int) -> float:
    """p-value for the hypothesis that the risk exceeds alpha, from the mean of independent losses in [0, 1].

    Source: Learn then test, eq. 8.

    Examples:
        >>> round(hoeffding_bentkus(mean=0.0, alpha=0.05, units=100), 4)
        0.0059
    """
    if alpha >= 1:
        return 0.0
    mean = min(mean, alpha)
    divergence = (mean * math.log(mean / alpha) if mean > 0 else 0.0) + (1 - mean) * math.log((1 - mean) / (1 - alpha))
    # ⌈n·mean⌉ with a tolerance, so that rounding errors do not raise a whole number to the next.
    successes = math.ceil(units * mean - 1e-9)
    return min(1.0, math.exp(-units * divergence), math.e * binomial_tail(successes, units, alpha))


def binomial_tail(successes: int, trials: int, chance: float) -> float:
    """Probability of at most `successes` successes in independent trials.

    >>> round(binomial_tail(1, 2, 0.5), 12)
    0.75
    """
    if chance <= 0:
        return 1.0
    terms = (
        math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * math.log(chance)
            + (trials - k) * math.log1p(-chance)
        )
        for k in range(min(successes, trials) + 1)
    )
    return min(1.0, math.fsum(terms))


def units_needed(alpha: float, bound: float, confidence: float | None = None) -> int:
    """Smallest number of units with which a risk of alpha can be guaranteed if none of them raises a false alarm.

    Args:
        alpha: bound on the risk.
        bound: bound of the loss.
        confidence: confidence of the guarantee; None for a guarantee on the mean.

    Examples:
        >>> units_needed(alpha=0.01, bound=0.1), units_needed(alpha=0.01, bound=0.1, confidence=0.95)
        (9, 29)
    """
    if confidence is None:
        return max(1, math.ceil((bound - alpha) / alpha - 1e-9))
    return _first(lambda units: hoeffding_bentkus(0.0, alpha / bound, units) <= 1 - confidence)


def smallest_alpha(bound: float, units: int, confidence: float | None = None) -> float:
    """The smallest risk that a number of units without false alarms can guarantee; arguments as for `units_needed`.

    Examples:
        >>> round(smallest_alpha(bound=0.1, units=9), 3)
        0.01
    """
    if confidence is None:
        return bound / (units + 1)
    return bound * (1 - (1 - confidence) ** (1 / units))


def _first(holds: Callable[[int], bool]) -> int:
    """The smallest positive integer from which on a monotone condition holds."""
    high = 1
    while not holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
