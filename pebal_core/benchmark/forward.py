"""Reads labels and every score from one forward pass of an image."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from ..detector import AnomalyDetector
from ..engines import Engine
from ..engines.logits import Logits, LogitsEngine
from ..engines.readout import smooth_array
from ..errors import PebalError
from ..networks.base import upsample
from ..scores import SCORES, anomaly_scores

BAND = 128
"""Number of rows for which scores are computed at once."""

WINDOW, STRIDE = 800, 534
"""Side and step in pixels of the sliding windows by which the reference measures its mIoU."""

MaxLogits = tuple[Tensor, Tensor]
"""Mean and standard deviation of the highest logit by class, for ``sml``."""


@dataclass(frozen=True)
class Forward:
    """The result for one image; arrays are H×W at the size of the image."""

    labels: np.ndarray
    """uint8 trainIds."""
    scores: dict[str, np.ndarray]
    """float32, by name."""
    confidence: np.ndarray | None
    """float32, the highest softmax probability of the inlier classes; None unless it was asked for."""
    milliseconds: dict[str, float]
    """By stage: preprocess, network, scores."""


class ScoreReader:
    """Runs a detector's network once for an image and reads labels and scores from its logits.

    Labels and energy are read by the detector's own code, so the figures apply to the detector as it is deployed.

    Args:
        detector: its engine must give logits.

    Raises:
        PebalError: the engine gives no logits.

    Examples:
        >>> from pebal_core import AnomalyDetector
        >>> reader = ScoreReader(AnomalyDetector.load("starter"))
        >>> forward = reader(np.zeros((64, 96, 3), np.uint8), ["energy", "msp_raw"])
        >>> {name: score.shape for name, score in forward.scores.items()}
        {'energy': (64, 96), 'msp_raw': (64, 96)}
    """

    def __init__(self, detector: AnomalyDetector) -> None:
        engine = detector.engine
        if not _gives_logits(engine):
            raise PebalError(
                f"{detector.model_path} provides no logits on the engine {detector.engine_name}, so its scores cannot "
                "be compared; benchmark the .safetensors model, or an ONNX file whose output is the logits."
            )
        self.detector = detector
        self.engine: LogitsEngine = engine

    def __call__(
        self, image: np.ndarray, names: Sequence[str], confidence: bool = False, max_logits: MaxLogits | None = None
    ) -> Forward:
        """Compute labels and scores of an image H×W×3 uint8 RGB.

        Args:
            names: of the scores, see `score_names`.
            confidence: whether to return the confidences.
            max_logits: statistics of the training images, needed where ``sml`` is among the names.
        """
        size = (image.shape[0], image.shape[1])
        logits = self.engine.logits(np.require(image[None], requirements=["C", "W"]), self.engine.input_size)
        started = time.perf_counter()
        labels, energy = (batch[0].cpu().numpy() for batch in self.engine.read(logits, size))
        parsed = {name: split_name(name, self.engine.smoothing) for name in names}
        wanted = {base for base, _ in parsed.values()} | ({"msp"} if confidence else set())
        raw = {"energy": energy, **_read(logits, sorted(wanted - {"energy"}), size, max_logits)}
        smoothed = {base: smooth_array(raw[base]) for base, blurred in set(parsed.values()) if blurred}
        timings = self.engine.timings
        return Forward(
            labels,
            {name: smoothed[base] if blurred else raw[base] for name, (base, blurred) in parsed.items()},
            1 - raw["msp"] if confidence else None,
            {
                "preprocess": 1e3 * timings["preprocess"],
                "network": 1e3 * timings["inference"],
                "scores": 1e3 * (time.perf_counter() - started),
            },
        )

    def max_logit(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Highest inlier logit H×W float32 and labels H×W uint8."""
        forward = self(image, ["max_logit_raw"])
        return -forward.scores["max_logit_raw"], forward.labels

    @torch.inference_mode()
    def sliding_labels(self, image: np.ndarray) -> np.ndarray:
        """Labels H×W uint8 from the summed logits of windows of 800×800 every 534 pixels, at the size of the image."""
        height, width = image.shape[:2]
        total: Tensor | None = None
        for top in _window_starts(height):
            for left in _window_starts(width):
                window = image[top : top + WINDOW, left : left + WINDOW]
                logits = self.engine.logits(np.require(window[None], requirements=["C", "W"]), None)
                full = _full(logits)[0, :-1]
                if total is None:
                    total = full.new_zeros((full.shape[0], height, width))
                total[:, top : top + full.shape[1], left : left + full.shape[2]] += full
        assert total is not None
        return total.argmax(dim=0).to(torch.uint8).cpu().numpy()


def score_names(bases: Iterable[str], smoothing: bool) -> dict[str, str]:
    """Names and descriptions of both variants of each score.

    A plain name stands for the score as the model publishes its energy, with the 7×7 Gaussian if the model says so. The
    other variant has the suffix ``_raw`` or ``_smoothed``.

    Examples:
        >>> score_names(["msp"], smoothing=False)
        {'msp': '1 - maximum softmax probability', 'msp_smoothed': '1 - maximum softmax probability, 7×7 Gaussian'}
    """
    names = {}
    for base in bases:
        names[base] = SCORES[base] + (", 7×7 Gaussian" if smoothing else "")
        names[f"{base}_{'raw' if smoothing else 'smoothed'}"] = SCORES[base] + ("" if smoothing else ", 7×7 Gaussian")
    return names


def split_name(name: str, smoothing: bool) -> tuple[str, bool]:
    """The score of this name, and whether it passes the Gaussian.

    Raises:
        PebalError: there is no such score.

    Examples:
        >>> split_name("msp", smoothing=True), split_name("msp_raw", smoothing=True)
        (('msp', True), ('msp', False))
    """
    for ending, blurred in (("_raw", False), ("_smoothed", True), ("", smoothing)):
        base = name.removesuffix(ending)
        if name.endswith(ending) and base in SCORES:
            return base, blurred
    raise PebalError(
        f"There is no score '{name}'; choose among {', '.join(SCORES)}, each also with _raw (without the Gaussian) or "
        "_smoothed (with it)."
    )


def _gives_logits(engine: Engine) -> TypeGuard[LogitsEngine]:
    return isinstance(engine, LogitsEngine)


@torch.inference_mode()
def _read(
    logits: Logits, bases: Sequence[str], size: tuple[int, int], max_logits: MaxLogits | None
) -> dict[str, np.ndarray]:
    """Compute scores without the Gaussian and scale them to the image as the energy is scaled."""
    if not bases:
        return {}
    full = _full(logits)
    bands = [anomaly_scores(full[:, :, top : top + BAND], bases, max_logits) for top in range(0, full.shape[2], BAND)]
    scores = {base: torch.cat([band[base] for band in bands], dim=1) for base in bases}
    if logits.seen != size:
        scores = {
            base: torch.nn.functional.interpolate(score[:, None], size, mode="bilinear")[:, 0]
            for base, score in scores.items()
        }
    return {base: score[0].cpu().numpy() for base, score in scores.items()}


def _full(logits: Logits) -> Tensor:
    height, width = logits.seen
    return upsample(logits.values.float(), logits.padded)[..., :height, :width]


def _window_starts(side: int) -> list[int]:
    count = max(0, -(-(side - WINDOW) // STRIDE)) + 1
    return [max(0, min(i * STRIDE, side - WINDOW)) for i in range(count)]
