"""A whole benchmark: the model, every set, and the files it leaves (see `pebal_core.benchmark.results`)."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

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
from torch import Tensor

from ..data.anomaly_sets import anomaly_ids, open_set
from ..data.scenes import IMAGE_SUFFIXES, read_image
from ..detector import AnomalyDetector
from ..errors import PebalError
from ..model_file import write_atomically
from ..objects import ObjectRules
from ..objects.rules import CARRIERS
from ..scores import SCORES, MaxLogitStatistics
from .evaluate import SetBenchmark
from .forward import ScoreReader, score_names, split_name
from .onnx_logits import load_onnx
from .passes import Outcome, Pass, Workers
from .protocols import PROTOCOLS
from .report import write_report
from .results import RESULTS, RUN, Results, Run
from .shards import Records, trusting, write_once
from .tables import markdown, terminal_tables

PACKAGES = ("torch", "numpy", "opencv-python-headless", "onnxruntime")


@dataclass(frozen=True)
class Request:
    """The options of ``pebal benchmark``."""

    model: str
    datasets: Sequence[str]
    """NAME=PATH each."""
    out: Path
    protocol: str = "fishyscapes"
    scores: Sequence[str] | None = None
    sml_images: Path | None = None
    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    input_size: tuple[int, int] | None = None
    inlier_ids: Sequence[int] = (0,)
    anomaly_ids: Sequence[int] = (1,)
    void_ids: Sequence[int] = (255,)
    patience: float = 600.0


def run_benchmark(request: Request) -> int:
    """Evaluate, write the results, print a table; returns the exit status: 1 if an image could not be evaluated.

    Raises:
        PebalError: a set, an option or the results folder does not fit; nothing has been computed then.
    """
    started, clock = datetime.now(timezone.utc), time.monotonic()
    names = [_split_dataset(entry) for entry in request.datasets]
    repeated = {name for name, _ in names if [other for other, _ in names].count(name) > 1}
    if repeated:
        raise PebalError(f"Two sets are called {repeated.pop()}; give each its own name.")
    declared = anomaly_ids(request.inlier_ids, request.anomaly_ids, request.void_ids)
    sets = {name: open_set(name, path, declared) for name, path in names}
    reader = ScoreReader(_load(request))
    protocol = PROTOCOLS[request.protocol]
    main = protocol.main_score(reader.engine.smoothing)
    scores = _choose_scores(request, reader.engine.smoothing, main)
    training = _training_images(request.sml_images) if request.sml_images else []
    rules = _object_rules(reader, main)
    _claim_folder(request, reader, list(scores), training, rules)
    earlier = Results.load(request.out).sets if (request.out / RESULTS).is_file() else {}
    benchmarks = [
        SetBenchmark(name, data, request.out, reader, list(scores), main, protocol, rules)
        for name, data in sets.items()
    ]
    passes = [benchmark.first for benchmark in benchmarks]
    statistics = _statistics_pass(request.out, training, reader) if training else None
    if statistics is not None:
        passes.insert(0, statistics)
    with _progress() as progress:
        bar = _Bar(progress, passes)
        workers = Workers.from_environment(request.patience, bar.update)
        if statistics is not None:
            bar.name(statistics.title)
            statistics.work(workers)
            statistics.join(workers)
            reader.max_logits = _max_logits(statistics, reader)
        for benchmark in benchmarks:
            bar.name(benchmark.name)
            benchmark.first.work(workers)
        if workers.rank == 0:
            for benchmark in benchmarks:
                bar.name(f"{benchmark.name}: figures")
                benchmark.first.join(workers)
                with trusting(benchmark.folder):
                    benchmark.sum_up()
        for benchmark in benchmarks:
            with trusting(benchmark.folder):
                second = benchmark.prepare_components(workers)
            if second is not None:
                bar.add(second)
                second.work(workers)
        if workers.rank != 0:
            return 0
        run = _describe(request, reader, scores, main, rules, workers.count, started)
        results, failed = Results(run, dict(earlier)), list[str]()
        for benchmark in benchmarks:
            if benchmark.second is not None:
                bar.name(benchmark.second.title)
                benchmark.second.join(workers)
            bar.name(f"{benchmark.name}: intervals and pictures")
            bar.update()
            with trusting(benchmark.folder):
                failed += benchmark.failures().values()
                result = benchmark.result()
            if result is not None:
                results.sets[benchmark.name] = result
    results.run = replace(run, seconds=time.monotonic() - clock)
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


def _load(request: Request) -> AnomalyDetector:
    """A model file of ours, or an ONNX file whose output is the logits."""
    if Path(request.model).suffix.lower() == ".onnx":
        return load_onnx(Path(request.model), request.input_size)
    return AnomalyDetector.load(
        request.model, request.engine, request.device, request.precision, input_size=request.input_size
    )


def _progress() -> Progress:
    """Only the first process shows it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=os.environ.get("RANK", "0") != "0",
    )


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.2f} images/s", no_wrap=True)


class _Bar:
    """The progress of all processes, as the records show it."""

    def __init__(self, progress: Progress, passes: Sequence[Pass]) -> None:
        self._progress, self._passes = progress, list(passes)
        self._task = progress.add_task("", total=self._total(), completed=self._completed())

    def name(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def add(self, one: Pass) -> None:
        self._passes.append(one)
        self._progress.update(
            self._task, description=one.title, total=self._total(), completed=self._completed(), refresh=True
        )

    def update(self) -> None:
        self._progress.update(self._task, completed=self._completed())

    def _total(self) -> int:
        return sum(p.records.count for p in self._passes)

    def _completed(self) -> int:
        return sum(p.records.count - len(p.records.missing()) for p in self._passes)


def _split_dataset(entry: str) -> tuple[str, str]:
    name, equals, path = entry.partition("=")
    if not equals or not name or not path:
        raise PebalError(f"--dataset takes NAME=PATH, such as RoadAnomaly21=/data/dataset_AnomalyTrack; got '{entry}'.")
    if name == RUN or not all(character.isalnum() or character in "_-+." for character in name):
        raise PebalError(f"'{name}' cannot name a data set: use letters, digits and _ - + . (and not '{RUN}').")
    return name, path


def _choose_scores(request: Request, smoothing: bool, main: str) -> dict[str, str]:
    """Names and descriptions; the main score is always among them."""
    possible = [base for base in SCORES if base != "sml" or request.sml_images]
    if request.scores is None:
        return score_names(possible, smoothing)
    described = score_names(SCORES, smoothing)
    chosen = {}
    for name in dict.fromkeys([main, *request.scores]):
        base, blurred = split_name(name, smoothing)
        if base not in possible:
            raise PebalError(f"The score {name} needs --sml-images: the images that the model was trained on.")
        canonical = base if blurred == smoothing else f"{base}_{'smoothed' if blurred else 'raw'}"
        chosen[canonical] = described[canonical]
    return chosen


def _training_images(folder: Path) -> list[Path]:
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise PebalError(f"--sml-images: {folder} holds no images.")
    return images


def _object_rules(reader: ScoreReader, main: str) -> ObjectRules | None:
    """Those of the node with its default settings; the model's stored threshold is for the energy as published."""
    info = reader.detector.info
    if main != "energy" or info.threshold is None:
        return None
    carriers = [name for name in CARRIERS if name in info.class_names]
    return ObjectRules.for_model(info, carriers=carriers or None)


def _claim_folder(
    request: Request, reader: ScoreReader, scores: list[str], training: list[Path], rules: ObjectRules | None
) -> None:
    """Refuse a folder in which another benchmark was begun."""
    engine, detector = reader.engine, reader.detector
    identity = {
        "model": f"{Path(request.model).name} ({detector.model_sha256[:16]})",
        "protocol": request.protocol,
        "input size": list(engine.input_size) if engine.input_size else "each image's own",
        "choice of scores": scores,
        "engine": detector.engine_name,
        "precision": engine.precision,
        "choice of object rules": json.loads(json.dumps(rules and asdict(rules))) or "none",
        "training images": f"{request.sml_images}, {len(training)} images" if training else "none",
    }

    def explain(key: str, stored: object, new: object) -> str:
        return (
            f"{request.out} holds a benchmark with another {key}: {stored}, here it is {new}. Choose another --out, or "
            "delete that folder."
        )

    write_once(request.out / "work" / "identity.json", identity, explain)


def _statistics_pass(out: Path, training: Sequence[Path], reader: ScoreReader) -> Pass:
    classes = len(reader.detector.info.class_names)

    def do(index: int) -> Outcome:
        statistics = MaxLogitStatistics(classes)
        statistics.update(*reader.max_logit(read_image(training[index])))
        return statistics.state_dict(), {}

    return Pass("max logits of the training images", Records(out / "work" / "max_logits", len(training)), do)


def _max_logits(statistics: Pass, reader: ScoreReader) -> tuple[Tensor, Tensor]:
    failures = statistics.records.failures()
    if failures:
        raise PebalError(f"{len(failures)} training images failed; the first: {next(iter(failures.values()))}")
    total = MaxLogitStatistics(len(reader.detector.info.class_names))
    with trusting(statistics.records.folder):
        for index in statistics.records.done():
            total.merge(MaxLogitStatistics.from_state(statistics.records.read(index)))
        return total.compute()


def _describe(
    request: Request,
    reader: ScoreReader,
    scores: dict[str, str],
    main: str,
    rules: ObjectRules | None,
    processes: int,
    started: datetime,
) -> Run:
    engine, detector = reader.engine, reader.detector
    versions = {"python": platform.python_version(), "pebal_ros": _version("pebal_ros")}
    versions.update({package: _version(package) for package in PACKAGES})
    return Run(
        model=request.model,
        model_sha256=detector.model_sha256,
        network=detector.info.network,
        protocol=request.protocol,
        fpr95_definition=PROTOCOLS[request.protocol].fpr95,
        main_score=main,
        scores=scores,
        engine=detector.engine_name,
        device=detector.device_name,
        precision=engine.precision,
        input_size=list(engine.input_size) if engine.input_size else None,
        smoothing=engine.smoothing,
        object_rules=asdict(rules) if rules else None,
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
