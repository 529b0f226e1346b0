"""Work that is done once for each image of a set, by any number of processes that see one folder.

Process r of n does the images r, r + n, r + 2n, … and leaves a record of each. No process talks to another: that
all images are done shows in the folder. The first process also does what others leave undone for too long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..errors import PebalError
from ..metrics.pooled import PooledMetrics
from .shards import CountShards, Records

Outcome = tuple[dict[str, np.ndarray], Mapping[str, PooledMetrics]]
"""What an image leaves: small arrays for its record, and the metrics of each score for the shards."""


@dataclass(frozen=True)
class Workers:
    """This process among those that share a benchmark."""

    rank: int = 0
    count: int = 1
    patience: float = 600.0
    """Seconds without any progress of the others after which they are taken for dead."""
    on_progress: Callable[[], None] = field(default=lambda: None)

    @classmethod
    def from_environment(cls, patience: float, on_progress: Callable[[], None]) -> Workers:
        """As torchrun says in RANK and WORLD_SIZE."""
        rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if not 0 <= rank < count:
            raise PebalError(f"RANK is {rank} and WORLD_SIZE {count}; ranks count from 0 to WORLD_SIZE - 1.")
        return cls(rank, count, patience, on_progress)

    def wait(self, missing: Callable[[], int], what: str, give_up: Callable[[], None] | None = None) -> None:
        """Until nothing is missing. Without progress for `patience` seconds: `give_up`, or an error.

        Raises:
            PebalError: the others seem to be dead.
        """
        least, since = missing(), time.monotonic()
        while (now := missing()) > 0:
            self.on_progress()
            if now < least:
                least, since = now, time.monotonic()
            elif time.monotonic() - since > self.patience:
                if give_up is None:
                    raise PebalError(
                        f"{what}: nothing came from the other processes for {self.patience:.0f} seconds; they seem to "
                        "be dead. Run the same command again: it goes on from here."
                    )
                give_up()
                since = time.monotonic()
            time.sleep(0.2)


@dataclass(frozen=True)
class Pass:
    """One thing that is done to every image of a set."""

    title: str
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
        missing = self.records.missing()
        return missing or sorted(set(range(self.records.count)) - self.done() - set(self.records.failures()))

    def work(self, workers: Workers) -> None:
        """Do this process's share of what is not done. An image that fails is noted, and the rest goes on."""
        done = self.done()
        self._do([i for i in range(workers.rank, self.records.count, workers.count) if i not in done], workers)

    def join(self, workers: Workers) -> None:
        """Wait for the shares of all; the first process does in the end what the others do not."""
        take_over = (lambda: self._do(self.missing(), workers)) if workers.rank == 0 else None
        workers.wait(lambda: len(self.missing()), self.title, take_over)

    def _do(self, indices: list[int], workers: Workers) -> None:
        for index in indices:
            self.records.forget_failure(index)
        for index in indices:
            try:
                record, metrics = self.do(index)
            except PebalError as error:
                self.records.fail(index, str(error))
            else:
                if self.counts is not None:
                    self.counts.add(index, metrics)
                self.records.write(index, record)
            workers.on_progress()
