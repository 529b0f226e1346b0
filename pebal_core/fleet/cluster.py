"""Runs tasks in this process or, with Ray, on workers on one or more machines, with the same results.

Each worker is a process that loads a model once, on its own GPU or on a given number of cores, and then processes one
task after the other. A worker that dies is replaced, and its task is tried again.
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
"""Number of workers that may die over a task before the task is given up."""
HERE = "local"
"""Address for starting a cluster on this machine."""
CONNECTING = 10.0
"""Seconds to wait for the head of a cluster to respond."""

T = TypeVar("T")
Load = Callable[[], Callable[[Any], Any]]
"""Function that a worker calls to make the function that processes a task. It is pickled, so it must be a
`functools.partial` of a class or function of this package, with absolute paths."""


Done = tuple[T, Any, PebalError | None]
"""A task, its result, and the error if it failed."""


class LostError(PebalError):
    """Failure of one task, because workers died over it or it raised an unexpected exception."""


class Workers(Protocol):
    """The processes that run the tasks.

    Example::

        with open_workers(Cluster("local", cores=2), partial(Scanner, request, choice), most=8) as workers:
            for job, result, error in workers.results(jobs):
                ...
    """

    @property
    def count(self) -> int:
        """Number of processes that run tasks."""

    def results(self, tasks: Iterable[T], ahead: int | None = None) -> Iterator[Done[T]]:
        """Yield each task with its result, or with the `PebalError` that it raised or a `LostError`.

        Args:
            tasks: the tasks, which are drawn as workers become free; ``str(task)`` names the task in messages.
            ahead: None yields the results in the order in which they are completed. A number yields them in the order
                of the tasks, and draws at most this many before the earliest is completed, to bound the memory.

        Raises:
            PebalError: no worker could be loaded.
        """


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster.

    Args:
        address: address of a running cluster in Ray's notation; `HERE` starts one on this machine for the duration of
            the work.
        cores: CPU cores per worker if the cluster has no GPU.
    """

    address: str
    cores: int


@contextmanager
def open_workers(cluster: Cluster | None, load: Load, most: int) -> Iterator[Workers]:
    """Start workers that live as long as the context.

    Args:
        cluster: the cluster; None runs everything in this process.
        load: function that each worker calls once.
        most: largest useful number of workers.

    Raises:
        PebalError: Ray is not installed, the cluster cannot be reached, or it has no resources for a worker. Without a
            cluster, anything that `load` raises.

    Examples:
        >>> with open_workers(None, lambda: lambda number: number**2, most=1) as workers:
        ...     [result for _, result, _ in workers.results([1, 2, 3])]
        [1, 4, 9]
    """
    if cluster is None:
        yield _ThisProcess(load())
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise PebalError("--ray needs the package ray. Run: pip install 'pebal_ros[ray]'.") from error
    # Ray puts its sockets into this folder, and their paths must be short, so the usual temporary folder is not used.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        _connect(ray, cluster.address, folder)
        try:
            yield _start(ray, cluster, load, most)
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str, folder: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():  # checked first because Ray itself would try for minutes
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
    except Exception as error:  # Ray's exceptions have no common base
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise PebalError(f"The Ray cluster {address} cannot be reached: {reason}") from error


def _start(ray: Any, cluster: Cluster, load: Load, most: int) -> _RayWorkers:
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    count = min(gpus or cpus // cluster.cores, most)
    if count < 1:
        raise PebalError(f"The cluster has {cpus} cores, but a worker takes {cluster.cores}. Lower --cores.")
    options = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": cluster.cores}
    make = ray.remote(**options)(_Worker).remote
    return _RayWorkers(ray, lambda: make(load), count)


class _ThisProcess:
    """Runs the tasks one after the other in this process, as their results are requested."""

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
        """Load the model; this is separate from the constructor so that Ray passes on its exceptions unchanged."""
        self._work = self._load()

    def do(self, task: Any) -> Any:
        return self._work(task)


def _not_loaded(task: Any) -> Any:
    raise AssertionError(f"{task} came before the worker was loaded")


@dataclass(frozen=True)
class _Attempt:
    number: int
    task: Any
    attempt: int


class _RayWorkers:
    """Ray actors, each of which has one task at a time, or two if the results are yielded in the order of the tasks."""

    def __init__(self, ray: Any, make: Callable[[], Any], count: int) -> None:
        self.count = count
        self._ray, self._make = ray, make
        self._busy: dict[Any, int] = {}
        """Number of tasks of each loaded worker."""
        self._loading: dict[Any, Any] = {}
        self._refusal = "no worker could be started"
        for _ in range(count):
            self._add()

    def results(self, tasks: Iterable[T], ahead: int | None = None) -> Iterator[Done[T]]:
        source = enumerate(tasks)
        again: deque[_Attempt] = deque()
        running: dict[Any, tuple[Any, _Attempt]] = {}
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
                    begun, drawn = _Attempt(*following, 1), drawn + 1
                running[worker.do.remote(begun.task)] = worker, begun
                self._busy[worker] += 1
            if exhausted and not running and not again:
                return
            if not running and not self._loading:
                raise PebalError(f"No worker is left: {self._refusal}")
            (reference,), _ = self._ray.wait([*running, *self._loading], num_returns=1)
            if reference in self._loading:
                self._finish_loading(reference)
                continue
            worker, begun = running.pop(reference)
            outcome = self._outcome(reference, worker, begun)
            if outcome is None:
                again.append(_Attempt(begun.number, begun.task, begun.attempt + 1))
            elif ahead is None:
                yield begun.task, *outcome
            else:
                done[begun.number] = begun.task, *outcome
                while first in done:
                    yield done.pop(first)
                    first += 1

    def _outcome(self, reference: Any, worker: Any, begun: _Attempt) -> tuple[Any, PebalError | None] | None:
        """The result of a task and its error; None if the task is to be tried again."""
        errors = self._ray.exceptions
        try:
            result, error = self._ray.get(reference), None
        except errors.RayActorError:  # killed, out of memory, or crashed in a library
            if self._busy.pop(worker, None) is not None:  # else another task of this worker has already reported it
                self._add()
            if begun.attempt < ATTEMPTS:
                return None
            return None, LostError(
                f"{begun.task} was given up, because each of {ATTEMPTS} workers died while processing it."
            )
        except errors.RayTaskError as raised:
            expected, cause = isinstance(raised.cause, PebalError), raised.cause
            result, error = None, cause if expected else LostError(f"{begun.task} could not be processed: {cause!r}.")
        if worker in self._busy:  # else the worker died over its other task
            self._busy[worker] -= 1
        return result, error

    def _add(self) -> None:
        worker = self._make()
        self._loading[worker.load.remote()] = worker

    def _finish_loading(self, reference: Any) -> None:
        """Register a worker that has loaded, or record why it could not."""
        worker, errors = self._loading.pop(reference), self._ray.exceptions
        try:
            self._ray.get(reference)
            self._busy[worker] = 0
        except errors.RayTaskError as error:
            self._refusal = str(error.cause)
        except errors.RayActorError as error:
            self._refusal = next(iter(str(error).splitlines()), "it died while loading")

    def _free(self, depth: int) -> Any | None:
        """The worker with the fewest tasks, if it has fewer than `depth`."""
        worker = min(self._busy, key=self._busy.__getitem__, default=None)
        return worker if worker is not None and self._busy[worker] < depth else None
