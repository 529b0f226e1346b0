"""Tasks done in this process, or by Ray on the workers of one machine or many: the same results either way.

Each worker is a process that loads what it needs once (a model, on a GPU of its own or on a stated number of cores)
and then takes one task after the other. A worker that dies is replaced, and its task is tried again.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..errors import PebalError

ATTEMPTS = 3
"""Workers that a task may cost before it is given up."""
HERE = "local"
CONNECTING = 10.0
"""Seconds that the head of a cluster has to answer."""

T = TypeVar("T")
Load = Callable[[], Callable[[Any], Any]]
"""Makes, in the worker, the function that does a task. It is pickled, so it is a `functools.partial` of a class or a
function of this package, with absolute paths."""


Done = tuple[T, Any, PebalError | None]
"""A task, what came of it, and why it failed."""


class LostError(PebalError):
    """The fault of one task: workers died over it, or it raised what nobody expects."""


class Workers(Protocol):
    """Who does the tasks.

    Example::

        with open_workers(Cluster("local", cores=2), partial(Scanner, request, choice), most=8) as workers:
            for job, result, error in workers.results(jobs):
                ...
    """

    @property
    def count(self) -> int:
        """Processes that take tasks."""

    def results(self, tasks: Iterable[T], ahead: int | None = None) -> Iterator[Done[T]]:
        """Each task, what came of it, and why it failed: the `PebalError` that it raised, or a `LostError`.

        Args:
            tasks: drawn as workers become free; ``str(task)`` is its name in sentences.
            ahead: None: in the order in which they are done. A number: in their own order, and no more than this many
                are drawn before the earliest is done, so that memory stays bounded.

        Raises:
            PebalError: no worker is left that could load.
        """


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster.

    Args:
        address: of a running cluster, as Ray takes it; `HERE`: one is started on this machine, and ends with the work.
        cores: per worker, where the cluster has no GPU.
    """

    address: str
    cores: int


@contextmanager
def open_workers(cluster: Cluster | None, load: Load, most: int) -> Iterator[Workers]:
    """Workers for as long as the context lasts.

    Args:
        cluster: None: this process does everything itself.
        load: called once by each worker.
        most: workers that there is work for.

    Raises:
        PebalError: Ray is not installed, the cluster cannot be reached, or it has no room for a worker; without a
            cluster: whatever `load` raises.
    """
    if cluster is None:
        yield _ThisProcess(load())
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise PebalError("--ray needs the package ray: pip install 'pebal_ros[ray]'.") from error
    # Ray's sockets lie in it, and their paths must be short, whatever the usual temporary folder is.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        _connect(ray, cluster.address, folder)
        try:
            yield _start(ray, cluster, load, most)
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str, folder: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():  # Ray itself would try for minutes
        try:
            socket.create_connection((host, int(port)), CONNECTING).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise PebalError(
                f"The Ray cluster {address} cannot be reached: {reason}; see 'ray status' there."
            ) from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == HERE:
        options |= {"include_dashboard": False, "_temp_dir": folder}
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray has no common base for what goes wrong
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise PebalError(f"The Ray cluster {address} cannot be reached: {reason}") from error


def _start(ray: Any, cluster: Cluster, load: Load, most: int) -> _RayWorkers:
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    count = min(gpus or cpus // cluster.cores, most)
    if count < 1:
        raise PebalError(f"The cluster has {cpus} cores and a worker takes {cluster.cores}: give fewer --cores.")
    options = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": cluster.cores}
    make = ray.remote(**options)(_Worker).remote
    return _RayWorkers(ray, lambda: make(load), count)


class _ThisProcess:
    """Does the tasks one after the other, as they are asked for."""

    count = 1

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def results(self, tasks: Iterable[T], ahead: int | None = None) -> Iterator[Done[T]]:
        for task in tasks:
            try:
                result = self._work(task)
            except PebalError as error:
                yield task, None, error
            else:
                yield task, result, None


class _Worker:
    """A process of the cluster."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._work: Callable[[Any], Any] = _not_loaded

    def load(self) -> None:
        """Apart from the constructor, so that what it raises arrives as it is."""
        self._work = self._load()

    def do(self, task: Any) -> Any:
        return self._work(task)


def _not_loaded(task: Any) -> Any:
    raise AssertionError(f"{task} came before the worker was loaded")


@dataclass(frozen=True)
class _Try:
    number: int
    task: Any
    attempt: int


class _RayWorkers:
    """Actors of which each does one task at a time, or two in turn where the order of the results is kept."""

    def __init__(self, ray: Any, make: Callable[[], Any], count: int) -> None:
        self.count = count
        self._ray, self._make = ray, make
        self._busy: dict[Any, int] = {}
        """Tasks that each loaded worker has."""
        self._loading: dict[Any, Any] = {}
        self._refusal = "no worker could be started"
        for _ in range(count):
            self._add()

    def results(self, tasks: Iterable[T], ahead: int | None = None) -> Iterator[Done[T]]:
        source = enumerate(tasks)
        again: deque[_Try] = deque()
        running: dict[Any, tuple[Any, _Try]] = {}
        done: dict[int, Done[T]] = {}
        first, drawn, exhausted = 0, 0, False
        while True:
            while (worker := self._free(1 if ahead is None else 2)) is not None:
                if again:
                    begun = again.popleft()
                elif exhausted or (ahead is not None and drawn - first >= ahead):
                    break
                elif (following := next(source, None)) is None:
                    exhausted = True
                    break
                else:
                    begun, drawn = _Try(*following, 1), drawn + 1
                running[worker.do.remote(begun.task)] = worker, begun
                self._busy[worker] += 1
            if exhausted and not running and not again:
                return
            if not running and not self._loading:
                raise PebalError(f"No worker is left: {self._refusal}")
            (reference,), _ = self._ray.wait([*running, *self._loading], num_returns=1)
            if reference in self._loading:
                self._welcome(reference)
                continue
            worker, begun = running.pop(reference)
            outcome = self._outcome(reference, worker, begun)
            if outcome is None:
                again.append(_Try(begun.number, begun.task, begun.attempt + 1))
            elif ahead is None:
                yield begun.task, *outcome
            else:
                done[begun.number] = begun.task, *outcome
                while first in done:
                    yield done.pop(first)
                    first += 1

    def _outcome(self, reference: Any, worker: Any, begun: _Try) -> tuple[Any, PebalError | None] | None:
        """What a task gave, and why it failed; None where it is to be tried again."""
        errors = self._ray.exceptions
        try:
            result, error = self._ray.get(reference), None
        except errors.RayActorError:  # killed, out of memory, or a library that took the process down
            if self._busy.pop(worker, None) is not None:  # else another task of this worker told so before
                self._add()
            if begun.attempt < ATTEMPTS:
                return None
            return None, LostError(f"{begun.task} was given up: each of {ATTEMPTS} workers died while it had it.")
        except errors.RayTaskError as raised:
            expected, cause = isinstance(raised.cause, PebalError), raised.cause
            result, error = None, cause if expected else LostError(f"{begun.task} could not be looked at: {cause!r}.")
        if worker in self._busy:  # else it died over its other task
            self._busy[worker] -= 1
        return result, error

    def _add(self) -> None:
        worker = self._make()
        self._loading[worker.load.remote()] = worker

    def _welcome(self, reference: Any) -> None:
        """Take in a worker that has loaded, or note why it could not."""
        worker, errors = self._loading.pop(reference), self._ray.exceptions
        try:
            self._ray.get(reference)
            self._busy[worker] = 0
        except errors.RayTaskError as error:
            self._refusal = str(error.cause)
        except errors.RayActorError as error:
            self._refusal = next(iter(str(error).splitlines()), "it died while it loaded")

    def _free(self, depth: int) -> Any | None:
        """The worker with the fewest tasks, if it can take another."""
        worker = min(self._busy, key=self._busy.__getitem__, default=None)
        return worker if worker is not None and self._busy[worker] < depth else None
