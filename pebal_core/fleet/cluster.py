"""Sources scanned on several processes or machines, by Ray.

Each worker holds one model, on a GPU of its own or on a stated number of cores, and scans one source after the other
into a file system that all machines share. A worker that dies is replaced; its source is tried again a few times, and
the others go on.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PebalError
from .scan import Job, ModelChoice, Request, scan

ATTEMPTS = 3
"""Workers that a source may cost before it is given up."""
HERE = "local"


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster.

    Args:
        address: of a running cluster, as Ray takes it; `HERE`: one is started on this machine, and ends with the work.
        cores: per worker, where the cluster has no GPU.
    """

    address: str
    cores: int

    def scan(self, jobs: Sequence[Job], request: Request, choice: ModelChoice) -> Iterator[tuple[str, str]]:
        """Scan on the workers; yields each source, in the order in which they are done, and why it failed, or "".

        Args:
            jobs: with absolute paths.

        Raises:
            PebalError: Ray is not installed, the cluster cannot be reached, or it has no room for a worker.
        """
        if not jobs:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise PebalError("--ray needs the package ray: pip install 'pebal_ros[ray]'.") from error
        # Ray's sockets lie in it, and their paths must be short, whatever the usual temporary folder is.
        with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            self._connect(ray, folder)
            try:
                yield from self._distribute(ray, jobs, request, choice)
            finally:
                ray.shutdown()

    def _connect(self, ray: Any, folder: str) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self.address == HERE:
            options |= {"include_dashboard": False, "_temp_dir": folder}
        try:
            ray.init(address="local" if self.address == HERE else self.address, **options)
        except Exception as error:  # Ray has no common base for what goes wrong
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise PebalError(f"The Ray cluster {self.address} cannot be reached: {reason}") from error

    def _distribute(
        self, ray: Any, jobs: Sequence[Job], request: Request, choice: ModelChoice
    ) -> Iterator[tuple[str, str]]:
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        count = min(gpus or cpus // self.cores, len(jobs))
        if count < 1:
            raise PebalError(f"The cluster has {cpus} cores and a worker takes {self.cores}: give fewer --cores.")
        options = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": self.cores}
        make = ray.remote(**options)(_Worker).remote
        waiting = deque((job, 1) for job in jobs)
        idle = [make(choice) for _ in range(count)]
        running: dict[Any, tuple[Any, Job, int]] = {}
        while waiting or running:
            while waiting and idle:
                worker, (job, attempt) = idle.pop(), waiting.popleft()
                running[worker.scan.remote(job, request)] = worker, job, attempt
            (reference,), _ = ray.wait(list(running), num_returns=1)
            worker, job, attempt = running.pop(reference)
            try:
                problem = ray.get(reference)
            except ray.exceptions.RayActorError:  # killed, out of memory, or a library that took the process down
                idle.append(make(choice))
                if attempt < ATTEMPTS:
                    waiting.append((job, attempt + 1))
                    continue
                problem = f"{job.source} was given up: each of {ATTEMPTS} workers died while it looked at it."
            except ray.exceptions.RayTaskError as error:
                problem = f"{job.source} could not be looked at: {error.cause!r}."
                idle.append(worker)
            else:
                idle.append(worker)
            yield job.source, problem


class _Worker:
    """An actor with a model."""

    def __init__(self, choice: ModelChoice) -> None:
        self._choice = choice
        self._detector: Any = None

    def scan(self, job: Job, request: Request) -> str:
        """Why the source failed, or ""."""
        try:
            if self._detector is None:
                self._detector = self._choice.load()
            if not job.folder.is_dir():  # else the worker before this one died after it had written it
                scan(job.source, job.folder, request, self._detector, lambda _: None)
            return ""
        except PebalError as error:
            return str(error)
