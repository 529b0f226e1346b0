"""Detects when a guarantee no longer holds, by an anytime-valid test on the alarms and the appearance of the images.

The model file stores a `Profile` of its calibration frames. At run time two numbers in [0, 1] are monitored: the
alarmed share of a frame, clipped and divided by its bound, and whether the frame looks unlike every calibration frame.
Under the hypothesis that their conditional means stay at or below those of the worst calibration unit, the wealth of a
gambler who bets on larger values is a supermartingale. It therefore exceeds 1 / level with a probability of at most
`level`, however long the test runs (Ville's inequality). Bets that start at every time are mixed with weights
1 / (j (j + 1)), so that a change after a long calm period is detected as well. Each frame takes constant time and
memory.

    monitor = DriftMonitor(detector.info)
    state = monitor.update(result.energy, image)
    if state.drifted: print(state.text)

Sources: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS-B 2024); Shin, Ramdas,
Rinaldo, "E-detectors" (2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from .errors import PebalError
from .model_info import ModelInfo
from .objects import IgnoreMask

LEVEL = 0.001
"""Probability that drift is ever reported for a camera without drift."""
GROUP = 5
"""Number of frames that are averaged for one bet, because neighbouring frames are alike."""
STAKES = (0.3, 0.6, 0.9)
"""Bets as shares of the greatest possible stake; each gets a third of the wealth."""
FEATURES = ("brightness", "contrast", "sharpness", "saturated")
TOLERANCE = (12.0, 8.0, 0.8, 0.03)
"""Margins by which each of `FEATURES` must leave the range of the calibration frames."""
UNLIKE = 0.2
"""Share of unlike frames that is tolerated, because the calibration frames cannot show everything."""
LEAST_SHARP = 0.1
"""A frame counts as blurred below this position in the range of the calibration frames' sharpness."""
GRID = (18, 32)
"""Rows and columns of the map of alarms from which the reason is guessed."""
DAMPING = 0.9
"""Decay per frame of the running means from which the reason is guessed, which span about ten frames."""


@dataclass(frozen=True)
class Profile:
    """Statistics of the calibration frames, which the model file stores."""

    alarmed: float
    """Largest mean, over the calibration units, of the clipped alarmed share."""
    bound: float
    """Alarmed share at which a frame is clipped."""
    low: list[float]
    """Smallest value of each of `FEATURES`."""
    high: list[float]
    """Largest value of each of `FEATURES`."""
    frames: int
    """Number of calibration frames."""

    def as_dict(self) -> dict[str, Any]:
        """The profile as JSON types, for the model file."""
        return asdict(self)


@dataclass(frozen=True)
class DriftState:
    """State of the test after a frame."""

    drifted: bool
    reason: str
    """Likely reason (night, glare, fog, blur, dirt, or another place or camera); empty without drift."""
    evidence: float
    """Wealth of the gambler, which starts at 1; drift is reported from 1 / level on."""

    @property
    def text(self) -> str:
        """The state in one sentence."""
        return f"The guarantee no longer holds: {self.reason}." if self.drifted else "The guarantee holds."


def features(image: np.ndarray) -> np.ndarray:
    """Brightness, contrast, sharpness (all in grey levels) and the saturated share of an image H×W×3 uint8 RGB.

    Examples:
        >>> features(np.full((64, 64, 3), 255, np.uint8)).tolist()  # overexposed
        [255.0, 0.0, 0.0, 1.0]
    """
    green = image[::8, :, 1]
    small = green[:, ::8].astype(np.float32)
    steps = cv2.absdiff(np.ascontiguousarray(green[:, 1:]), np.ascontiguousarray(green[:, :-1]))
    return np.array([small.mean(), small.std(), steps.mean(), (small >= 250).mean()])


def make_profile(shares: dict[str, list[float]], seen: Sequence[np.ndarray], bound: float) -> Profile:
    """Compute the profile of the calibration frames.

    Args:
        shares: alarmed share of each frame, by unit.
        seen: `features` of each frame.
        bound: alarmed share at which a frame is clipped.

    Examples:
        >>> seen = [features(np.full((64, 64, 3), grey, np.uint8)) for grey in (90, 110)]
        >>> profile = make_profile({'block 1': [0.0, 0.02], 'block 2': [0.01, 0.5]}, seen, bound=0.1)
        >>> profile.alarmed, profile.low[0], profile.high[0], profile.frames
        (0.055, 90.0, 110.0, 2)
    """
    worst = max(float(np.mean(np.minimum(values, bound))) for values in shares.values())
    low, high = np.min(seen, axis=0), np.max(seen, axis=0)
    return Profile(worst, bound, [round(float(v), 3) for v in low], [round(float(v), 3) for v in high], len(seen))


class Gambler:
    """Bets that the mean of values in [0, 1] exceeds `mean`; `wealth` is an e-process.

    Examples:
        >>> gambler = Gambler(mean=0.1)
        >>> wealths = [gambler.bet(0.4) for _ in range(20)]
        >>> wealths[0] < wealths[-1], wealths[-1] > 100
        (True, True)
    """

    def __init__(self, mean: float) -> None:
        self.mean = min(max(mean, 0.02), 0.95)
        self.bets, self.wealth = 0, 1.0
        self._running = [0.0] * len(STAKES)

    def bet(self, value: float) -> float:
        """Bet on one value and return the wealth afterwards."""
        self.bets += 1
        start = 1 / (self.bets * (self.bets + 1))
        for i, stake in enumerate(STAKES):
            growth = 1 + stake / self.mean * (value - self.mean)
            self._running[i] = min((self._running[i] + start) * growth, 1e30)
        self.wealth = sum(self._running) / len(STAKES) + 1 / (self.bets + 1)
        return self.wealth


class DriftMonitor:
    """Monitors the frames of one camera for drift.

    Args:
        info: description of a calibrated model.
        level: probability of ever reporting a drift where there is none.

    Raises:
        PebalError: the model has no profile, or the profile is damaged.

    Examples:
        >>> seen = [features(np.full((64, 64, 3), grey, np.uint8)) for grey in (90, 110)]
        >>> profile = make_profile({"block 1": [0.0, 0.01]}, seen, bound=0.05)
        >>> monitor = DriftMonitor(ModelInfo("deeplabv3plus", threshold=-4.0, profile=profile.as_dict()))
        >>> energy, night = np.full((60, 80), -10, np.float32), np.zeros((64, 64, 3), np.uint8)
        >>> states = [monitor.update(energy, night) for _ in range(50)]
        >>> states[0].text
        'The guarantee holds.'
        >>> states[-1].text
        'The guarantee no longer holds: the images are darker than those of the calibration, as at night.'
    """

    def __init__(self, info: ModelInfo, level: float = LEVEL) -> None:
        if not info.profile or info.threshold is None:
            raise PebalError("The model has no profile to compare with; calibrate it with 'pebal calibrate'.")
        try:
            self.profile = Profile(**info.profile)
            numbers = [self.profile.alarmed, self.profile.bound, *self.profile.low, *self.profile.high]
            sound = bool(np.isfinite(numbers).all()) and self.profile.bound > 0
        except TypeError:
            sound = False
        if not sound or not len(self.profile.low) == len(self.profile.high) == len(FEATURES):
            raise PebalError(
                "The profile in the model file is damaged; calibrate the model again with 'pebal calibrate'."
            )
        self.info, self.level = info, level
        margin = np.array(TOLERANCE)
        self._low, self._high = np.array(self.profile.low) - margin, np.array(self.profile.high) + margin
        self._mask = IgnoreMask.decode(info.ego_mask)
        self._alarms = Gambler(1.5 * self.profile.alarmed / self.profile.bound)
        self._appearance = Gambler(UNLIKE)
        self._group: list[tuple[float, float]] = []
        self._recent = np.zeros(len(FEATURES))
        self._alarm_map = np.zeros(GRID, np.float32)
        self._frames = 0
        self.state = DriftState(False, "", 1.0)

    def update(self, energy: np.ndarray, image: np.ndarray) -> DriftState:
        """Add one frame and return the state after it.

        A reported drift stays reported; create a new monitor to start again. An image that differs in aspect ratio from
        the ego mask comes from another camera, which counts as drift immediately.

        Args:
            energy: H×W float32 in nats.
            image: H×W×3 uint8 RGB, of any size.
        """
        try:
            ignore = None if self._mask is None else self._mask.at(*energy.shape).view(np.uint8)
        except PebalError:
            reason = self.state.reason or "the images have a different aspect ratio than those of the calibration"
            self.state = DriftState(True, reason, self.state.evidence)
            return self.state
        size = (GRID[1] * 8, GRID[0] * 8)
        small = cv2.resize(energy, size, interpolation=cv2.INTER_NEAREST)
        alarm = small >= np.float32(self.info.threshold or 0.0)
        known = small.size
        if ignore is not None:
            scene = cv2.resize(ignore, size, interpolation=cv2.INTER_NEAREST) == 0
            alarm &= scene
            known = max(1, int(np.count_nonzero(scene)))
        share = min(np.count_nonzero(alarm) / known, self.profile.bound) / self.profile.bound
        seen = features(image)
        unlike = bool(((seen < self._low) | (seen > self._high)).any())
        self._frames += 1
        weight = max(1 / self._frames, 1 - DAMPING)
        self._recent += weight * (seen - self._recent)
        self._alarm_map += weight * (
            cv2.resize(alarm.astype(np.float32), GRID[::-1], interpolation=cv2.INTER_AREA) - self._alarm_map
        )
        self._group.append((share, float(unlike)))
        if len(self._group) == GROUP:
            shares, looks = np.mean(self._group, axis=0).tolist()
            self._group.clear()
            # Each of the two tests gets half of the level.
            evidence = max(self._alarms.bet(shares), self._appearance.bet(looks)) / 2
            drifted = self.state.drifted or evidence >= 1 / self.level
            reason = self.state.reason or (self._guess() if drifted else "")
            self.state = DriftState(drifted, reason, max(evidence, self.state.evidence) if drifted else evidence)
        return self.state

    def _guess(self) -> str:
        """Guess the most likely reason from the mean of the recent frames."""
        below, above = self._recent < self._low, self._recent > self._high
        # Position of each feature in the range of the calibration frames, 0 at the lower and 1 at the upper end.
        low, high = np.array(self.profile.low), np.array(self.profile.high)
        position = (self._recent - low) / np.maximum(high - low, 1e-6)
        if below[0]:
            return "the images are darker than those of the calibration, as at night"
        if below[1] or (above[0] and not above[3] and max(position[1], position[2]) < 0.5):
            return "the images have less contrast than those of the calibration, as in fog"
        if above[3] or above[0]:
            return "the images are brighter or more saturated than those of the calibration, as in glare"
        # Most alarms stay in the same cells of the map, frame after frame.
        fixed = self._alarm_map > 0.6
        if (
            fixed.any()
            and position[2] >= LEAST_SHARP
            and self._alarms.wealth > self._appearance.wealth
            and math.isclose(float(self._alarm_map[fixed].sum()), float(self._alarm_map.sum()), rel_tol=0.5)
        ):
            return "the same places alarm in every frame, as behind a dirty or blocked lens"
        if below[2] or position[2] < LEAST_SHARP:
            return "the images are less sharp than those of the calibration, as by blur, rain or a dirty lens"
        return "there are more alarms than at the calibration, as in another place or with another camera"
