"""The benchmark of one data set: its passes over the images, and the figures that they add up to."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data.anomaly_sets import INLIER, EvaluationSet
from ..errors import PebalError
from ..files import write_atomically
from ..labels import VOID
from ..metrics.calibration import CalibrationMetrics
from ..metrics.components import SIZE_LIMITS, ComponentMetrics
from ..metrics.pooled import Figures, PooledMetrics, PooledResult
from ..metrics.segmentation import SegmentationMetrics
from ..model_file import file_sha256
from ..objects import ObjectRules
from .bootstrap import Coarse, central, coarse_counts, draw_weights, intervals, replicate_figures
from .forward import Forward, ScoreReader
from .operating import PLAIN, RULES, OperatingPoint, Record
from .passes import Outcome, Pass
from .pictures import draw_frames
from .protocols import SMALL_OBJECTS, Protocol
from .results import STAGES, Components, Objects, Score, Segmentation, SetInfo, SetResult, save_curve
from .shards import CountShards, Records, trusting, write_once

FIRST, SECOND = "first", "second"
"""Stages of a set: the figures, and the components at the threshold that follows from them."""
FILTERED = "filtered"
"""Name beside the scores of the main score after the object rules, whose pooled figures give only a threshold."""


class SetBenchmark:
    """One data set of a benchmark.

    Args:
        name: by which the results call it.
        data: its images and labels.
        out: the results folder.
        reader: runs the model.
        scores: names of the scores, the main one among them.
        main: the main score.
        rules: of objects in the main score; None where no threshold is stored for it.

    Raises:
        PebalError: the folder holds results of other files under this name, or the model has other classes.
    """

    def __init__(
        self,
        name: str,
        data: EvaluationSet,
        out: Path,
        reader: ScoreReader,
        scores: Sequence[str],
        main: str,
        protocol: Protocol,
        rules: ObjectRules | None,
    ) -> None:
        self.name, self.data, self.out, self.reader, self.protocol = name, data, out, reader, protocol
        self.class_names, self.scores, self.main = reader.detector.info.class_names, scores, main
        self.folder = out / "work" / name
        files = [str(image.relative_to(data.path)) for image, _ in data.pairs]
        write_once(
            self.folder / "files.json",
            {"set": data.name, "files": files},
            lambda key, stored, new: (
                f"{out} holds results of {name} from other images; choose another --out or another name."
            ),
        )
        if data.ids.classes and data.ids.classes != tuple(self.class_names):
            raise PebalError(
                f"{name} is labelled with {len(data.ids.classes)} classes ({', '.join(data.ids.classes[:3])}, …), but "
                f"the model has {len(self.class_names)} ({', '.join(self.class_names[:3])}, …); leave this set out."
            )
        self._refuse_learned(reader.detector.info.training.get("anomaly_images"))
        self.operating = OperatingPoint(tuple(self.class_names), rules, outliers=not data.ids.classes)
        self._figures = self.folder / "figures.json"
        self.first = Pass(
            name,
            FIRST,
            name,
            Records(self.folder / "images", len(data)),
            self._classes if data.ids.classes else self._anomalies,
            None if data.ids.classes else CountShards(self.folder / "counts"),
            lambda: self._summed_up() is not None,
        )
        self.second: Pass | None = None
        """Component metrics, once the threshold is known."""
        self._new_components: dict[str, Callable[[], ComponentMetrics]] = {}

    def _refuse_learned(self, digests: object) -> None:
        """Refuse an image whose labelled anomalies the model has learned (`training.samples.anomaly_digests`)."""
        learned = set(digests) if isinstance(digests, list) else set()
        for image, _ in self.data.pairs if learned else ():
            if file_sha256(image)[:16] in learned:
                raise PebalError(
                    f"The model has learned the anomalies of {image}, so figures on {self.name} say nothing; leave "
                    "this set out."
                )

    @property
    def has_components(self) -> bool:
        return not self.data.ids.classes and (self.protocol.components or self.data.track is not None)

    def sum_up(self) -> None:
        """Figures of all images from their counts; then the counts are not needed any more."""
        counts = self.first.counts
        if counts is None or self._summed_up() is not None:
            return
        done = self.first.records.done()
        results: dict[str, PooledResult] = {}
        counted = [*self.scores, FILTERED] if self._filters else self.scores
        for score in counted if done else ():
            result = results[score] = counts.total(score).compute()
            if result.curve is not None and score != FILTERED:
                save_curve(self.out, self.name, score, result.curve)
        values = {"images": len(done), "scores": {score: result.to_dict() for score, result in results.items()}}
        write_atomically(self._figures, json.dumps(values).encode())
        if len(done) == len(self.data):
            counts.clear()

    def prepare_components(self) -> Pass | None:
        """The second pass, after `sum_up` of the command. None where there are no components to look for."""
        if not self.has_components:
            return None
        pooled = self._pooled()
        thresholds = {score: pooled[score].best_f1_threshold for score in (self.main, FILTERED) if score in pooled}
        if thresholds.get(self.main) is None:
            return None
        track = "obstacle" if self.data.name in SMALL_OBJECTS else "anomaly"
        self._new_components = {
            score: partial(ComponentMetrics, threshold, *SIZE_LIMITS[track])
            for score, threshold in thresholds.items()
            if threshold is not None
        }
        codes = [f"{np.float32(threshold).view(np.uint32):08x}" for threshold in thresholds.values()]
        folder = self.folder / "_".join(["components", *codes])
        records = Records(folder, len(self.data))
        self.second = Pass(f"{self.name}, components", SECOND, self.name, records, self._components)
        return self.second

    def failures(self) -> dict[str, str]:
        """Images that could not be evaluated → why."""
        failures = self.first.records.failures()
        if self.second is not None:
            failures.update(self.second.records.failures())
        return {str(self.data.pairs[index][0]): reason for index, reason in sorted(failures.items())}

    def result(self) -> SetResult | None:
        """The figures, after all passes; None if every image failed."""
        records, done = self.first.records, self.first.records.done()
        if not done:
            return None
        costs = np.array([records.read(index, "costs")["costs"] for index in done])
        milliseconds = dict(zip(STAGES, costs[:, :-1].mean(axis=0).tolist()))
        info = SetInfo(
            set=self.data.name,
            path=str(self.data.path),
            images=len(done),
            failed=self.failures(),
            milliseconds=milliseconds,
            images_per_second=1e3 / sum(milliseconds.values()),
            peak_memory_mb=float(costs[:, -1].max()),
            frames=draw_frames(self.out, self.name, self.data, self.reader, self.main, self._frame_figures()),
        )
        if self.data.ids.classes:
            segmentation = self._segmentation()
            if self.operating.rules is None:
                return SetResult(info, segmentation=segmentation)
            reason = "not defined: a set of classes labels no outliers"
            score = Score(segmentation.images, segmentation.pixels, 0, reason, objects=self._objects())
            return SetResult(info, {self.main: score}, segmentation)
        return SetResult(info, scores=self._scores())

    def _anomalies(self, index: int) -> Outcome:
        """First pass over an anomaly set."""
        started = time.perf_counter()
        frame, name = self.data.load(index), str(self.data.pairs[index][0])
        read = time.perf_counter()
        forward = self.reader(frame.image, self.scores)
        scored = time.perf_counter()

        def count(score: str) -> PooledMetrics:
            metrics = PooledMetrics()
            metrics.update(forward.scores[score], frame.target, name=f"{name} ({score})")
            return metrics

        main = forward.scores[self.main]
        with ThreadPoolExecutor(2) as pool:
            metrics = dict(zip(self.scores, pool.map(count, self.scores)))
        record, filtered = self._after_rules(main, frame.target, forward.labels, name)
        record.update(self.operating.plain(main, frame.target, forward.labels, name))
        metrics.update(filtered)
        for score in self.scores:
            record[f"{score}.bins"], record[f"{score}.pixels"] = coarse_counts(forward.scores[score], frame.target)
        within = metrics[self.main].compute()
        record["figure"] = np.array(np.nan if within.ap is None else within.ap)
        record["costs"] = _costs(read - started, forward, time.perf_counter() - scored)
        return record, metrics

    def _classes(self, index: int) -> Outcome:
        """First pass over a set of classes."""
        started = time.perf_counter()
        frame, name = self.data.load(index), str(self.data.pairs[index][0])
        read = time.perf_counter()
        forward = self.reader(frame.image, [self.main], confidence=True)
        scored = time.perf_counter()
        segmentation, calibration = SegmentationMetrics(self.class_names), CalibrationMetrics()
        segmentation.update(forward.labels, frame.target, name=name)
        assert forward.confidence is not None
        calibration.update(forward.confidence, forward.labels, frame.target, name=name)
        main, inliers = forward.scores[self.main], np.where(frame.target == VOID, VOID, INLIER).astype(np.uint8)
        objects: Record = {}
        if self.operating.rules is not None:
            objects.update(self.operating.plain(main, inliers, frame.target, name))
            objects.update(self.operating.after_rules(main, main, inliers, forward.labels, frame.target, name))
        spent = time.perf_counter() - scored
        miou = segmentation.labelled_miou()
        record = {
            "figure": np.array(np.nan if miou is None else miou),
            "costs": _costs(read - started, forward, spent),
            **_prefixed("segmentation", segmentation.state_dict()),
            **_prefixed("calibration", calibration.state_dict()),
            **objects,
        }
        if self.protocol.sliding:
            sliding = SegmentationMetrics(self.class_names)
            sliding.update(self.reader.sliding_labels(frame.image), frame.target, name=name)
            record.update(_prefixed("sliding", sliding.state_dict()))
        return record, {}

    def _components(self, index: int) -> Outcome:
        """Second pass over an anomaly set."""
        frame, name = self.data.load(index), str(self.data.pairs[index][0])
        forward, record = self.reader(frame.image, [self.main]), {}
        for score, new in self._new_components.items():
            values, metrics = forward.scores[self.main], new()
            metrics.update(
                self.operating.filtered(values, forward.labels) if score == FILTERED else values,
                frame.target,
                name=name,
            )
            record.update(_prefixed(score, metrics.state_dict()))
        return record, {}

    @property
    def _filters(self) -> bool:
        """Whether the component metrics of the filtered scores are wanted, for which their counts are needed."""
        return self.has_components and self.operating.filters

    def _after_rules(
        self, score: np.ndarray, target: np.ndarray, labels: np.ndarray, name: str
    ) -> tuple[Record, dict[str, PooledMetrics]]:
        """Objects after the rules, and the counts of the filtered scores where they are needed."""
        if not self.operating.filters:
            return {}, {}
        filtered = self.operating.filtered(score, labels)
        record, metrics = self.operating.after_rules(score, filtered, target, labels, labels, name), PooledMetrics()
        if not self._filters:
            return record, {}
        metrics.update(filtered, target, name=f"{name} ({FILTERED})")
        return record, {FILTERED: metrics}

    def _summed_up(self) -> dict[str, Any] | None:
        """What `sum_up` wrote, if it holds for the images that are done."""
        if not self._figures.is_file():
            return None
        with trusting(self._figures):
            values = json.loads(self._figures.read_text())
            return values if values["images"] == len(self.first.records.done()) else None

    def _pooled(self) -> dict[str, PooledResult]:
        values = self._summed_up() or {"scores": {}}
        return {score: PooledResult(**result) for score, result in values["scores"].items()}

    def _scores(self) -> dict[str, Score]:
        weights = draw_weights(len(self.first.records.done()))
        replicates = {score: replicate_figures(partial(self._coarse, score), weights) for score in self.scores}
        main_ap, main_replicates = self._pooled()[self.main].ap, replicates[self.main][:, 1]
        scores = {}
        for score in self.scores:
            result = self._pooled()[score]
            if result.fpr95_definitions is not None:
                result = replace(result, fpr95=result.fpr95_definitions[self.protocol.fpr95])
            gap = None
            if score != self.main and result.ap is not None and main_ap is not None:
                gaps = replicates[score][:, 1] - main_replicates
                gap = central(gaps[1:] - gaps[0] + result.ap - main_ap, -1, 1)
            scores[score] = Score(
                **{item.name: getattr(result, item.name) for item in fields(Figures)},
                **intervals(replicates[score], result),
                ap_difference_interval=gap,
                components=self._component_figures(score) if score == self.main else None,
                objects=self._objects() if score == self.main else None,
            )
        return scores

    def _coarse(self, score: str) -> Iterator[Coarse]:
        for index in self.first.records.done():
            record = self.first.records.read(index, f"{score}.")
            yield record[f"{score}.bins"], record[f"{score}.pixels"]

    def _objects(self) -> Objects:
        records, done = self.first.records, self.first.records.done()
        read = ({**records.read(index, PLAIN), **records.read(index, RULES)} for index in done)
        return self.operating.figures(read, draw_weights(len(done)), self._component_figures(FILTERED))

    def _component_figures(self, score: str) -> Components | None:
        if self.second is None or score not in self._new_components:
            return None
        total = self._new_components[score]()
        for index in self.second.records.done():
            total.merge(ComponentMetrics.from_state(_part(score, self.second.records.read(index))))
        threshold, smallest_prediction, smallest_object = total.settings
        values = asdict(total.compute())
        del values["images"]
        return Components(
            **values,
            threshold=threshold,
            smallest_prediction=smallest_prediction,
            smallest_object=smallest_object,
        )

    def _segmentation(self) -> Segmentation:
        total, calibration = SegmentationMetrics(self.class_names), CalibrationMetrics()
        sliding = SegmentationMetrics(self.class_names) if self.protocol.sliding else None
        for index in self.first.records.done():
            record = self.first.records.read(index)
            total.merge(SegmentationMetrics.from_state(_part("segmentation", record)))
            calibration.merge(CalibrationMetrics.from_state(_part("calibration", record)))
            if sliding is not None:
                sliding.merge(SegmentationMetrics.from_state(_part("sliding", record)))
        result = total.compute()
        return Segmentation(
            images=result.images,
            pixels=result.pixels,
            miou=total.labelled_miou(),
            accuracy=result.accuracy,
            iou=_labelled_iou(total),
            group_iou=total.group_iou(self.reader.detector.info.classes.groups),
            ece=calibration.compute().ece,
            sliding_miou=sliding.labelled_miou() if sliding else None,
            sliding_iou=_labelled_iou(sliding) if sliding else None,
        )

    def _frame_figures(self) -> dict[int, float]:
        """AP or mIoU within each frame where it is defined."""
        figures = {
            index: float(self.first.records.read(index, "figure")["figure"]) for index in self.first.records.done()
        }
        return {index: figure for index, figure in figures.items() if np.isfinite(figure)}


def _labelled_iou(metrics: SegmentationMetrics) -> dict[str, float | None]:
    iou = metrics.compute().iou
    return {metrics.classes[i]: iou[i] for i in metrics.labelled_classes()}


def _prefixed(prefix: str, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}.{key}": value for key, value in state.items()}


def _part(prefix: str, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{prefix}."): value for key, value in record.items() if key.startswith(f"{prefix}.")}


def _costs(read: float, forward: Forward, metrics: float) -> np.ndarray:
    """Milliseconds of each of `STAGES`, and the peak of this process's memory in MB."""
    return np.array([1e3 * read, *forward.milliseconds.values(), 1e3 * metrics, peak_memory_mb()])


def peak_memory_mb() -> float:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would include what the parent process held before the fork
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
