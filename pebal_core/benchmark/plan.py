"""Turns a request into a plan: model, sets and scores. The command and each of its workers make the same plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from ..class_list import ClassList, load_class_list
from ..data.anomaly_sets import EvaluationSet, anomaly_ids, is_known, open_listed, open_set
from ..data.scenes import IMAGE_SUFFIXES, read_image
from ..detector import AnomalyDetector
from ..errors import PebalError
from ..files import user_path
from ..fleet.scan import ModelChoice
from ..objects import IgnoreMask, ObjectRules
from ..scores import SCORES, MaxLogitStatistics
from .evaluate import Outcome, SetBenchmark, Thresholds, open_benchmark, score_components, score_image
from .forward import MaxLogits, ScoreReader, score_names, split_name
from .onnx_logits import load_onnx
from .protocols import PROTOCOLS
from .results import RUN
from .shards import Records, Store, trusting, write_once

STATISTICS = "max logits of the training images"
"""Title of the pass that ``sml`` needs before the sets."""


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
    """Whether the pixels under the model's ego mask are void in every set."""
    classes: str | None = None
    """Name or YAML file of the class list of folder pairs; None where the ids above mark the anomalies."""

    def everywhere(self) -> Request:
        """The same request for workers with another current folder.

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


@dataclass(frozen=True)
class TrainingImages:
    """The images that the model was trained on, whose highest logits ``sml`` needs."""

    images: Sequence[Path]
    reader: ScoreReader
    store: Store

    def look(self, index: int) -> Outcome:
        """Collect the highest logits of one image.

        Raises:
            PebalError: the image cannot be read.
        """
        statistics = MaxLogitStatistics(len(self.reader.detector.info.class_names))
        statistics.update(*self.reader.max_logit(read_image(self.images[index])))
        return Outcome(statistics.state_dict())

    def max_logits(self) -> MaxLogits:
        """Reduce the records of all images to their statistics.

        Raises:
            PebalError: an image failed, or a record is damaged.
        """
        records = self.store.records
        failures = records.failures()
        if failures:
            raise PebalError(f"{len(failures)} training images failed; the first: {next(iter(failures.values()))}")
        total = MaxLogitStatistics(len(self.reader.detector.info.class_names))
        with trusting(records.folder):
            for index in records.done():
                total.merge(MaxLogitStatistics.from_state(records.read(index)))
            return total.compute()


@dataclass(frozen=True)
class Plan:
    """The model, the sets and the scores of a benchmark; made by `make_plan`."""

    request: Request
    reader: ScoreReader
    main: str
    """The main score."""
    scores: dict[str, str]
    """The description of every score, by name."""
    rules: ObjectRules | None
    sets: Mapping[str, SetBenchmark]
    training: TrainingImages | None
    """None where the scores need no statistics of training images."""


def make_plan(request: Request) -> Plan:
    """Load the model and open the sets.

    Raises:
        PebalError: a set, an option or the results folder does not fit; nothing has been computed then.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for kind in ("images", "labels"):
        ...         Path(folder, kind).mkdir()
        ...         Path(folder, kind, "a.png").touch()
        ...     out = Path(folder, "out")
        ...     plan = make_plan(Request(ModelChoice("starter"), [f"town={folder}"], out, scores=["msp"]))
        >>> plan.main, list(plan.scores), len(plan.sets["town"].data)
        ('energy', ['energy', 'msp'], 1)
    """
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
    reader = ScoreReader(_load(request.model))
    if request.ego_mask:
        mask = IgnoreMask.decode(reader.detector.info.ego_mask)
        if mask is None:
            raise PebalError(f"{request.model.model} has no ego mask; leave --ego-mask out.")
        sets = {name: replace(data, ignore=mask) for name, data in sets.items()}
    protocol, out = PROTOCOLS[request.protocol], request.out
    main = protocol.main_score(reader.engine.smoothing)
    scores = _choose_scores(request, reader.engine.smoothing, main)
    images = _training_images(request.sml_images) if request.sml_images else []
    rules = _object_rules(reader, main)
    _claim_folder(request, reader, list(scores), rules, images, listed)
    benchmarks = {
        name: open_benchmark(name, data, out, reader, list(scores), main, protocol, rules)
        for name, data in sets.items()
    }
    training = None
    if images:
        training = TrainingImages(images, reader, Store(Records(out / "work" / "max_logits", len(images))))
    return Plan(request, reader, main, scores, rules, benchmarks, training)


@dataclass(frozen=True)
class Task:
    """One image of a pass, with the results of earlier passes that it needs."""

    name: str
    """Name of the set; empty for the training images."""
    index: int
    max_logits: MaxLogits | None = None
    """Statistics of the training images."""
    thresholds: Thresholds | None = None
    """Thresholds of the second pass over a set; None for the first pass."""

    def __str__(self) -> str:
        return f"Image {self.index} of {self.name or STATISTICS}"


def do_task(plan: Plan, task: Task) -> str:
    """Evaluate one image and write its record; returns the reason why it cannot be evaluated, or "".

    Raises:
        PebalError: the record cannot be written.

    Examples:
        >>> import cv2, tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for kind in ("images", "labels"):
        ...         Path(folder, kind).mkdir()
        ...         _ = cv2.imwrite(f"{folder}/{kind}/a.png", np.tri(64, dtype=np.uint8))
        ...     out = Path(folder, "out")
        ...     plan = make_plan(Request(ModelChoice("starter"), [f"town={folder}"], out, scores=["energy"]))
        ...     do_task(plan, Task("town", 0)), plan.sets["town"].store.missing()
        ('', [])
    """
    try:
        store, outcome = _outcome(plan, task)
    except PebalError as error:
        return str(error)
    if store.counts is not None:
        store.counts.add(task.index, outcome.counts)
    store.records.write(task.index, outcome.record)
    return ""


def _outcome(plan: Plan, task: Task) -> tuple[Store, Outcome]:
    if not task.name:
        assert plan.training is not None, "a task without a set is of the training images"
        return plan.training.store, plan.training.look(task.index)
    benchmark = plan.sets[task.name]
    if task.thresholds is None:
        return benchmark.store, score_image(benchmark, task.index, task.max_logits)
    return benchmark.component_store(task.thresholds), score_components(benchmark, task.index, task.thresholds)


def worker(request: Request) -> Callable[[Task], str]:
    """Make the plan in a worker, and return the function that does a task.

    Examples:
        >>> import cv2, tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for kind in ("images", "labels"):
        ...         Path(folder, kind).mkdir()
        ...         _ = cv2.imwrite(f"{folder}/{kind}/a.png", np.tri(64, dtype=np.uint8))
        ...     out = Path(folder, "out")
        ...     work = worker(Request(ModelChoice("starter"), [f"town={folder}"], out, scores=["energy"]))
        ...     work(Task("town", 0))
        ''
    """
    return partial(do_task, make_plan(request))


def _claim_folder(
    request: Request,
    reader: ScoreReader,
    scores: list[str],
    rules: ObjectRules | None,
    training: list[Path],
    listed: ClassList | None,
) -> None:
    """Refuse a folder in which another benchmark was begun."""
    engine, detector, folder = reader.engine, reader.detector, request.sml_images
    identity = {
        "model": f"{Path(request.model.model).name} ({detector.model_sha256[:16]})",
        "protocol": request.protocol,
        "input size": list(engine.input_size) if engine.input_size else "each image's own",
        "choice of scores": scores,
        "engine": detector.engine_name,
        "precision": engine.precision,
        "choice of object rules": json.loads(json.dumps(rules and asdict(rules))) or "none",
        "use of the ego mask": request.ego_mask,
        "class list of folder pairs": "none" if listed is None else json.loads(json.dumps(listed.as_dict())),
        "training images": f"{folder and folder.absolute()}, {len(training)} images" if training else "none",
    }

    def explain(key: str, stored: object, new: object) -> str:
        return (
            f"{request.out} contains a benchmark with another {key}, which is {stored} there and {new} here. Choose "
            "another --out, or delete that folder."
        )

    write_once(request.out / "work" / "identity.json", identity, explain)


def _load(choice: ModelChoice) -> AnomalyDetector:
    """Load a model of this project, or an ONNX file whose output is the logits."""
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
    """Names and descriptions of the scores; the main score is always among them."""
    possible = [base for base in SCORES if base != "sml" or request.sml_images]
    if request.scores is None:
        return score_names(possible, smoothing)
    described = score_names(SCORES, smoothing)
    chosen = {}
    for name in dict.fromkeys([main, *request.scores]):
        base, blurred = split_name(name, smoothing)
        if base not in possible:
            raise PebalError(f"The score {name} needs --sml-images, a folder of images that the model was trained on.")
        canonical = base if blurred == smoothing else f"{base}_{'smoothed' if blurred else 'raw'}"
        chosen[canonical] = described[canonical]
    return chosen


def _training_images(folder: Path) -> list[Path]:
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise PebalError(f"--sml-images: {folder} contains no images.")
    return images


def _object_rules(reader: ScoreReader, main: str) -> ObjectRules | None:
    """The node's rules at its default settings. The stored threshold only fits the energy as the model publishes it."""
    info = reader.detector.info
    if main != "energy" or info.threshold is None:
        return None
    return ObjectRules.for_model(info)
