"""Reduces the records that `pebal_core.benchmark.evaluate` makes of each image to the figures of a data set.

Whole records are read one at a time, so that memory hardly grows with the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from functools import partial

import numpy as np

from ..metrics.calibration import CalibrationMetrics
from ..metrics.components import ComponentMetrics
from ..metrics.pooled import Figures, PooledResult
from ..metrics.segmentation import SegmentationMetrics
from .bootstrap import Coarse, central, draw_weights, intervals, replicate_figures
from .evaluate import FILTERED, SetBenchmark, Thresholds
from .operating import PLAIN, RULES, Record
from .pictures import draw_frames
from .results import STAGES, Components, Objects, Score, Segmentation, SetInfo, SetResult, save_curve

Pooled = Mapping[str, PooledResult]
"""The figures of all pixels, by score."""


def pool(benchmark: SetBenchmark) -> Pooled:
    """Compute the figures of all pixels from the counts, which are deleted once every image is done.

    The result is empty for a set of classes, and where no image is done.

    Examples:
        >>> import cv2, tempfile
        >>> from pathlib import Path
        >>> from pebal_core.benchmark.plan import Request, Task, do_task, make_plan
        >>> from pebal_core.fleet.scan import ModelChoice
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for kind in ("images", "labels"):
        ...         Path(folder, kind).mkdir()
        ...         _ = cv2.imwrite(f"{folder}/{kind}/a.png", np.tri(64, dtype=np.uint8))
        ...     out = Path(folder, "out")
        ...     plan = make_plan(Request(ModelChoice("starter"), [f"town={folder}"], out, scores=["energy"]))
        ...     _ = do_task(plan, Task("town", 0))
        ...     pooled = pool(plan.sets["town"])
        >>> pooled["energy"].outliers, pooled["energy"].auroc > 0
        (2080, True)
    """
    store = benchmark.store
    if store.counts is None:
        return {}
    sums = store.sums()
    if sums is None:
        done = store.records.done()
        sums = {}
        for score in benchmark.counted if done else ():
            result = store.counts.total(score).compute()
            if result.curve is not None and score != FILTERED:
                save_curve(benchmark.out, benchmark.name, score, result.curve)
            sums[score] = result.to_dict()
        store.keep_sums(sums)
    return {score: PooledResult(**figures) for score, figures in sums.items()}


def component_thresholds(benchmark: SetBenchmark, pooled: Pooled) -> Thresholds:
    """The thresholds of the best pixel F1, at which the second pass computes component metrics. They are empty where no
    second pass is needed.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pebal_core import AnomalyDetector
        >>> from pebal_core.benchmark.evaluate import ScoreReader, open_benchmark
        >>> from pebal_core.benchmark.protocols import PROTOCOLS
        >>> from pebal_core.data.anomaly_sets import EvaluationSet, anomaly_ids
        >>> reader, smiyc = ScoreReader(AnomalyDetector.load("starter")), PROTOCOLS["smiyc"]
        >>> with tempfile.TemporaryDirectory() as out:
        ...     files = Path(out, "images", "a.png"), Path(out, "labels", "a.png")
        ...     data = EvaluationSet("town", Path(out), (files,), anomaly_ids([0], [1]))
        ...     benchmark = open_benchmark("town", data, Path(out), reader, ["energy"], "energy", smiyc, None)
        >>> component_thresholds(benchmark, {"energy": PooledResult(1, 99, 9, best_f1_threshold=-4.5)})
        {'energy': -4.5}
    """
    if not benchmark.has_components or benchmark.main not in pooled:
        return {}
    best = {score: pooled[score].best_f1_threshold for score in (benchmark.main, FILTERED) if score in pooled}
    if best[benchmark.main] is None:
        return {}
    return {score: threshold for score, threshold in best.items() if threshold is not None}


def failures(benchmark: SetBenchmark, thresholds: Thresholds) -> dict[str, str]:
    """Images that could not be evaluated → why.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pebal_core import AnomalyDetector
        >>> from pebal_core.benchmark.evaluate import ScoreReader, open_benchmark
        >>> from pebal_core.benchmark.protocols import PROTOCOLS
        >>> from pebal_core.data.anomaly_sets import EvaluationSet, anomaly_ids
        >>> reader, smiyc = ScoreReader(AnomalyDetector.load("starter")), PROTOCOLS["smiyc"]
        >>> with tempfile.TemporaryDirectory() as out:
        ...     files = Path(out, "images", "a.png"), Path(out, "labels", "a.png")
        ...     data = EvaluationSet("town", Path(out), (files,), anomaly_ids([0], [1]))
        ...     benchmark = open_benchmark("town", data, Path(out), reader, ["energy"], "energy", smiyc, None)
        ...     benchmark.store.records.fail(0, "a.png is damaged")
        ...     list(failures(benchmark, thresholds={}).values())
        ['a.png is damaged']
    """
    failed = benchmark.store.records.failures()
    if thresholds:
        failed |= benchmark.component_store(thresholds).records.failures()
    return {str(benchmark.data.pairs[index][0]): reason for index, reason in sorted(failed.items())}


def reduce_set(benchmark: SetBenchmark, pooled: Pooled, thresholds: Thresholds) -> SetResult | None:
    """Compute the figures of a set after all passes, and draw its best and worst frames; None if every image failed.

    Args:
        pooled: from `pool`.
        thresholds: from `component_thresholds`.

    Examples:
        >>> import cv2, tempfile
        >>> from pathlib import Path
        >>> from pebal_core.benchmark.plan import Request, Task, do_task, make_plan
        >>> from pebal_core.fleet.scan import ModelChoice
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for kind in ("images", "labels"):
        ...         Path(folder, kind).mkdir()
        ...         _ = cv2.imwrite(f"{folder}/{kind}/a.png", np.tri(64, dtype=np.uint8))
        ...     out = Path(folder, "out")
        ...     plan = make_plan(Request(ModelChoice("starter"), [f"town={folder}"], out, scores=["energy"]))
        ...     _ = do_task(plan, Task("town", 0))
        ...     result = reduce_set(plan.sets["town"], pool(plan.sets["town"]), thresholds={})
        >>> result.scores["energy"].outliers, result.set.frames[0].picture
        (2080, 'frames/town/worst_a.jpg')
    """
    records = benchmark.store.records
    done = records.done()
    if not done:
        return None
    costs = np.array([records.read(index, "costs")["costs"] for index in done])
    milliseconds = dict(zip(STAGES, costs[:, :-1].mean(axis=0).tolist()))
    figures = {index: float(records.read(index, "figure")["figure"]) for index in done}
    defined = {index: figure for index, figure in figures.items() if np.isfinite(figure)}
    info = SetInfo(
        set=benchmark.data.name,
        path=str(benchmark.data.path),
        images=len(done),
        failed=failures(benchmark, thresholds),
        milliseconds=milliseconds,
        images_per_second=1e3 / sum(milliseconds.values()),
        peak_memory_mb=float(costs[:, -1].max()),
        frames=draw_frames(benchmark.out, benchmark.name, benchmark.data, benchmark.reader, benchmark.main, defined),
    )
    components = {score: _components(benchmark, thresholds, score) for score in thresholds}
    if not benchmark.data.ids.classes:
        return SetResult(info, _scores(benchmark, pooled, done, components))
    segmentation = _segmentation(benchmark, done)
    if benchmark.rules is None:
        return SetResult(info, segmentation=segmentation)
    reason = "not defined: a set of classes labels no outliers"
    objects = _objects(benchmark, done, None)
    score = Score(segmentation.images, segmentation.pixels, 0, reason, objects=objects)
    return SetResult(info, {benchmark.main: score}, segmentation)


def _scores(
    benchmark: SetBenchmark, pooled: Pooled, done: list[int], components: Mapping[str, Components]
) -> dict[str, Score]:
    main, weights = benchmark.main, draw_weights(len(done))
    replicates, scores = {}, {}
    for score in benchmark.scores:
        replicates[score] = replicate_figures(partial(_coarse, benchmark, done, score), weights)
    for score in benchmark.scores:
        result = pooled[score]
        if result.fpr95_definitions is not None:
            result = replace(result, fpr95=result.fpr95_definitions[benchmark.protocol.fpr95])
        gap, main_ap = None, pooled[main].ap
        if score != main and result.ap is not None and main_ap is not None:
            gaps = replicates[score][:, 1] - replicates[main][:, 1]
            gap = central(gaps[1:] - gaps[0] + result.ap - main_ap, -1, 1)
        scores[score] = Score(
            **{item.name: getattr(result, item.name) for item in fields(Figures)},
            **intervals(replicates[score], result),
            ap_difference_interval=gap,
            components=components.get(main) if score == main else None,
            objects=_objects(benchmark, done, components.get(FILTERED)) if score == main else None,
        )
    return scores


def _coarse(benchmark: SetBenchmark, done: list[int], score: str) -> Iterator[Coarse]:
    for index in done:
        record = benchmark.store.records.read(index, f"{score}.")
        yield record[f"{score}.bins"], record[f"{score}.pixels"]


def _objects(benchmark: SetBenchmark, done: list[int], filtered: Components | None) -> Objects:
    """Count found and false objects; `filtered` holds the component metrics of the filtered scores."""
    records = benchmark.store.records
    read = ({**records.read(index, PLAIN), **records.read(index, RULES)} for index in done)
    return benchmark.operating.figures(read, draw_weights(len(done)), filtered)


def _components(benchmark: SetBenchmark, thresholds: Thresholds, score: str) -> Components:
    total = benchmark.component_metrics(thresholds[score])
    records = benchmark.component_store(thresholds).records
    for index in records.done():
        total.merge(ComponentMetrics.from_state(_part(score, records.read(index))))
    threshold, smallest_prediction, smallest_object = total.settings
    values = asdict(total.compute())
    del values["images"]
    return Components(
        **values, threshold=threshold, smallest_prediction=smallest_prediction, smallest_object=smallest_object
    )


def _segmentation(benchmark: SetBenchmark, done: list[int]) -> Segmentation:
    total, calibration = SegmentationMetrics(benchmark.class_names), CalibrationMetrics()
    sliding = SegmentationMetrics(benchmark.class_names) if benchmark.protocol.sliding else None
    for index in done:
        record = benchmark.store.records.read(index)
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
        group_iou=total.group_iou(benchmark.reader.detector.info.classes.groups),
        ece=calibration.compute().ece,
        sliding_miou=sliding.labelled_miou() if sliding else None,
        sliding_iou=_labelled_iou(sliding) if sliding else None,
    )


def _labelled_iou(metrics: SegmentationMetrics) -> dict[str, float | None]:
    iou = metrics.compute().iou
    return {metrics.classes[i]: iou[i] for i in metrics.labelled_classes()}


def _part(prefix: str, record: Record) -> Record:
    return {key.removeprefix(f"{prefix}."): value for key, value in record.items() if key.startswith(f"{prefix}.")}
