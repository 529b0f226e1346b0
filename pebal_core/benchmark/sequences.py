"""Evaluates objects over time on labelled sequences, with and without the rule that an object must persist."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from ..data.sequences import LabelledSequence, SequenceFrame
from ..detector import AnomalyDetector
from ..files import write_atomically
from ..metrics.sequences import SequenceMetrics, SequenceResult
from ..objects import IgnoreMask, ObjectRules, ObjectTracker, TrackRules, find_objects

RESULTS = "sequences.json"
CONFIRMED, AT_ONCE = "confirmed", "at once"
"""Names of the reports with the temporal rule and without it."""


def evaluate_sequences(
    detector: AnomalyDetector,
    sequences: list[LabelledSequence],
    rules: ObjectRules,
    tracks: TrackRules,
    mask: IgnoreMask | None = None,
    progress: Callable[[Iterable[SequenceFrame], str, int], Iterable[SequenceFrame]] = lambda frames, *_: frames,
) -> dict[str, SequenceResult]:
    """Find and track the objects of every sequence as the node does.

    Args:
        rules: for objects in one frame.
        tracks: rules by which an object is confirmed.
        mask: pixels that may not alarm.
        progress: wraps the frames of a sequence; it is given the name and the number of frames.

    Returns:
        figures for `CONFIRMED` objects, and for all objects that are seen `AT_ONCE`.

    Examples:
        >>> import tempfile
        >>> import cv2
        >>> import numpy as np
        >>> detector = AnomalyDetector.load("starter")
        >>> rules, tracks = ObjectRules.for_model(detector.info), TrackRules()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for kind in ("images", "objects"):
        ...         Path(folder, kind).mkdir()
        ...         _ = cv2.imwrite(f"{folder}/{kind}/0.png", np.tri(64, dtype=np.uint8))
        ...     _ = Path(folder, "sequence.json").write_text('{"rate": 10}')
        ...     results = evaluate_sequences(detector, [LabelledSequence(Path(folder))], rules, tracks)
        >>> {name: (figures.frames, figures.objects) for name, figures in results.items()}
        {'confirmed': (1, 1), 'at once': (1, 1)}
    """
    metrics = {CONFIRMED: SequenceMetrics(), AT_ONCE: SequenceMetrics()}
    for sequence in sequences:
        tracker = ObjectTracker(tracks)
        for each in metrics.values():
            each.begin(sequence.rate, len(sequence))
        for frame in progress(sequence, sequence.name, len(sequence)):
            result = detector(frame.image)
            ignore = mask.at(*result.energy.shape) if mask is not None else None
            objects = tracker.update(find_objects(result.energy, result.labels, rules, ignore).objects, frame.seconds)
            metrics[AT_ONCE].update(objects, frame.objects, frame.seconds)
            metrics[CONFIRMED].update([one for one in objects if one.confirmed], frame.objects, frame.seconds)
    return {name: each.compute() for name, each in metrics.items()}


def write_results(path: Path, model: str, threshold: float, results: dict[str, SequenceResult]) -> None:
    """Write the figures as JSON.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / RESULTS
        ...     write_results(path, "starter", -2.5, {CONFIRMED: SequenceMetrics().compute()})
        ...     list(json.loads(path.read_text()))
        ['model', 'threshold', 'confirmed']
    """
    content = {"model": model, "threshold": threshold, **{name: asdict(figures) for name, figures in results.items()}}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def table(results: dict[str, SequenceResult]) -> Table:
    """Format the figures for the terminal.

    Examples:
        >>> figures = table({CONFIRMED: SequenceMetrics().compute()})
        >>> [column.header for column in figures.columns], list(figures.columns[1].cells)
        (['reported', 'confirmed'], ['–', '–', '–', '0', '0.0', '0.000'])
    """
    rows = Table("reported", *results, title="Objects over time")

    def show(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    for title, key, digits in (
        ("share of objects", "share_reported", 3),
        ("seconds to report", "seconds_to_report", 2),
        ("width at report, pixels", "width_at_report", 0),
        ("id switches", "id_switches", 0),
        ("false objects per minute", "false_per_minute", 1),
        ("false objects per frame", "false_per_frame", 3),
    ):
        rows.add_row(title, *(show(getattr(figures, key), digits) for figures in results.values()))
    return rows
