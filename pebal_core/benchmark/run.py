"""A whole benchmark: the model, every set, and the files it leaves (see `pebal_core.benchmark.results`)."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ..files import write_atomically
from ..fleet.cluster import Cluster, Workers, open_workers
from ..locks import held
from .passes import Pass
from .plan import Plan, Request, evaluator
from .protocols import PROTOCOLS
from .report import write_report
from .results import RESULTS, Results, Run, SetResult
from .shards import trusting
from .tables import markdown, terminal_tables

PACKAGES = ("torch", "numpy", "opencv-python-headless", "onnxruntime")


def run_benchmark(request: Request, cluster: Cluster | None = None) -> int:
    """Evaluate, write the results, print a table; returns the exit status: 1 if an image could not be evaluated.

    Args:
        cluster: whose workers evaluate the images, into a folder that all of them see; None: this process does.

    Raises:
        PebalError: a set, an option or the results folder does not fit; nothing has been computed then.
    """
    started, clock = datetime.now(timezone.utc), time.monotonic()
    with held(request.out):
        plan = Plan(request)
        earlier = Results.load(request.out).sets if (request.out / RESULTS).is_file() else {}
        load = partial(evaluator, request.everywhere()) if cluster else lambda: plan.evaluate
        most = sum(len(benchmark.data) for benchmark in plan.benchmarks.values())
        with _progress() as progress, open_workers(cluster, load, most) as workers:
            sets, failed = _evaluate(plan, workers, progress)
            processes = workers.count
        run = replace(_describe(plan, processes, started), seconds=time.monotonic() - clock)
        results = Results(run, {**earlier, **sets})
        results.save(request.out)
        write_atomically(request.out / "results.md", markdown(results).encode())
        Console().print(*terminal_tables(results))
        print(f"{write_report(request.out)}, {RESULTS} and results.md are written.")
    for why in failed:
        print(f"pebal benchmark: {why}", file=sys.stderr)
    if failed:
        print(
            f"pebal benchmark: {len(failed)} images could not be evaluated and are not in the figures; mend them and "
            "run the same command again.",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _evaluate(plan: Plan, workers: Workers, progress: Progress) -> tuple[dict[str, SetResult], list[str]]:
    """Every pass over every set; returns the figures by set, and why some images could not be evaluated."""
    benchmarks = list(plan.benchmarks.values())
    passes = [benchmark.first for benchmark in benchmarks]
    if plan.statistics is not None:
        passes.insert(0, plan.statistics)
    bar = _Bar(progress, passes)
    for one in passes:
        bar.name(one.title)
        one.work(workers, bar.advance)
    seconds = []
    for benchmark in benchmarks:
        bar.name(f"{benchmark.name}: figures")
        with trusting(benchmark.folder):
            benchmark.sum_up()
            second = benchmark.prepare_components()
        if second is not None:
            bar.add(second)
            seconds.append(second)
    for second in seconds:
        bar.name(second.title)
        second.work(workers, bar.advance)
    results, failed = {}, list[str]()
    for benchmark in benchmarks:
        bar.name(f"{benchmark.name}: intervals and pictures")
        with trusting(benchmark.folder):
            failed += benchmark.failures().values()
            result = benchmark.result()
        if result is not None:
            results[benchmark.name] = result
    return results, failed


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

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.2f} images/s", no_wrap=True)


class _Bar:
    """How many images of all passes are done."""

    def __init__(self, progress: Progress, passes: Sequence[Pass]) -> None:
        self._progress, self._task = progress, progress.add_task("", total=0)
        for one in passes:
            self.add(one)

    def name(self, text: str) -> None:
        self._progress.update(self._task, description=text, refresh=True)

    def add(self, one: Pass) -> None:
        task = self._progress.tasks[self._task]
        self._progress.update(self._task, total=(task.total or 0) + one.records.count)
        self._progress.advance(self._task, len(one.done()))

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
