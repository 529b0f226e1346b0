"""Runs the network on frames in batches, in this process or on workers, and returns results in the order of frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..detector import AnomalyDetector, Result
from ..errors import PebalError
from ..footage import Frame
from .cluster import Workers

AHEAD = 3
"""Number of batches per worker that are decoded before the earliest is completed."""


@dataclass(frozen=True)
class Batch:
    """Images that are sent to a worker together.

    Args:
        name: name of the first frame.
        images: H×W×3 uint8 RGB each, all of one size.
    """

    name: str
    images: list[np.ndarray]

    def __str__(self) -> str:
        return f"Frame {self.name}"


class Network:
    """The detector of a worker."""

    def __init__(self, load: Callable[[], AnomalyDetector]) -> None:
        self._detector = load()

    def __call__(self, batch: Batch) -> list[Result]:
        return answers(self._detector, batch.images)


def answers(detector: AnomalyDetector, images: list[np.ndarray]) -> list[Result]:
    """Run the detector on images of one size."""
    return [detector(images[0])] if len(images) == 1 else detector(images)


def batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    """Group consecutive frames of equal size into batches of at most `size` frames."""
    batch: list[Frame] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) > 1 and frame.image.shape != batch[0].image.shape:
            yield batch[:-1]
            batch = [frame]
        if len(batch) == size:  # yields without waiting for the next frame of a camera
            yield batch
            batch = []
    if batch:
        yield batch


def answered(frames: Iterator[Frame], workers: Workers, size: int) -> Iterator[tuple[Frame, Result]]:
    """Yield each frame with its result, in the order of the frames.

    If reading the frames fails, the results of the frames read so far are yielded first.

    Args:
        frames: the frames.
        workers: workers whose function is a `Network`.
        size: number of frames in a batch.

    Raises:
        PebalError: reading the frames fails, or a batch cannot be processed.
    """
    waiting: deque[list[Frame]] = deque()
    failures: list[Exception] = []

    def whole() -> Iterator[Frame]:
        try:
            yield from frames
        except (PebalError, OSError) as error:
            failures.append(error)

    def drawn() -> Iterator[Batch]:
        for batch in batches(whole(), size):
            waiting.append(batch)
            yield Batch(batch[0].name, [frame.image for frame in batch])

    for _, results, error in workers.results(drawn(), AHEAD * workers.count):
        if error is not None:
            raise error
        yield from zip(waiting.popleft(), results)
    if failures:
        raise failures[0]
