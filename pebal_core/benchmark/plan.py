"""What a request comes to: model, sets and scores, the same in the command and in each of its workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from ..class_list import ClassList, load_class_list
from ..data.anomaly_sets import EvaluationSet, anomaly_ids, is_known, open_listed, open_set
from ..data.scenes import IMAGE_SUFFIXES, read_image
from ..detector import AnomalyDetector
from ..errors import PebalError
from ..files import user_path
from ..fleet.scan import ModelChoice
from ..objects import IgnoreMask, ObjectRules
from ..scores import SCORES, MaxLogitStatistics
from .evaluate import FIRST, SECOND, SetBenchmark
from .forward import ScoreReader, score_names, split_name
from .onnx_logits import load_onnx
from .passes import Outcome, Pass, Task
from .protocols import PROTOCOLS
from .results import RUN
from .shards import Records, trusting, write_once

STATISTICS = "max logits of the training images"
"""Stage of the pass that ``sml`` needs before the sets."""


@dataclass(frozen=True)
class Request:
    """The options of ``pebal benchmark``."""

    model: ModelChoice
    datasets: Sequence[str]
    """NAME=PATH each."""
    out: Path
    protocol: str = "fishyscapes"
    scores: Sequence[str] | None = None
    sml_images: Path | None = None
    inlier_ids: Sequence[int] = (0,)
    anomaly_ids: Sequence[int] = (1,)
    void_ids: Sequence[int] = (255,)
    ego_mask: bool = False
    """Whether what the model's ego mask covers is void in every set."""
    classes: str | None = None
    """Name or YAML file of the class list of folder pairs; None: the ids above say what is an anomaly."""

    def everywhere(self) -> Request:
        """The same for workers with another current folder.

        Raises:
            PebalError: there is no such model, or a data set has no name.
        """
        sets = [f"{name}={user_path(path).absolute()}" for name, path in map(_split_dataset, self.datasets)]
        training = self.sml_images.absolute() if self.sml_images else None
        listed = self.classes
        if listed is not None and Path(listed).suffix:
            listed = str(user_path(listed).absolute())
        return replace(
            self,
            model=self.model.everywhere(),
            datasets=sets,
            out=self.out.absolute(),
            sml_images=training,
            classes=listed,
        )


class Plan:
    """The model, and every set with its passes.

    Raises:
        PebalError: a set, an option or the results folder does not fit; nothing has been computed then.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        names = [_split_dataset(entry) for entry in request.datasets]
        repeated = {name for name, _ in names if [other for other, _ in names].count(name) > 1}
        if repeated:
            raise PebalError(f"Two sets are called {repeated.pop()}; give each its own name.")
        declared = anomaly_ids(request.inlier_ids, request.anomaly_ids, request.void_ids)
        listed = None if request.classes is None else load_class_list(request.classes)
        sets: dict[str, EvaluationSet] = {}
        for name, path in names:
            if listed is None or is_known(name):
                sets[name] = open_set(name, path, declared)
            else:
                sets.update(open_listed(name, path, listed))
        self.reader = ScoreReader(_load(request.model))
        if request.ego_mask:
            mask = IgnoreMask.decode(self.reader.detector.info.ego_mask)
            if mask is None:
                raise PebalError(f"{request.model.model} has no ego mask; leave --ego-mask out.")
            sets = {name: replace(data, ignore=mask) for name, data in sets.items()}
        self.protocol = PROTOCOLS[request.protocol]
        self.main = self.protocol.main_score(self.reader.engine.smoothing)
        self.scores = _choose_scores(request, self.reader.engine.smoothing, self.main)
        training = _training_images(request.sml_images) if request.sml_images else []
        self.rules = _object_rules(self.reader, self.main)
        self._claim_folder(training, listed)
        self.benchmarks = {
            name: SetBenchmark(
                name, data, request.out, self.reader, list(self.scores), self.main, self.protocol, self.rules
            )
            for name, data in sets.items()
        }
        self.statistics = self._statistics_pass(training) if training else None

    def evaluate(self, task: Task) -> str:
        """Do one image; returns why it cannot be evaluated, or "".

        Raises:
            PebalError: its record cannot be written, or the passes before are not complete.
        """
        return self.pass_of(task).evaluate(task.index)

    def pass_of(self, task: Task) -> Pass:
        """The pass that a task belongs to, with what the passes before it gave."""
        if task.stage == STATISTICS:
            assert self.statistics is not None
            return self.statistics
        if self.statistics is not None and self.reader.max_logits is None:
            self.reader.max_logits = self._max_logits(self.statistics)
        benchmark = self.benchmarks[task.name]
        if task.stage == FIRST:
            return benchmark.first
        assert task.stage == SECOND
        second = benchmark.second or benchmark.prepare_components()
        assert second is not None
        return second

    def _claim_folder(self, training: list[Path], listed: ClassList | None) -> None:
        """Refuse a folder in which another benchmark was begun."""
        request, engine, detector = self.request, self.reader.engine, self.reader.detector
        folder = request.sml_images
        identity = {
            "model": f"{Path(request.model.model).name} ({detector.model_sha256[:16]})",
            "protocol": request.protocol,
            "input size": list(engine.input_size) if engine.input_size else "each image's own",
            "choice of scores": list(self.scores),
            "engine": detector.engine_name,
            "precision": engine.precision,
            "choice of object rules": json.loads(json.dumps(self.rules and asdict(self.rules))) or "none",
            "use of the ego mask": request.ego_mask,
            "class list of folder pairs": "none" if listed is None else json.loads(json.dumps(listed.as_dict())),
            "training images": f"{folder and folder.absolute()}, {len(training)} images" if training else "none",
        }

        def explain(key: str, stored: object, new: object) -> str:
            return (
                f"{request.out} holds a benchmark with another {key}: {stored}, here it is {new}. Choose another "
                "--out, or delete that folder."
            )

        write_once(request.out / "work" / "identity.json", identity, explain)

    def _statistics_pass(self, training: Sequence[Path]) -> Pass:
        classes, reader = len(self.reader.detector.info.class_names), self.reader

        def do(index: int) -> Outcome:
            statistics = MaxLogitStatistics(classes)
            statistics.update(*reader.max_logit(read_image(training[index])))
            return statistics.state_dict(), {}

        records = Records(self.request.out / "work" / "max_logits", len(training))
        return Pass(STATISTICS, STATISTICS, "", records, do)

    def _max_logits(self, statistics: Pass) -> tuple[Tensor, Tensor]:
        failures = statistics.records.failures()
        if failures:
            raise PebalError(f"{len(failures)} training images failed; the first: {next(iter(failures.values()))}")
        total = MaxLogitStatistics(len(self.reader.detector.info.class_names))
        with trusting(statistics.records.folder):
            for index in statistics.records.done():
                total.merge(MaxLogitStatistics.from_state(statistics.records.read(index)))
            return total.compute()


def evaluator(request: Request) -> Callable[[Task], str]:
    """For a worker: the function that does a task."""
    return Plan(request).evaluate


def _load(choice: ModelChoice) -> AnomalyDetector:
    """A model file of ours, or an ONNX file whose output is the logits."""
    if Path(choice.model).suffix.lower() == ".onnx":
        return load_onnx(Path(choice.model), choice.input_size)
    return choice.load()


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
    return ObjectRules.for_model(info)
