"""Evaluates one image of a data set. `pebal_core.benchmark.figures` then reduces the records of all images."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.anomaly_sets import INLIER, EvaluationSet
from ..errors import PebalError
from ..labels import VOID
from ..metrics.calibration import CalibrationMetrics
from ..metrics.components import SIZE_LIMITS, ComponentMetrics
from ..metrics.pooled import PooledMetrics
from ..metrics.segmentation import SegmentationMetrics
from ..model_file import file_sha256
from ..objects import ObjectRules, filter_energy
from .bootstrap import coarse_counts
from .forward import Forward, MaxLogits, ScoreReader
from .operating import PLAIN, RULES, OperatingPoint, Record, reported_pixels
from .protocols import SMALL_OBJECTS, Protocol
from .shards import CountShards, Records, Store, write_once

FILTERED = "filtered"
"""Name of the main score after the object rules. It is counted like a score, but only to find its threshold."""

Thresholds = Mapping[str, float]
"""The thresholds at which component metrics are computed, by score: the main one and `FILTERED`."""


@dataclass(frozen=True)
class SetBenchmark:
    """A data set and how it is evaluated; made by `open_benchmark`."""

    name: str
    """The name of the set in the results."""
    data: EvaluationSet
    out: Path
    """The results folder."""
    reader: ScoreReader
    scores: tuple[str, ...]
    """Names of the scores, the main one among them."""
    main: str
    protocol: Protocol
    rules: ObjectRules | None
    """Rules for objects in the main score; None where the model stores no threshold for it."""
    store: Store
    """Results of the first pass."""

    @property
    def folder(self) -> Path:
        """The folder with everything that resuming needs."""
        return _folder(self.out, self.name)

    @property
    def class_names(self) -> Sequence[str]:
        return self.reader.detector.info.class_names

    @property
    def operating(self) -> OperatingPoint:
        """How objects are counted."""
        return OperatingPoint(tuple(self.class_names), self.rules, outliers=not self.data.ids.classes)

    @property
    def has_components(self) -> bool:
        return not self.data.ids.classes and (self.protocol.components or self.data.track is not None)

    @property
    def counted(self) -> tuple[str, ...]:
        """The scores whose pixels are counted: all, and `FILTERED` where component metrics need its threshold."""
        return (*self.scores, FILTERED) if self.has_components and self.rules is not None else self.scores

    def component_metrics(self, threshold: float) -> ComponentMetrics:
        track = "obstacle" if self.data.name in SMALL_OBJECTS else "anomaly"
        return ComponentMetrics(threshold, *SIZE_LIMITS[track])

    def component_store(self, thresholds: Thresholds) -> Store:
        """Results of the second pass, in a folder named after the thresholds."""
        codes = [f"{np.float32(threshold).view(np.uint32):08x}" for threshold in thresholds.values()]
        return Store(Records(self.folder / "_".join(["components", *codes]), len(self.data)))


def _folder(out: Path, name: str) -> Path:
    return out / "work" / name


def open_benchmark(
    name: str,
    data: EvaluationSet,
    out: Path,
    reader: ScoreReader,
    scores: Sequence[str],
    main: str,
    protocol: Protocol,
    rules: ObjectRules | None,
) -> SetBenchmark:
    """Prepare the benchmark of a set; the arguments are the fields of `SetBenchmark`.

    Raises:
        PebalError: the folder holds results of other files under this name, the model has other classes, or the model
            has learned an anomaly of this set.

    Examples:
        >>> import tempfile
        >>> from pebal_core import AnomalyDetector
        >>> from pebal_core.benchmark.protocols import PROTOCOLS
        >>> from pebal_core.data.anomaly_sets import anomaly_ids
        >>> reader, smiyc = ScoreReader(AnomalyDetector.load("starter")), PROTOCOLS["smiyc"]
        >>> with tempfile.TemporaryDirectory() as out:
        ...     files = Path(out, "images", "a.png"), Path(out, "labels", "a.png")
        ...     data = EvaluationSet("town", Path(out), (files,), anomaly_ids([0], [1]))
        ...     benchmark = open_benchmark("town", data, Path(out), reader, ["energy"], "energy", smiyc, None)
        ...     benchmark.counted, benchmark.store.missing()
        (('energy',), [0])
    """
    folder, class_names = _folder(out, name), reader.detector.info.class_names
    files = [str(image.relative_to(data.path)) for image, _ in data.pairs]
    write_once(
        folder / "files.json",
        {"set": data.name, "files": files},
        lambda key, stored, new: (
            f"{out} contains results of {name} from other images; choose another --out or another name."
        ),
    )
    if data.ids.classes and data.ids.classes != tuple(class_names):
        raise PebalError(
            f"{name} is labelled with {len(data.ids.classes)} classes ({', '.join(data.ids.classes[:3])}, …), but "
            f"the model has {len(class_names)} ({', '.join(class_names[:3])}, …); leave this set out."
        )
    _refuse_learned(name, data, reader.detector.info.training.get("anomaly_images"))
    counts = None if data.ids.classes else CountShards(folder / "counts")
    store = Store(Records(folder / "images", len(data)), counts)
    return SetBenchmark(name, data, out, reader, tuple(scores), main, protocol, rules, store)


def _refuse_learned(name: str, data: EvaluationSet, digests: object) -> None:
    """Refuse an image whose labelled anomalies the model has learned (`training.samples.anomaly_digests`)."""
    learned = set(digests) if isinstance(digests, list) else set()
    for image, _ in data.pairs if learned else ():
        if file_sha256(image)[:16] in learned:
            raise PebalError(
                f"The model was trained on the anomalies of {image}, so figures on {name} are meaningless. Leave this "
                "set out."
            )


@dataclass(frozen=True)
class Outcome:
    """The result of one pass over one image."""

    record: Record
    """Small arrays, which are kept for each image."""
    counts: Mapping[str, PooledMetrics] = field(default_factory=dict)
    """The pixels of each score, which are added up over images."""


def score_image(benchmark: SetBenchmark, index: int, max_logits: MaxLogits | None) -> Outcome:
    """Do the first pass over an image.

    Args:
        max_logits: statistics of the training images, which ``sml`` needs.

    Raises:
        PebalError: the image cannot be evaluated.

    Examples:
        >>> import cv2, tempfile
        >>> from pebal_core import AnomalyDetector
        >>> from pebal_core.benchmark.protocols import PROTOCOLS
        >>> from pebal_core.data.anomaly_sets import anomaly_ids
        >>> reader, smiyc = ScoreReader(AnomalyDetector.load("starter")), PROTOCOLS["smiyc"]
        >>> with tempfile.TemporaryDirectory() as out:
        ...     file = Path(out) / "a.png"  # both the image and its labels
        ...     _ = cv2.imwrite(str(file), np.tri(64, dtype=np.uint8))
        ...     data = EvaluationSet("town", Path(out), ((file, file),), anomaly_ids([0], [1]))
        ...     benchmark = open_benchmark("town", data, Path(out), reader, ["energy"], "energy", smiyc, None)
        ...     pixels = score_image(benchmark, 0, max_logits=None).counts["energy"].compute()
        >>> pixels.inliers, pixels.outliers
        (2016, 2080)
    """
    if benchmark.data.ids.classes:
        return _score_classes(benchmark, index)
    return _score_anomalies(benchmark, index, max_logits)


def _score_anomalies(benchmark: SetBenchmark, index: int, max_logits: MaxLogits | None) -> Outcome:
    started = time.perf_counter()
    frame, name = benchmark.data.load(index), str(benchmark.data.pairs[index][0])
    read = time.perf_counter()
    forward = benchmark.reader(frame.image, benchmark.scores, max_logits=max_logits)
    scored = time.perf_counter()
    values, labels = dict(forward.scores), forward.labels

    def count(score: str) -> PooledMetrics:
        metrics = PooledMetrics()
        metrics.update(values[score], frame.target, name=f"{name} ({score})")
        return metrics

    with ThreadPoolExecutor(2) as pool:
        counts = dict(zip(benchmark.scores, pool.map(count, benchmark.scores)))
    main, record = values[benchmark.main], Record()
    if benchmark.rules is not None:
        filtered = values[FILTERED] = filter_energy(main, labels, benchmark.rules)
        reported = reported_pixels(main, labels, benchmark.rules)
        record |= benchmark.operating.record(RULES, filtered, frame.target, labels, name, reported)
    record |= benchmark.operating.record(PLAIN, main, frame.target, labels, name)
    if FILTERED in benchmark.counted:
        counts[FILTERED] = count(FILTERED)
    for score in benchmark.scores:
        record[f"{score}.bins"], record[f"{score}.pixels"] = coarse_counts(values[score], frame.target)
    within = counts[benchmark.main].compute()
    record["figure"] = np.array(np.nan if within.ap is None else within.ap)
    record["costs"] = _costs(read - started, forward, time.perf_counter() - scored)
    return Outcome(record, counts)


def _score_classes(benchmark: SetBenchmark, index: int) -> Outcome:
    started = time.perf_counter()
    frame, name = benchmark.data.load(index), str(benchmark.data.pairs[index][0])
    read = time.perf_counter()
    forward = benchmark.reader(frame.image, [benchmark.main], confidence=True)
    scored = time.perf_counter()
    segmentation, calibration = SegmentationMetrics(benchmark.class_names), CalibrationMetrics()
    segmentation.update(forward.labels, frame.target, name=name)
    assert forward.confidence is not None
    calibration.update(forward.confidence, forward.labels, frame.target, name=name)
    objects = Record()
    if benchmark.rules is not None:
        main, inliers = forward.scores[benchmark.main], np.where(frame.target == VOID, VOID, INLIER).astype(np.uint8)
        reported = reported_pixels(main, forward.labels, benchmark.rules)
        objects |= benchmark.operating.record(PLAIN, main, inliers, frame.target, name)
        objects |= benchmark.operating.record(RULES, main, inliers, frame.target, name, reported)
    spent = time.perf_counter() - scored
    miou = segmentation.labelled_miou()
    record = {
        "figure": np.array(np.nan if miou is None else miou),
        "costs": _costs(read - started, forward, spent),
        **_prefixed("segmentation", segmentation.state_dict()),
        **_prefixed("calibration", calibration.state_dict()),
        **objects,
    }
    if benchmark.protocol.sliding:
        sliding = SegmentationMetrics(benchmark.class_names)
        sliding.update(benchmark.reader.sliding_labels(frame.image), frame.target, name=name)
        record |= _prefixed("sliding", sliding.state_dict())
    return Outcome(record)


def score_components(benchmark: SetBenchmark, index: int, thresholds: Thresholds) -> Outcome:
    """Do the second pass over an image of an anomaly set: compute component metrics at these thresholds.

    Raises:
        PebalError: the image cannot be evaluated.

    Examples:
        >>> import cv2, tempfile
        >>> from pebal_core import AnomalyDetector
        >>> from pebal_core.benchmark.protocols import PROTOCOLS
        >>> from pebal_core.data.anomaly_sets import anomaly_ids
        >>> reader, smiyc = ScoreReader(AnomalyDetector.load("starter")), PROTOCOLS["smiyc"]
        >>> with tempfile.TemporaryDirectory() as out:
        ...     file = Path(out) / "a.png"  # both the image and its labels
        ...     _ = cv2.imwrite(str(file), np.tri(64, dtype=np.uint8))
        ...     data = EvaluationSet("town", Path(out), ((file, file),), anomaly_ids([0], [1]))
        ...     benchmark = open_benchmark("town", data, Path(out), reader, ["energy"], "energy", smiyc, None)
        ...     record = score_components(benchmark, 0, {"energy": -100.0}).record
        >>> record["energy.counts"].tolist()  # images, objects, predictions
        [1, 1, 1]
    """
    frame, name = benchmark.data.load(index), str(benchmark.data.pairs[index][0])
    forward = benchmark.reader(frame.image, [benchmark.main])
    record = Record()
    for score, threshold in thresholds.items():
        values, metrics = forward.scores[benchmark.main], benchmark.component_metrics(threshold)
        if score == FILTERED:
            assert benchmark.rules is not None, "without rules nothing is filtered"
            values = filter_energy(values, forward.labels, benchmark.rules)
        metrics.update(values, frame.target, name=name)
        record |= _prefixed(score, metrics.state_dict())
    return Outcome(record)


def _prefixed(prefix: str, state: Mapping[str, np.ndarray]) -> Record:
    return {f"{prefix}.{key}": value for key, value in state.items()}


def _costs(read: float, forward: Forward, metrics: float) -> np.ndarray:
    """Milliseconds of each of `STAGES`, and the peak of this process's memory in MB."""
    return np.array([1e3 * read, *forward.milliseconds.values(), 1e3 * metrics, peak_memory_mb()])


def peak_memory_mb() -> float:
    """Largest resident size of this process so far.

    Examples:
        >>> before = peak_memory_mb()
        >>> filled = np.ones((1 << 22, 8))  # 256 MiB
        >>> peak_memory_mb() > before or before > 256
        True
    """
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would include what the parent process held before the fork
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
