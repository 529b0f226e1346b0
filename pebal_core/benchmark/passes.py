"""Work that is done once for each image of a set, in this process or on workers that see one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..errors import PebalError
from ..fleet.cluster import LostError, Workers
from ..metrics.pooled import PooledMetrics
from .shards import CountShards, Records

Outcome = tuple[dict[str, np.ndarray], Mapping[str, PooledMetrics]]
"""What an image leaves: small arrays for its record, and the metrics of each score for the shards."""


@dataclass(frozen=True)
class Task:
    """One image of a pass.

    Args:
        stage: which pass over the set, as `Plan.pass_of` knows it.
        name: of the set, or "".
        index: of the image within it.
    """

    stage: str
    name: str
    index: int

    def __str__(self) -> str:
        return f"Image {self.index} of {self.name or self.stage}"


@dataclass(frozen=True)
class Pass:
    """One thing that is done to every image of a set."""

    title: str
    stage: str
    name: str
    records: Records
    do: Callable[[int], Outcome]
    """Raises `PebalError` for an image that cannot be evaluated."""
    counts: CountShards | None = None
    finished: Callable[[], bool] = field(default=lambda: False)
    """Whether the counts were summed up already, so that records suffice."""

    def done(self) -> set[int]:
        """Images of which everything is there."""
        done = set(self.records.done())
        return done if self.counts is None or self.finished() else done & self.counts.covered()

    def missing(self) -> list[int]:
        """Images that are neither done nor failed."""
        return sorted(set(range(self.records.count)) - self.done() - set(self.records.failures()))

    def evaluate(self, index: int) -> str:
        """Do one image and leave its record; returns why it cannot be evaluated, or "".

        Raises:
            PebalError: the record cannot be written.
        """
        try:
            record, metrics = self.do(index)
        except PebalError as error:
            return str(error)
        if self.counts is not None:
            self.counts.add(index, metrics)
        self.records.write(index, record)
        return ""

    def work(self, workers: Workers, advance: Callable[[], None]) -> None:
        """Do what is not done, and what failed before. An image that fails is noted, and the rest goes on.

        Args:
            workers: whose function is `Plan.evaluate`.
            advance: called after every image.

        Raises:
            PebalError: a record cannot be written, or records get lost.
        """
        done = self.done()
        indices = [index for index in range(self.records.count) if index not in done]
        for index in indices:
            self.records.forget_failure(index)
        while indices:
            for task, reason, error in workers.results(Task(self.stage, self.name, index) for index in indices):
                if error is not None and not isinstance(error, LostError):
                    raise error
                if error is not None or reason:
                    self.records.fail(task.index, reason or str(error))
                advance()
            # The counts of a worker that died may overlap with those of the one that did its image again.
            missing = self.missing()
            if len(missing) >= len(indices):
                raise PebalError(f"Of {self.title}, what was computed is gone from {self.records.folder.parent}.")
            indices = missing
