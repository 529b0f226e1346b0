"""Thresholds with a guarantee: conformal risk control over drives, and its counterpart that holds with confidence.

A unit is a drive, or a block of time where there are too few drives. Frames of one drive resemble each other, so it is
units that are taken to be exchangeable with what comes later. A loss says how bad one threshold is for one unit; it
lies in [0, bound] and never rises with the threshold. Two losses are offered:

- *pixels*: share of the unit's known pixels with an energy at or above the threshold, clipped at the bound;
- *objects*: share of the unit's frames with at least one connected region of alarmed pixels of some size. (The number
  of regions is no such loss: it can rise with the threshold, when one region falls apart.)

Alarms are energies ≥ threshold in float32. The losses therefore change only just above energies that occur, and the
thresholds below are exact: one float32 step lower, their condition fails.

    losses = [object_loss([2.0, 3.5, 1.0]), object_loss([2.5, 0.5, 1.5])]      # one per unit
    threshold = smallest_threshold(losses, largest_mean_risk(0.5, 1.0, len(losses)))

Sources: Angelopoulos, Bates, Fisch, Lei, Schuster, "Conformal risk control" (ICLR 2024), and Angelopoulos, Bates,
Candès, Jordan, Lei, "Learn then test" (2021), whose p-values bound the binomial tail (Hoeffding, Bentkus).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np

from .errors import PebalError
from .metrics.score_counts import ScoreCounts

CLIP = 0.05
"""Bound of the loss *pixels*: a unit with a larger share of false alarms counts as this one."""


@dataclass(frozen=True)
class Loss:
    """The loss of one unit as a step function of the threshold.

    The loss at t is ``losses[i]`` for the lowest listed energy ``energies[i]`` ≥ t, and 0 above all of them. Below the
    last listed energy it is ``losses[-1]``.
    """

    energies: np.ndarray
    """n distinct float32 energies, falling."""
    losses: np.ndarray
    """n float64, rising."""

    def at(self, threshold: float) -> float:
        """The loss at one threshold."""
        count = len(self.energies) - int(np.searchsorted(self.energies[::-1], np.float32(threshold), "left"))
        return float(self.losses[count - 1]) if count else 0.0


def pixel_loss(counts: ScoreCounts, bound: float = CLIP) -> Loss:
    """Share of alarmed pixels of a unit, clipped at a bound.

    Args:
        counts: energies of the unit's known pixels, added as the second argument of `ScoreCounts.add`.
    """
    total = int(counts.page_totals()[1].sum())
    energies, losses = [], []
    for stretch in counts.outlier_scores():
        share = stretch.tp / total
        # One energy beyond the bound, because from there on the loss is the bound.
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
    """
    values, number = np.unique(np.asarray(critical, np.float32), return_counts=True)
    shown = np.isfinite(values)
    return Loss(values[shown][::-1].copy(), np.cumsum(number[shown][::-1]) / len(critical))


def critical_energy(energy: np.ndarray, size: int, ignore: np.ndarray | None = None) -> float:
    """The highest threshold at which a frame shows so many connected alarmed pixels (8 neighbours).

    It is one of the frame's energies. A higher threshold leaves subsets of the alarmed regions, so the frame shows such
    a region exactly at the thresholds up to this one.

    Args:
        energy: H×W float32.
        size: pixels of a region that counts.
        ignore: H×W bool, pixels that raise no alarm.

    Returns:
        an energy, or -inf where fewer connected pixels than that are left.
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
    # Regions of this size are found in the upper tail; so steps that double from the top come first.
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
        risk: as `largest_mean_risk` or `largest_confident_risk` gives it.

    Returns:
        -inf where the losses stay below the risk at every threshold.

    Raises:
        ValueError: the risk is negative: no threshold can promise it.
    """
    if risk < 0:
        raise ValueError("no threshold has a negative risk")
    energies = np.concatenate([loss.energies for loss in losses])
    steps = np.concatenate([np.diff(loss.losses, prepend=0.0) for loss in losses])
    order = np.argsort(-energies, kind="stable")
    energies, mean = energies[order], np.cumsum(steps[order]) / len(losses)
    last = np.append(energies[1:] != energies[:-1], True) if len(energies) else np.zeros(0, bool)
    energies, mean = energies[last], mean[last]
    # Rounding errors of the sums are far below the weight of one pixel of one unit.
    above = np.flatnonzero(mean > risk + 1e-12)
    return float(np.nextafter(energies[above[0]], np.float32(np.inf))) if len(above) else -math.inf


def mean_risk(losses: Sequence[Loss], threshold: float) -> float:
    """Mean loss of the units at a threshold."""
    return float(np.mean([loss.at(threshold) for loss in losses]))


def largest_mean_risk(alpha: float, bound: float, units: int) -> float:
    """The mean loss R of the units up to which (n·R + bound) / (n + 1) ≤ alpha; negative: out of reach."""
    return ((units + 1) * alpha - bound) / units


def largest_confident_risk(alpha: float, bound: float, units: int, confidence: float) -> float:
    """The mean loss of the units up to which a risk above alpha is rejected at level 1 - confidence; -1: out of reach.

    All float32 thresholds, from the highest down, are one fixed sequence of tests, which ends at the first one that
    does not reject; the losses never rise with the threshold, so that is the first with a larger mean loss than this.
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
    """p-value of "the risk exceeds alpha", from the mean of independent losses in [0, 1] (Learn then test, eq. 8)."""
    if alpha >= 1:
        return 0.0
    mean = min(mean, alpha)
    divergence = (mean * math.log(mean / alpha) if mean > 0 else 0.0) + (1 - mean) * math.log((1 - mean) / (1 - alpha))
    # ⌈n·mean⌉, except that a sum of losses that is whole but for rounding stays that whole number.
    successes = math.ceil(units * mean - 1e-9)
    return min(1.0, math.exp(-units * divergence), math.e * binomial_tail(successes, units, alpha))


def binomial_tail(successes: int, trials: int, chance: float) -> float:
    """Probability of at most so many successes."""
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
    """Number of units from which on a risk of alpha can be promised, if none of them raises a false alarm.

    Args:
        confidence: of the statement; None: the statement about the mean.
    """
    if confidence is None:
        return max(1, math.ceil((bound - alpha) / alpha - 1e-9))
    return _first(lambda units: hoeffding_bentkus(0.0, alpha / bound, units) <= 1 - confidence)


def smallest_alpha(bound: float, units: int, confidence: float | None = None) -> float:
    """The smallest risk that so many units without false alarms can promise."""
    if confidence is None:
        return bound / (units + 1)
    return bound * (1 - (1 - confidence) ** (1 / units))


def _first(holds: Callable[[int], bool]) -> int:
    """The first positive number from which on a condition holds."""
    high = 1
    while not holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


Risk = Literal["pixels", "objects"]


@dataclass(frozen=True)
class Request:
    """What is to be promised."""

    alpha: float = 0.01
    """Expected share of falsely alarmed pixels."""
    object_alpha: float | None = None
    """Chance that a frame shows a false object; None: nothing is promised about it."""
    object_size: int = 100
    """Pixels of a false object, at least."""
    clip: float = CLIP
    """A unit with a larger share of falsely alarmed pixels counts as this one."""
    confidence: float = 0.95
    """Of the second statement."""
    confident: bool = False
    """Whether the threshold fulfils the second statement, too; else it is told where that threshold lies."""

    def __post_init__(self) -> None:
        shares = {"alpha": self.alpha, "object_alpha": self.object_alpha, "clip": self.clip}
        for name, value in {**shares, "confidence": self.confidence}.items():
            if value is not None and not 0 < value < 1:
                raise PebalError(f"The option {name} must lie between 0 and 1; it is {value}.")
        if self.alpha > self.clip:
            raise PebalError(
                f"The option alpha ({self.alpha:g}) exceeds clip ({self.clip:g}), so every threshold would keep the "
                f"promise; lower alpha or raise clip."
            )
        if self.object_size < 1:
            raise PebalError(f"The option object_size must be at least 1 pixel; it is {self.object_size}.")

    @property
    def risks(self) -> dict[Risk, tuple[float, float]]:
        """Promised risk and bound of the loss, for each loss that something is promised about."""
        pixels: dict[Risk, tuple[float, float]] = {"pixels": (self.alpha, self.clip)}
        return pixels if self.object_alpha is None else {**pixels, "objects": (self.object_alpha, 1.0)}


@dataclass(frozen=True)
class Statement:
    """One promise, and from which threshold on it holds."""

    risk: Risk
    alpha: float
    confidence: float | None
    """None: the promise is about the mean over repetitions of the calibration."""
    threshold: float | None
    """Nats; None: out of reach with so many units."""
    needed: int
    """Units from which on it is within reach."""
    text: str


@dataclass(frozen=True)
class Guarantee:
    """The threshold and what is promised for it."""

    threshold: float
    statements: tuple[Statement, ...]
    units: int
    unit: str
    """What a unit is, in the plural: drives, blocks of 5 s, …"""
    frames: int
    source: str
    request: Request

    @property
    def text(self) -> str:
        """Everything in words: the promises that hold at the threshold, those that do not, and the assumption."""
        reached = [s for s in self.statements if s.threshold is not None and s.threshold <= self.threshold]
        missed = [s for s in self.statements if s not in reached]
        sentences = [s.text for s in reached]
        for statement in missed:
            reason = (
                f"{self._units(statement.needed)} are needed at least"
                if statement.threshold is None
                else f"the threshold would have to be {statement.threshold:.3f}"
            )
            sentences.append(f"Not promised, because {reason}: {statement.text}")
        sentences.append(
            f"This assumes that what comes resembles the {self._units(self.units)} ({self.frames} frames of "
            f"{self.source}) as these resemble each other, and that nothing anomalous was in them."
        )
        return " ".join(sentences)

    def _units(self, number: int) -> str:
        if number > 1:
            return f"{number} {self.unit}"
        first, *rest = self.unit.split(" ")
        return " ".join([f"1 {first.removesuffix('s')}", *rest])

    def as_dict(self) -> dict[str, Any]:
        """What the model file keeps."""
        return {
            "text": self.text,
            "threshold": self.threshold,
            "units": self.units,
            "unit": self.unit,
            "frames": self.frames,
            "source": self.source,
            "request": asdict(self.request),
            "statements": [asdict(statement) for statement in self.statements],
        }


def guarantee(
    losses: dict[Risk, list[Loss]], request: Request, unit: str, frames: int, source: str, relax: bool = False
) -> Guarantee:
    """The smallest threshold that keeps the promises, and the promises in words.

    The largest of the thresholds of several promises keeps them all, because no loss rises with the threshold.

    Args:
        losses: for each risk of the request, one loss per unit.
        unit: what a unit is, in the plural.
        source: where the units come from.
        relax: where a promise about the mean is out of reach, promise the smallest risk that is not.

    Raises:
        PebalError: the promise is out of reach; the sentence has the number of units needed, and what can be promised.
    """
    statements, required = [], []
    for risk, (alpha, bound) in request.risks.items():
        units = len(losses[risk])
        if relax:
            alpha = max(alpha, smallest_alpha(bound, units))
        for confidence in (None, request.confidence):
            statement = _state(risk, alpha, bound, losses[risk], confidence, unit, request)
            statements.append(statement)
            if confidence is not None and not request.confident:
                continue
            if statement.threshold is None:
                name = "alpha" if risk == "pixels" else "object-alpha"
                raise PebalError(
                    f"{statement.needed} {unit} are needed to promise {name} {alpha:g}"
                    + (f" with {100 * confidence:g} % confidence" if confidence else "")
                    + f", even if none raises a false alarm; {source} has {units}. Record more, take shorter blocks of "
                    f"time, or give --{name} {_round_up(smallest_alpha(bound, units, confidence)):g}, the smallest "
                    f"that {units} {unit} can promise."
                )
            required.append(statement.threshold)
    threshold = max(required)
    if not math.isfinite(threshold):
        # No energy is low enough to break the promise; the threshold still has to be a number.
        threshold = float(min(loss.energies[-1] for loss in losses["pixels"]))
    return Guarantee(threshold, tuple(statements), len(losses["pixels"]), unit, frames, source, request)


def _state(
    risk: Risk, alpha: float, bound: float, losses: list[Loss], confidence: float | None, unit: str, request: Request
) -> Statement:
    """One promise at the smallest threshold that keeps it."""
    units = len(losses)
    if confidence is None:
        # Rounding must not take away a promise that holds exactly.
        largest = largest_mean_risk(alpha, bound, units) if units >= units_needed(alpha, bound) else -1.0
        text = "On average over calibrations, "
    else:
        largest = largest_confident_risk(alpha, bound, units, confidence)
        text = f"With {100 * confidence:g} % confidence, "
    if risk == "pixels":
        text += (
            f"at most {100 * alpha:.3g} % of the known pixels raise a false alarm, where one of the {unit} with more "
            f"than {100 * bound:g} % counts as {100 * bound:g} %."
        )
    else:
        text += (
            f"at most {100 * alpha:.3g} % of the frames show a false object of {request.object_size} pixels or more."
        )
    threshold = smallest_threshold(losses, max(largest, 0.0)) if largest >= -1e-12 else None
    return Statement(risk, alpha, confidence, threshold, units_needed(alpha, bound, confidence), text)


def _round_up(value: float) -> float:
    """To two significant digits."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / digit - 1e-9) * digit
