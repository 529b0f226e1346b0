"""Figures of pebal benchmark from end to end, beside scikit-learn and the detector."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pebal_core.benchmark.forward import ScoreReader, _window_starts, score_names
from pebal_core.benchmark.results import Results, load_curve
from pebal_core.commands.main import main
from pebal_core.data.anomaly_sets import open_set
from pebal_core.detector import AnomalyDetector
from pebal_core.metrics.components import ComponentMetrics
from pebal_core.metrics.objects import ObjectMetrics
from pebal_core.metrics.pooled import PooledMetrics
from pebal_core.metrics.segmentation import SegmentationMetrics
from pebal_core.model_file import load_model
from pebal_core.objects import ObjectRules, filter_energy, find_objects

from .benchmarks import IMAGES, THRESHOLD, arguments
from .benchmarks import model as model  # fixtures
from .benchmarks import pairs as pairs
from .benchmarks import results as results


@pytest.mark.slow
def test_figures_equal_scikit_learn_on_the_detectors_energies(model: Path, pairs: Path, results: Path) -> None:
    """A figure of the benchmark is a figure of the detector that drives."""
    detector, data = AnomalyDetector.load(model), open_set("mine", pairs)
    frames = [data.load(i) for i in range(len(data))]
    energies = [detector(frame.image).energy for frame in frames]
    known = [frame.target != 255 for frame in frames]
    score = np.concatenate([energy[k] for energy, k in zip(energies, known)])
    label = np.concatenate([frame.target[k] for frame, k in zip(frames, known)])
    found = Results.load(results).sets["mine"].scores["energy"]
    assert (found.images, found.inliers, found.outliers) == (IMAGES, (label == 0).sum(), (label == 1).sum())
    assert found.auroc == pytest.approx(roc_auc_score(label, score), abs=1e-9)
    assert found.ap == pytest.approx(average_precision_score(label, score), abs=1e-9)
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    assert found.fpr95 == pytest.approx(fpr[tpr >= 0.95][0], abs=1e-9)
    components = ComponentMetrics(found.best_f1_threshold or 0)
    for frame, energy in zip(frames, energies):
        components.update(energy, frame.target, name="")
    assert found.components is not None
    assert (found.components.siou, found.components.f1) == (components.compute().siou, components.compute().f1)


def test_objects_are_those_of_the_detectors_energies_and_of_the_rules(model: Path, pairs: Path, results: Path) -> None:
    detector, data = AnomalyDetector.load(model), open_set("mine", pairs)
    rules = ObjectRules.for_model(detector.info)
    plain, filtered = ObjectMetrics(19, THRESHOLD), ObjectMetrics(19, THRESHOLD, rules.sweep_from)
    pooled = PooledMetrics()
    for frame in map(data.load, range(len(data))):
        result = detector(frame.image)
        reported = np.zeros(frame.target.shape, bool)
        for found in find_objects(result.energy, result.labels, rules).objects:
            x, y, width, height = found.box
            reported[y : y + height, x : x + width] |= found.mask
        kept = filter_energy(result.energy, result.labels, rules)
        plain.update(result.energy, frame.target, result.labels, name="")
        filtered.update(kept, frame.target, result.labels, name="", stored=reported)
        pooled.update(kept, frame.target, name="")
    objects = Results.load(results).sets["mine"].scores["energy"].objects
    assert objects is not None and objects.rules is not None and objects.labelled == IMAGES - 1
    for ours, metrics in ((objects, plain), (objects.rules, filtered)):
        expected = metrics.compute()
        assert expected.stored is not None and ours.stored is not None
        assert tuple(ours.recall_at.values()) == expected.recall_at and ours.froc.score == expected.score
        assert (ours.stored.recall, ours.stored.false_per_frame) == (
            expected.stored.recall,
            expected.stored.false_per_frame,
        )
        low, high = ours.froc.score_interval or (1, 0)
        assert ours.froc.score is not None and low <= ours.froc.score <= high
    assert list(objects.recall_at) == ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    assert objects.rules.components is not None
    assert objects.rules.components.threshold == pooled.compute().best_f1_threshold
    assert "| mine | rules |" in (results / "results.md").read_text()


def test_every_score_has_its_figures_curve_and_intervals(results: Path) -> None:
    values = json.loads((results / "results.json").read_text())
    scores = [name for name in values["mine"] if name not in ("segmentation", "set")]
    assert scores == list(score_names(["energy", "msp", "max_logit", "entropy"], smoothing=True))
    for name in scores:
        score, curve = values["mine"][name], load_curve(results, "mine", name)
        assert curve is not None and len(curve.tpr) == len(curve.fpr) == len(curve.precision) > 10
        for figure in ("auroc", "ap", "fpr95"):
            low, high = score[f"{figure}_interval"]
            assert 0 <= low <= score[figure] <= high <= 1 and low < high
        assert (score["components"] is not None) == (name == "energy")
        assert (score["ap_difference_interval"] is None) == (name == "energy")
    assert len({values["mine"][name]["ap"] for name in scores}) == len(scores), "the scores are different ones"
    assert values["run"]["model_sha256"] and values["run"]["fpr95_definition"] == "first_at_least"
    assert values["mine"]["set"]["images"] == IMAGES and values["mine"]["set"]["failed"] == {}
    assert "| mine | 10 | energy |" in (results / "results.md").read_text()
    assert (results / "report.html").read_text().count("data:image/jpeg;base64,") == 6


def test_the_best_and_the_worst_frames_are_pictures(results: Path) -> None:
    frames = Results.load(results).sets["mine"].set.frames
    assert [frame.kind for frame in frames] == ["worst"] * 3 + ["best"] * 3
    assert [frame.figure for frame in frames] == sorted(frame.figure for frame in frames)
    assert "0.png" not in {frame.name for frame in frames}, "a frame without anomalies has no AP"
    for frame in frames:
        assert cv2.imread(str(results / frame.picture)) is not None


def test_what_resuming_needs_stays_small(results: Path) -> None:
    sizes = [path.stat().st_size for path in (results / "work").rglob("*") if path.is_file()]
    assert max(sizes) < 100_000 and not list((results / "work").rglob("*.zip"))


@pytest.mark.slow
def test_sml_takes_its_statistics_from_training_images(model: Path, pairs: Path, tmp_path: Path) -> None:
    options = (f"--sml-images={pairs / 'images'}", "--scores", "sml_raw")
    assert main(arguments(model, pairs, tmp_path, *options)) == 0
    reader, data = ScoreReader(AnomalyDetector.load(model)), open_set("mine", pairs)
    frames = [data.load(i) for i in range(len(data))]
    highest, labels = zip(*(reader.max_logit(frame.image) for frame in frames))
    every, classes = (np.concatenate([array.ravel() for array in arrays]) for arrays in (highest, labels))
    standard = [
        -(values - np.array([every[classes == c].mean() if (classes == c).any() else 0 for c in range(19)])[label])
        / np.array([every[classes == c].std() if (classes == c).any() else 1 for c in range(19)])[label]
        for values, label in zip(highest, labels)
    ]
    known = [frame.target != 255 for frame in frames]
    expected = roc_auc_score(
        np.concatenate([frame.target[k] for frame, k in zip(frames, known)]),
        np.concatenate([score[k] for score, k in zip(standard, known)]),
    )
    found = Results.load(tmp_path).sets["mine"].scores
    assert list(found) == ["energy", "sml_raw"]
    assert found["sml_raw"].auroc == pytest.approx(expected, abs=1e-4)


def write_camvid(root: Path) -> Path:
    rng = np.random.default_rng(1)
    for number in range(3):
        for folder, pixels in (
            ("test", rng.integers(0, 256, (60, 80, 3), np.uint8)),
            ("testannot", rng.integers(0, 12, (60, 80), np.uint8)),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / folder / f"{number}.png"), pixels)
    return root


def test_sets_of_classes_give_miou_whole_and_by_windows(model: Path, tmp_path: Path) -> None:
    root, out = write_camvid(tmp_path / "camvid"), tmp_path / "out"
    assert main(["benchmark", f"--model={model}", f"--dataset=CamVid={root}", f"--out={out}", "--protocol=pebal"]) == 0
    detector, data = AnomalyDetector.load(model), open_set("CamVid", root)
    metrics = SegmentationMetrics(detector.info.class_names)
    for i in range(len(data)):
        metrics.update(detector(data.load(i).image).labels, data.load(i).target, name="")
    result = Results.load(out).sets["CamVid"]
    objects = result.scores["energy"].objects
    assert objects is not None and objects.stored is not None and (objects.labelled, objects.froc.score) == (0, None)
    assert objects.stored.by_class.keys() == {detector.info.class_names[i] for i in metrics.labelled_classes()}
    assert objects.stored.false_per_frame == pytest.approx(
        sum(alarms.objects_per_frame for alarms in objects.stored.by_class.values())
    )
    assert result.segmentation is not None
    assert result.segmentation.miou == pytest.approx(metrics.labelled_miou(), abs=1e-12)
    assert len(result.segmentation.iou) == 11
    # One window holds the whole image, so only the rounding of the sum differs.
    assert result.segmentation.sliding_miou == pytest.approx(result.segmentation.miou, abs=1e-4)
    assert result.segmentation.ece is not None and 0 < result.segmentation.ece < 1
    assert [frame.kind for frame in result.set.frames] == ["worst", "worst", "best"]


def test_windows_cover_the_image() -> None:
    assert _window_starts(800) == _window_starts(60) == [0]
    assert _window_starts(1024) == [0, 224]
    assert _window_starts(2048) == [0, 534, 1068, 1248]


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [19, 20])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the small exporter, which needs no tracing of shapes
def test_an_onnx_file_with_logits_gives_the_figures_of_its_model(
    outputs: int, model: Path, pairs: Path, results: Path, tmp_path: Path
) -> None:
    """Any network can be benchmarked, with an abstention channel or without."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    network, _ = load_model(model)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network.head(self.network.trunk(images))[:, :outputs]

    path, axes = tmp_path / "foreign.onnx", {0: "n", 2: "h", 3: "w"}
    sample = torch.zeros(1, 3, 64, 96)
    torch.onnx.export(
        Logits().eval(),
        (sample,),
        str(path),
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": axes, "logits": axes},
        dynamo=False,
    )
    assert main(arguments(path, pairs, tmp_path / "out", "--scores=energy")) == 0
    expected, found = (Results.load(out).sets["mine"].scores["energy"] for out in (results, tmp_path / "out"))
    assert expected.auroc is not None and expected.ap is not None
    # The padding may differ (the network's own stride here, 32 there), and with it a border.
    assert found.auroc == pytest.approx(expected.auroc, abs=0.03)
    assert found.ap == pytest.approx(expected.ap, abs=0.03)


@pytest.mark.slow
def test_real_frames_keep_the_metrics_within_384_mb(shared_dir: Path, tmp_path: Path) -> None:
    """The model's own memory at this size is measured first, in the same process, and given back."""
    few = tmp_path / "few" / "Static"
    for image in sorted((shared_dir / "data/fishyscapes/Static/labels").iterdir())[:3]:
        for part in (shared_dir / "data/fishyscapes/Static").glob(f"*/{image.stem}.*"):
            (few / part.parent.name).mkdir(parents=True, exist_ok=True)
            (few / part.parent.name / part.name).symlink_to(part)
    code = f"""
from pebal_core.benchmark.evaluate import peak_memory_mb
from pebal_core.benchmark.forward import ScoreReader, score_names
from pebal_core.commands.main import main
from pebal_core.data.anomaly_sets import open_set
from pebal_core.detector import AnomalyDetector
path = {str(few.parent)!r}
reader = ScoreReader(AnomalyDetector.load("starter"))
names = list(score_names(["energy", "msp", "max_logit", "entropy"], True))
for index in range(2):
    reader(open_set("FishyscapesStatic", path).load(index).image, names)
del reader
before = peak_memory_mb()
arguments = ["--model=starter", f"--dataset=FishyscapesStatic={{path}}", {f"--out={tmp_path / 'out'}"!r}]
status = main(["benchmark", *arguments])
print(status, peak_memory_mb() - before)
"""
    # A fixed threshold gives freed maps back to the system, so that the peak is what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    status, used = output.stdout.splitlines()[-1].split()
    assert status == "0" and float(used) < 384
