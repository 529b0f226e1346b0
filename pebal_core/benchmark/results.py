"""The results folder of a benchmark: how it is written and read.

::

    results.json                    {"run": …, DATASET: {SCORE: …, "segmentation": …, "set": …}, …}
    results.md                      the same as tables
    report.html                     the same as a page with curves and pictures, in one file
    curves/DATASET.SCORE.npz        `threshold`, `tpr` (= recall), `fpr`, `precision`, of one length, thinned for plots
    frames/DATASET/*.jpg            overlays of the best and the worst frames, listed in ``set.frames``
    work/                           everything that resuming needs

All rates are fractions. Every field below is a key of the same name in the JSON. A score is not defined on a set where
only one class of pixels occurs. Its figures are then None, and ``undefined`` holds the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PebalError, one_line
from ..files import write_atomically
from ..metrics.pooled import Curve, Figures

RESULTS = "results.json"
RUN, SEGMENTATION, SET = "run", "segmentation", "set"
"""Reserved keys: `RUN` among the data sets, `SEGMENTATION` and `SET` among the scores of a data set."""

STAGES = ("read", "preprocess", "network", "scores", "metrics")
"""Stages whose time is measured. In ``scores``, labels and scores are computed from the logits."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Components:
    """The component metrics of SegmentMeIfYouCan at the threshold of the best pixel F1 of the same set."""

    siou: float | None
    ppv: float | None
    f1: float | None
    """Mean over τ = 0.25, 0.30, … 0.75."""
    f1_at_taus: list[float] | None
    objects: int
    predictions: int
    threshold: float | None
    smallest_prediction: int
    smallest_object: int
    """In pixels; smaller ones were left out."""
    undefined: str | None = None


@dataclass(frozen=True)
class Froc:
    """The free-response ROC curve, and its mean recall over the rates of `Objects.recall_at`."""

    score: float | None
    """None without a labelled object, as are all recalls."""
    score_interval: Interval | None
    threshold: list[float]
    false_per_frame: list[float]
    recall: list[float]
    """The operating points at which recall rises, in ascending order of false objects per frame; all of one length."""


@dataclass(frozen=True)
class ClassAlarms:
    """False alarms on a known class at the stored threshold."""

    pixels: float | None
    """Share of the class's inlier pixels that are reported; None where the class does not occur."""
    objects_per_frame: float
    """Number of false objects whose inlier pixels belong mostly to the class."""


@dataclass(frozen=True)
class SizeRecall:
    """Recall of the labelled objects of one range of sizes at the stored threshold."""

    from_pixels: int
    to_pixels: int | None
    """Exclusive upper limit; None for no limit."""
    objects: int
    recall: float | None


@dataclass(frozen=True)
class Stored:
    """Figures at the model's stored threshold."""

    threshold: float
    recall: float | None
    recall_interval: Interval | None
    false_per_frame: float
    false_per_frame_interval: Interval | None
    by_size: list[SizeRecall]
    by_class: dict[str, ClassAlarms]
    """By name of the class, which is the labelled one on a set of classes and the predicted one on an anomaly set."""


@dataclass(frozen=True)
class Objects:
    """Found and false objects, as `pebal_core.metrics.objects` defines them."""

    labelled: int
    """Number of objects that can be found."""
    froc: Froc
    recall_at: dict[str, float | None]
    """The best recall at or below a rate of false objects per frame, by the rate, "0.125" to "8"."""
    recall_at_interval: dict[str, Interval | None]
    stored: Stored | None
    """None where the model stores no threshold for this score."""
    components: Components | None = None
    """Component metrics of the filtered scores, only under `rules`. `Score` has the ones of the unfiltered scores."""
    rules: Objects | None = None
    """The same after the object rules (`Run.object_rules`). The curve is computed from the scores that `filter_energy`
    returns, and the objects at the stored threshold are found by `find_objects`."""


@dataclass(frozen=True)
class Score(Figures):
    """The figures of one score on one set; `fpr95` follows the definition that the protocol names."""

    auroc_interval: Interval | None = None
    ap_interval: Interval | None = None
    fpr95_interval: Interval | None = None
    """95 % bootstrap intervals over images, with the same resamples for every score of the set."""
    ap_difference_interval: Interval | None = None
    """The interval of this score's AP minus the main score's AP; None for the main score itself."""
    components: Components | None = None
    objects: Objects | None = None
    """Only for the main score."""


@dataclass(frozen=True)
class Segmentation:
    """How well the known classes are labelled."""

    images: int
    pixels: int
    miou: float | None
    """Mean over the classes that the set labels."""
    accuracy: float | None
    iou: dict[str, float | None]
    """By name of the class, for the classes that the set labels."""
    ece: float | None
    """Expected calibration error of the highest softmax probability, in 15 bins."""
    sliding_miou: float | None = None
    sliding_iou: dict[str, float | None] | None = None
    """Measured with windows of 800 every 534 pixels at the image's own resolution; None unless the protocol asks."""
    group_iou: dict[str, float | None] = field(default_factory=dict)
    """By group of the class list; the classes of a group count as one."""


@dataclass(frozen=True)
class FrameEntry:
    """A frame that is shown, and its picture."""

    name: str
    kind: str
    """``best`` or ``worst``, by the main score's AP within the frame, or by mIoU on a set without anomalies."""
    figure: float
    """The AP or the mIoU."""
    picture: str
    """Path of the overlay relative to the results folder."""


@dataclass(frozen=True)
class SetInfo:
    """The images that were evaluated, and their cost."""

    set: str
    """Canonical name of the set, such as ``RoadAnomaly21``; ``images+labels`` for a folder pair."""
    path: str
    images: int
    """Number of images that were evaluated."""
    failed: dict[str, str]
    """The reason why a file could not be evaluated, by file."""
    milliseconds: dict[str, float]
    """Mean per image, by the names in `STAGES`."""
    images_per_second: float
    """Of one process: 1 / the sum of these stages."""
    peak_memory_mb: float
    """Of the largest process."""
    frames: list[FrameEntry] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """How the figures were produced."""

    model: str
    model_sha256: str
    network: str
    protocol: str
    fpr95_definition: str
    main_score: str
    """The score that stands for the model under this protocol, a key of the sets."""
    scores: dict[str, str]
    """The description of each score, by name."""
    engine: str
    device: str
    precision: str
    input_size: list[int] | None
    """[height, width] at which the network ran; None for each image's own."""
    smoothing: bool
    """Whether the model smooths its energy. Then plain names stand for scores with the Gaussian, and names in ``_raw``
    for scores without."""
    object_rules: dict[str, Any] | None
    """Fields of `pebal_core.objects.ObjectRules`, which separate objects from other alarms; None where the model stores
    no threshold for the main score."""
    processes: int
    command: str
    versions: dict[str, str]
    started: str
    """ISO 8601, UTC."""
    seconds: float
    """Wall time of the last invocation."""


@dataclass
class SetResult:
    """All results of one data set; `segmentation` is None where the set labels no classes.

    A set of classes has only the main score, if a threshold is stored for it. Its only figures are its `objects`, and
    every object that is reported there is false.
    """

    set: SetInfo
    scores: dict[str, Score] = field(default_factory=dict)
    segmentation: Segmentation | None = None

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {name: asdict(score) for name, score in self.scores.items()}
        if self.segmentation is not None:
            values[SEGMENTATION] = asdict(self.segmentation)
        return {**values, SET: asdict(self.set)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SetResult:
        info = dict(values[SET])
        info["frames"] = [FrameEntry(**frame) for frame in info["frames"]]
        segmentation = values.get(SEGMENTATION)
        return cls(
            set=SetInfo(**info),
            scores={name: _score(score) for name, score in values.items() if name not in (SEGMENTATION, SET)},
            segmentation=Segmentation(**segmentation) if segmentation else None,
        )


@dataclass
class Results:
    """A whole results folder except its curves and pictures."""

    run: Run
    sets: dict[str, SetResult] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write ``results.json``; it appears whole or not at all."""
        values = {RUN: asdict(self.run), **{name: result.to_dict() for name, result in self.sets.items()}}
        write_atomically(folder / RESULTS, (json.dumps(_finite(values), indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read ``results.json``.

        Raises:
            PebalError: it is missing or damaged.
        """
        path = folder / RESULTS
        try:
            values = json.loads(path.read_text())
            sets = {name: SetResult.from_dict(result) for name, result in values.items() if name != RUN}
            return cls(Run(**values[RUN]), sets)
        except FileNotFoundError as error:
            raise PebalError(f"{path} does not exist; 'pebal benchmark … --out {folder}' writes it.") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PebalError(
                f"{path} is damaged or was written by another version ({one_line(error)}); run the benchmark again."
            ) from error

    def rows(self) -> Iterator[tuple[str, str, Score]]:
        """(data set, score name, figures) in the order of the file."""
        for name, result in self.sets.items():
            for score, figures in result.scores.items():
                yield name, score, figures


def curve_path(folder: Path, dataset: str, score: str) -> Path:
    """The file of a score's curve on a set.

    Examples:
        >>> curve_path(Path("results"), "town", "energy").as_posix()
        'results/curves/town.energy.npz'
    """
    return folder / "curves" / f"{dataset}.{score}.npz"


def save_curve(folder: Path, dataset: str, score: str, curve: Curve) -> None:
    """Write the ROC and PR curve of a score on a set.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_curve(Path(folder), "town", "energy", Curve(*np.eye(4)))
        ...     curve_path(Path(folder), "town", "energy").is_file()
        True
    """
    path = curve_path(folder, dataset, score)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **asdict(curve))


def load_curve(folder: Path, dataset: str, score: str) -> Curve | None:
    """The ROC and PR curve of a score on a set; None where it is not defined.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_curve(Path(folder), "town", "energy", Curve(*np.eye(4)))
        ...     load_curve(Path(folder), "town", "energy").tpr, load_curve(Path(folder), "town", "msp")
        (array([0., 1., 0., 0.]), None)
    """
    path = curve_path(folder, dataset, score)
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        return Curve(**{name: arrays[name] for name in ("threshold", "tpr", "fpr", "precision")})


def _finite(value: Any) -> Any:
    """Replace infinite thresholds by None, because JSON cannot express them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _score(values: Mapping[str, Any]) -> Score:
    values = _with_intervals(values)
    if values.get("components"):
        values["components"] = Components(**values["components"])
    if values.get("objects"):
        values["objects"] = _objects(values["objects"])
    return Score(**values)


def _objects(values: Mapping[str, Any]) -> Objects:
    values = _with_intervals(values)
    values["froc"] = Froc(**_with_intervals(values["froc"]))
    values["recall_at_interval"] = {
        rate: None if ends is None else (ends[0], ends[1]) for rate, ends in values["recall_at_interval"].items()
    }
    if values["stored"]:
        stored = _with_intervals(values["stored"])
        stored["by_size"] = [SizeRecall(**size) for size in stored["by_size"]]
        stored["by_class"] = {name: ClassAlarms(**alarms) for name, alarms in stored["by_class"].items()}
        values["stored"] = Stored(**stored)
    if values["components"]:
        values["components"] = Components(**values["components"])
    if values["rules"]:
        values["rules"] = _objects(values["rules"])
    return Objects(**values)


def _with_intervals(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn intervals back into tuples, which JSON has made lists."""
    return {
        key: (value[0], value[1]) if key.endswith("_interval") and isinstance(value, list) else value
        for key, value in values.items()
    }
