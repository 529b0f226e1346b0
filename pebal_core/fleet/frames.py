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


class BatchDetector:
    """Runs a detector on batches of images, as the function of a worker."""

    def __init__(self, load: Callable[[], AnomalyDetector]) -> None:
        self._detector = load()

    def __call__(self, batch: Batch) -> list[Result]:
        return answers(self._detector, batch.images)


def answers(detector: AnomalyDetector, images: list[np.ndarray]) -> list[Result]:
    """Run the detector on images of one size.

    Examples:
        >>> def stand_in(images):
        ...     return [image.shape for image in images]
        >>> answers(stand_in, [np.zeros((48, 64, 3), np.uint8)] * 2)
        [(48, 64, 3), (48, 64, 3)]
    """
    return [detector(images[0])] if len(images) == 1 else detector(images)


def batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    """Group consecutive frames of equal size into batches of at most `size` frames.

    Examples:
        >>> frames = [Frame(f"{number}", np.zeros((48, 64, 3), np.uint8), 0.1 * number) for number in range(3)]
        >>> [[frame.name for frame in batch] for batch in batches(iter(frames), size=2)]
        [['0', '1'], ['2']]
    """
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
        workers: workers whose function is a `BatchDetector`.
        size: number of frames in a batch.

    Raises:
        PebalError: reading the frames fails, or a batch cannot be processed.

    Examples:
        >>> from functools import partial
        >>> from pebal_core.fleet.cluster import open_workers
        >>> frames = [Frame(f"{number}", np.zeros((48, 64, 3), np.uint8), 0.1 * number) for number in range(3)]
        >>> load = partial(AnomalyDetector.load, "starter", engine="torch", device="cpu")
        >>> with open_workers(None, partial(BatchDetector, load), most=1) as workers:
        ...     [(frame.name, result.energy.shape) for frame, result in answered(iter(frames), workers, size=2)]
        [('0', (48, 64)), ('1', (48, 64)), ('2', (48, 64))]
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
