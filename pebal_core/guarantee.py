"""Guarantees on false alarms at a threshold: the request, the guarantees that the data support, and their wording.

promised = guarantee(losses, Request(alpha=0.01), unit="drives", frames=1200, source="town.mp4")
promised.threshold, promised.text
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import PebalError
from .risk_control import (
    CLIP,
    Loss,
    largest_confident_risk,
    largest_mean_risk,
    smallest_alpha,
    smallest_threshold,
    units_needed,
)

Risk = Literal["pixels", "objects"]


@dataclass(frozen=True)
class Request:
    """The guarantees to be given.

    Raises:
        PebalError: a value is out of range.

    Examples:
        >>> Request(alpha=0.02, object_alpha=0.1, clip=0.2).risks
        {'pixels': (0.02, 0.2), 'objects': (0.1, 1.0)}
    """

    alpha: float = 0.01
    """Expected share of falsely alarmed pixels."""
    object_alpha: float | None = None
    """Probability that a frame shows a false object; None if it need not be bounded."""
    object_size: int = 100
    """Smallest area of a false object in pixels."""
    clip: float = CLIP
    """A unit's share of falsely alarmed pixels is clipped to this value."""
    confidence: float = 0.95
    """Confidence of the second guarantee; the first one holds on average over calibrations."""
    confident: bool = False
    """Whether the threshold must satisfy the second guarantee as well; otherwise only its threshold is reported."""

    def __post_init__(self) -> None:
        shares = {"alpha": self.alpha, "object_alpha": self.object_alpha, "clip": self.clip}
        for name, value in {**shares, "confidence": self.confidence}.items():
            if value is not None and not 0 < value < 1:
                raise PebalError(f"The option {name} must lie between 0 and 1; it is {value}.")
        if self.alpha > self.clip:
            raise PebalError(
                f"The option alpha ({self.alpha:g}) exceeds clip ({self.clip:g}), so every threshold would satisfy "
                "the guarantee; lower alpha or raise clip."
            )
        if self.object_size < 1:
            raise PebalError(f"The option object_size must be at least 1 pixel; it is {self.object_size}.")

    @property
    def risks(self) -> dict[Risk, tuple[float, float]]:
        """Requested bound on the risk and upper bound of the loss, for each loss that is to be bounded."""
        pixels: dict[Risk, tuple[float, float]] = {"pixels": (self.alpha, self.clip)}
        return pixels if self.object_alpha is None else {**pixels, "objects": (self.object_alpha, 1.0)}


@dataclass(frozen=True)
class Statement:
    """One guarantee, and the smallest threshold at which it holds."""

    risk: Risk
    alpha: float
    """Bound on the risk."""
    confidence: float | None
    """Probability that the bound holds; None if it holds for the mean over repetitions of the calibration."""
    threshold: float | None
    """Smallest threshold in nats; None if there are too few units."""
    needed: int
    """Smallest number of units with which the guarantee can be given."""
    text: str


@dataclass(frozen=True)
class Guarantee:
    """The threshold and the guarantees that hold at it."""

    threshold: float
    statements: tuple[Statement, ...]
    units: int
    unit: str
    """Name of the units in the plural, such as drives or blocks of 5 s."""
    frames: int
    source: str
    request: Request

    @property
    def text(self) -> str:
        """The guarantees that hold at the threshold, those that do not, and the assumption, in words."""
        reached = [s for s in self.statements if s.threshold is not None and s.threshold <= self.threshold]
        missed = [s for s in self.statements if s not in reached]
        sentences = [s.text for s in reached]
        for statement in missed:
            reason = (
                f"at least {self._units(statement.needed)} are needed"
                if statement.threshold is None
                else f"the threshold would have to be {statement.threshold:.3f}"
            )
            sentences.append(f"Not promised, because {reason}: {statement.text}")
        sentences.append(
            f"This assumes that future images resemble the {self._units(self.units)} ({self.frames} frames of "
            f"{self.source}) as much as these resemble each other, and that these contained nothing anomalous."
        )
        return " ".join(sentences)

    def _units(self, number: int) -> str:
        if number > 1:
            return f"{number} {self.unit}"
        first, *rest = self.unit.split(" ")
        return " ".join([f"1 {first.removesuffix('s')}", *rest])

    def as_dict(self) -> dict[str, Any]:
        """The content that the model file stores."""
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
    """Find the smallest threshold that satisfies a request, and state the guarantees in words.

    The largest of the thresholds of several guarantees satisfies them all, because no loss rises with the threshold.

    Args:
        losses: for each risk of the request, one loss per unit.
        request: the guarantees to be given.
        unit: name of the units in the plural.
        frames: number of calibration frames.
        source: name of the data from which the units come.
        relax: if there are too few units to bound the mean risk as requested, use the smallest bound that they allow.

    Raises:
        PebalError: there are too few units; the message states the number needed, and the smallest possible bound.

    Examples:
        >>> import numpy as np
        >>> blocks = [Loss(np.array([energy], np.float32), np.array([0.05])) for energy in np.linspace(-6, -4, 40)]
        >>> found = guarantee({'pixels': blocks}, Request(alpha=0.02), 'blocks of 10 images', 400, 'drive.mp4')
        >>> round(found.threshold, 2)  # bounds the mean risk; 95 % confidence needs a higher threshold
        -4.77
        >>> found.statements[0].threshold == found.threshold, found.statements[1].threshold > found.threshold
        (True, True)
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
                    + f", even if none raises a false alarm; {source} has {units}. Record more, take shorter blocks "
                    f"of time, or pass --{name} {_round_up(smallest_alpha(bound, units, confidence)):g}, the "
                    f"smallest that {units} {unit} can promise."
                )
            required.append(statement.threshold)
    threshold = max(required)
    if not math.isfinite(threshold):
        # Any threshold satisfies the request, but the threshold still has to be finite.
        threshold = float(min(loss.energies[-1] for loss in losses["pixels"]))
    return Guarantee(threshold, tuple(statements), len(losses["pixels"]), unit, frames, source, request)


def _state(
    risk: Risk, alpha: float, bound: float, losses: list[Loss], confidence: float | None, unit: str, request: Request
) -> Statement:
    """Find the smallest threshold for one guarantee, and state it in words."""
    units = len(losses)
    if confidence is None:
        # The number of units decides first, so that rounding cannot reject a guarantee that holds exactly.
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
    """Round up to two significant digits."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / digit - 1e-9) * digit
