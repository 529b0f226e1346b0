"""Runs a whole benchmark and writes its results folder (see `pebal_core.benchmark.results`)."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as ProgressTask
from rich.text import Text

from ..errors import PebalError
from ..files import write_atomically
from ..fleet.cluster import Cluster, LostError, Workers, open_workers
from ..locks import held
from .evaluate import Thresholds
from .figures import Pooled, component_thresholds, failures, pool, reduce_set
from .plan import STATISTICS, Plan, Request, Task, do_task, make_plan, worker
from .protocols import PROTOCOLS
from .report import write_report
from .results import RESULTS, Results, Run, SetResult
from .shards import Store, trusting
from .tables import markdown, terminal_tables

PACKAGES = ("torch", "numpy", "opencv-python-headless", "onnxruntime")


def run_benchmark(request: Request, cluster: Cluster | None = None) -> int:
    """Evaluate, write the results and print a table; returns the exit status, 1 if an image could not be evaluated.

    Args:
        cluster: its workers evaluate the images and must share the results folder; None for this process alone.

    Raises:
        PebalError: a set, an option or the results folder does not fit; nothing has been computed then.

    Examples:
        >>> import contextlib, io, tempfile
        >>> import cv2
        >>> import numpy as np
        >>> from pebal_core.fleet.scan import ModelChoice
        >>> with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        ...     for kind in ("images", "labels"):
        ...         Path(folder, kind).mkdir()
        ...         _ = cv2.imwrite(f"{folder}/{kind}/a.png", np.tri(64, dtype=np.uint8))
        ...     request = Request(ModelChoice("starter"), [f"town={folder}"], Path(folder, "out"), scores=["energy"])
        ...     status = run_benchmark(request)
        ...     results = Results.load(request.out)
        >>> status, results.sets["town"].scores["energy"].outliers
        (0, 2080)
    """
    started, clock = datetime.now(timezone.utc), time.monotonic()
    with held(request.out):
        plan = make_plan(request)
        earlier = Results.load(request.out).sets if (request.out / RESULTS).is_file() else {}
        load = partial(worker, request.everywhere()) if cluster else lambda: partial(do_task, plan)
        most = sum(len(benchmark.data) for benchmark in plan.sets.values())
        with _progress() as progress, open_workers(cluster, load, most) as workers:
            sets, failed = _evaluate(plan, workers, _Bar(progress))
            processes = workers.count
        run = replace(_describe(plan, processes, started), seconds=time.monotonic() - clock)
        _report(request.out, Results(run, {**earlier, **sets}))
    for why in failed:
        print(f"pebal benchmark: {why}", file=sys.stderr)
    if failed:
        print(
            f"pebal benchmark: {len(failed)} images could not be evaluated and are not in the figures; fix them and "
            "run the same command again.",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _report(out: Path, results: Results) -> None:
    results.save(out)
    write_atomically(out / "results.md", markdown(results).encode())
    Console().print(*terminal_tables(results))
    print(f"{write_report(out)}, {RESULTS} and results.md are written.")


def _evaluate(plan: Plan, workers: Workers, bar: _Bar) -> tuple[dict[str, SetResult], list[str]]:
    """Do every pass over every set; returns the figures by set, and the reasons why images could not be evaluated."""
    benchmarks, training = plan.sets.values(), plan.training
    for store in [*([training.store] if training else []), *(benchmark.store for benchmark in benchmarks)]:
        bar.add(store)
    max_logits = None
    if training is not None:
        _work(STATISTICS, training.store, partial(Task, ""), workers, bar)
        max_logits = training.max_logits()
    for benchmark in benchmarks:
        task = partial(Task, benchmark.name, max_logits=max_logits)
        _work(benchmark.name, benchmark.store, task, workers, bar)
    pooled: dict[str, Pooled] = {}
    thresholds: dict[str, Thresholds] = {}
    for name, benchmark in plan.sets.items():
        bar.name(f"{name}: figures")
        with trusting(benchmark.folder):
            pooled[name] = pool(benchmark)
            thresholds[name] = component_thresholds(benchmark, pooled[name])
            if thresholds[name]:
                bar.add(benchmark.component_store(thresholds[name]))
    for name, benchmark in plan.sets.items():
        if at := thresholds[name]:
            task = partial(Task, name, thresholds=at)
            _work(f"{name}, components", benchmark.component_store(at), task, workers, bar)
    results, failed = {}, list[str]()
    for name, benchmark in plan.sets.items():
        bar.name(f"{name}: intervals and pictures")
        with trusting(benchmark.folder):
            failed += failures(benchmark, thresholds[name]).values()
            result = reduce_set(benchmark, pooled[name], thresholds[name])
        if result is not None:
            results[name] = result
    return results, failed


def _work(title: str, store: Store, task: Callable[[int], Task], workers: Workers, bar: _Bar) -> None:
    """Evaluate the images of a pass that are not done or failed before. A failure is noted, and the rest goes on.

    Args:
        task: makes the task of an image from its index; the workers do it with `do_task`.

    Raises:
        PebalError: a record cannot be written, or records get lost.
    """
    bar.name(title)
    records, done = store.records, store.done()
    indices = [index for index in range(records.count) if index not in done]
    for index in indices:
        records.forget_failure(index)
    while indices:
        for done_task, reason, error in workers.results(map(task, indices)):
            if error is not None and not isinstance(error, LostError):
                raise error
            if error is not None or reason:
                records.fail(done_task.index, reason or str(error))
            bar.advance()
        # The counts of a worker that died may overlap with the counts of the worker that took over its image.
        missing = store.missing()
        if len(missing) >= len(indices):
            raise PebalError(f"The computed results of {title} have disappeared from {records.folder.parent}.")
        indices = missing


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: ProgressTask) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.2f} images/s", no_wrap=True)


class _Bar:
    """A progress bar over the images of all passes."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._task = progress, progress.add_task("", total=0)

    def name(self, text: str) -> None:
        self._progress.update(self._task, description=text, refresh=True)

    def add(self, store: Store) -> None:
        """Add the images of a pass; some of them may be done already."""
        task = self._progress.tasks[self._task]
        self._progress.update(self._task, total=(task.total or 0) + store.records.count)
        self._progress.advance(self._task, len(store.done()))

    def advance(self) -> None:
        self._progress.advance(self._task)


def _describe(plan: Plan, processes: int, started: datetime) -> Run:
    request, engine, detector = plan.request, plan.reader.engine, plan.reader.detector
    versions = {"python": platform.python_version(), "pebal_ros": _version("pebal_ros")}
    versions.update({package: _version(package) for package in PACKAGES})
    return Run(
        model=request.model.model,
        model_sha256=detector.model_sha256,
        network=detector.info.network,
        protocol=request.protocol,
        fpr95_definition=PROTOCOLS[request.protocol].fpr95,
        main_score=plan.main,
        scores=plan.scores,
        engine=detector.engine_name,
        device=detector.device_name,
        precision=engine.precision,
        input_size=list(engine.input_size) if engine.input_size else None,
        smoothing=engine.smoothing,
        object_rules=asdict(plan.rules) if plan.rules else None,
        processes=processes,
        command=shlex.join(["pebal", *sys.argv[1:]]),
        versions={name: version for name, version in versions.items() if version},
        started=started.isoformat(timespec="seconds"),
        seconds=0.0,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
