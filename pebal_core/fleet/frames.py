"""Frames through the network in batches, in this process or on workers, with the answers in the order of the frames."""

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
"""Batches for each worker that are decoded before the earliest is answered."""


@dataclass(frozen=True)
class Batch:
    """What is sent to a worker.

    Args:
        name: of the first frame.
        images: H×W×3 uint8 RGB each, of one size.
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
    """Labels and energy of images of one size."""
    return [detector(images[0])] if len(images) == 1 else detector(images)


def batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    """Frames of one size in groups of at most `size`, in their order."""
    batch: list[Frame] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) > 1 and frame.image.shape != batch[0].image.shape:
            yield batch[:-1]
            batch = [frame]
        if len(batch) == size:  # at once: the next frame of a camera may take its time
            yield batch
            batch = []
    if batch:
        yield batch


def answered(frames: Iterator[Frame], workers: Workers, size: int) -> Iterator[tuple[Frame, Result]]:
    """Each frame with its answer, in their order.

    Where reading the frames fails, those before it are answered first.

    Args:
        workers: whose function is a `Network`.
        size: of a batch.

    Raises:
        PebalError: as the frames do, or a batch cannot be answered.
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
