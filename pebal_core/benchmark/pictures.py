"""Draws the best and the worst frames of a set as overlays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from ..data.anomaly_sets import ANOMALY, EvaluationSet
from ..files import write_atomically
from ..labels import VOID
from ..render import label_colors, overlay, score_map
from .forward import ScoreReader
from .results import FrameEntry

EACH = 3
"""Number of best and of worst frames, if there are enough."""

LARGEST = 1280
"""Length of a picture's longer side in pixels, at most."""

OUTLINE = (0, 255, 255)
"""RGB colour of the outline of labelled anomalies."""


def draw_frames(
    out: Path, name: str, data: EvaluationSet, reader: ScoreReader, score: str, figures: Mapping[int, float]
) -> list[FrameEntry]:
    """Write ``frames/NAME/*.jpg``, worst first.

    On an anomaly set, a picture shows the image with the score as a heat map and the outline of the labelled anomalies.
    The heat map begins at the median of the frame's inliers and saturates at the 95 % quantile of its anomalies. On a
    set of classes, a picture shows the predicted classes over the image, with wrong pixels in red.

    Args:
        figures: the figure by which a frame is ranked, by index.

    Examples:
        >>> import tempfile
        >>> from pebal_core import AnomalyDetector
        >>> from pebal_core.data.anomaly_sets import anomaly_ids
        >>> reader = ScoreReader(AnomalyDetector.load("starter"))
        >>> with tempfile.TemporaryDirectory() as out:
        ...     file = Path(out) / "a.png"  # both the image and its labels
        ...     _ = cv2.imwrite(str(file), np.tri(64, dtype=np.uint8))
        ...     data = EvaluationSet("town", Path(out), ((file, file),), anomaly_ids([0], [1]))
        ...     entry, = draw_frames(Path(out), "town", data, reader, "energy", {0: 0.7})
        >>> entry.kind, entry.figure, entry.picture
        ('worst', 0.7, 'frames/town/worst_a.jpg')
    """
    ranked = sorted(figures, key=lambda index: (figures[index], index))
    best = min(EACH, len(ranked) // 2)
    picked = [("worst", index) for index in ranked[: min(EACH, len(ranked) - best)]]
    picked += [("best", index) for index in ranked[len(ranked) - best :]]
    entries = []
    for kind, index in picked:
        path = data.pairs[index][0]
        picture = f"frames/{name}/{kind}_{path.stem}.jpg"
        content = cv2.imencode(".jpg", _draw(data, reader, score, index)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
        write_atomically(out / picture, content.tobytes())
        entries.append(FrameEntry(path.name, kind, figures[index], picture))
    return entries


def _draw(data: EvaluationSet, reader: ScoreReader, score: str, index: int) -> np.ndarray:
    frame = data.load(index)
    if data.ids.classes:
        labels, palette = reader(frame.image, []).labels, reader.detector.info.classes.palette
        picture = (frame.image * 0.5 + label_colors(labels, palette) * 0.5).astype(np.uint8)
        picture[(frame.target != VOID) & (frame.target != labels)] = (255, 0, 0)
        return _shrunk(picture)
    values, anomaly = reader(frame.image, [score]).scores[score], frame.target == ANOMALY
    low = float(np.median(values[frame.target == 0]))
    high = max(float(np.quantile(values[anomaly], 0.95)), low + 1e-3 * (1 + abs(low)))
    picture = _shrunk(overlay(frame.image, score_map(values, low, high)))
    mask = cv2.resize(anomaly.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(picture), outlines, -1, OUTLINE, 2)


def _shrunk(picture: np.ndarray) -> np.ndarray:
    scale = LARGEST / max(picture.shape[:2])
    if scale >= 1:
        return picture
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
