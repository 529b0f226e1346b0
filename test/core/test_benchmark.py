"""pebal benchmark from end to end: figures beside scikit-learn, kills, several processes, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pebal_core.benchmark.forward import ScoreReader, _window_starts, score_names
from pebal_core.benchmark.results import Results, SetResult, load_curve
from pebal_core.commands.main import main
from pebal_core.data.anomaly_sets import open_set
from pebal_core.detector import AnomalyDetector
from pebal_core.metrics.components import ComponentMetrics
from pebal_core.metrics.objects import ObjectMetrics
from pebal_core.metrics.pooled import PooledMetrics
from pebal_core.metrics.segmentation import SegmentationMetrics
from pebal_core.model_file import ModelInfo, load_model, save_model
from pebal_core.networks import build_network
from pebal_core.objects import ObjectRules, filter_energy, find_objects

TINY: dict[str, Any] = {"encoder": "resnet18", "decoder_channels": 16}
THRESHOLD = -3.028  # nats, within the energies of the network below
IMAGES = 10  # more than the 8 that become one archive


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, build_network("deeplabv3plus", **TINY), ModelInfo("deeplabv3plus", TINY, threshold=THRESHOLD))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes with bright objects, and one without any."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        height, width = (64, 96) if number % 2 else (57, 70)
        image = rng.integers(0, 120, (height, width, 3), np.uint8)
        labels = np.zeros((height, width), np.uint8)
        labels[:8] = 255
        if number:
            top, left = rng.integers(10, 30, 2)
            labels[top : top + 24, left : left + 30] = 1
            image[labels == 1] = rng.integers(160, 256, 3)
        for folder, pixels in (("images", image), ("labels", labels)):
            (root / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(root / folder / f"{number}.png"), pixels)
    return root


@pytest.fixture(scope="module")
def results(model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of one process that others are compared with."""
    out = tmp_path_factory.mktemp("results")
    assert main(arguments(model, pairs, out)) == 0
    return out


def arguments(model: Path, pairs: Path, out: Path, *more: str) -> list[str]:
    return ["benchmark", f"--model={model}", f"--dataset=mine={pairs}", f"--out={out}", "--protocol=smiyc", *more]


def start(arguments: list[str], **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "pebal_core", *arguments], env={**os.environ, **environment})


def figures(out: Path) -> SetResult:
    """Everything that does not depend on where and how long it ran."""
    result = Results.load(out).sets["mine"]
    info = replace(result.set, milliseconds={}, images_per_second=0.0, peak_memory_mb=0.0)
    return SetResult(info, result.scores, result.segmentation)


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
    plain, filtered = ObjectMetrics(19, THRESHOLD), ObjectMetrics(19, THRESHOLD, rules.grow)
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


def test_a_second_call_computes_nothing(model: Path, pairs: Path, results: Path) -> None:
    before, records = figures(results), sorted((results / "work/mine/images").iterdir())
    times = [path.stat().st_mtime_ns for path in records]
    assert main(arguments(model, pairs, results)) == 0
    assert times == [path.stat().st_mtime_ns for path in records]
    assert figures(results) == before


def test_a_killed_run_goes_on_where_it_was(model: Path, pairs: Path, results: Path, tmp_path: Path) -> None:
    process, done = start(arguments(model, pairs, tmp_path)), tmp_path / "work/mine/images"
    deadline = time.monotonic() + 240
    while len(list(done.glob("0*.npz"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in done.glob("0*.npz")}
    assert len(kept) >= 3
    assert main(arguments(model, pairs, tmp_path)) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert figures(tmp_path) == figures(results)


def test_two_processes_give_the_figures_of_one(
    model: Path, pairs: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = start(arguments(model, pairs, tmp_path), RANK="1", WORLD_SIZE="2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments(model, pairs, tmp_path)) == 0
    assert other.wait(timeout=240) == 0
    assert figures(tmp_path) == figures(results)
    assert Results.load(tmp_path).run.processes == 2


def test_the_share_of_a_dead_process_is_done_by_the_first(
    model: Path, pairs: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments(model, pairs, tmp_path, "--patience=0.5")) == 0
    assert figures(tmp_path) == figures(results)


def test_the_others_do_not_wait_for_ever_for_the_first(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments(model, pairs, tmp_path, "--patience=0.5", "--scores=energy")) == 1
    assert "they seem to be dead. Run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--protocol=pebal"], "another protocol: smiyc, here it is pebal"),
        (["--input-size", "32", "48"], "another input size"),
        (["--scores", "energy"], "another choice of scores"),
    ],
)
def test_a_folder_of_another_benchmark_is_refused(
    change: list[str], message: str, model: Path, pairs: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (results / "results.json").read_bytes()
    assert main([*arguments(model, pairs, results), *change]) == 1
    assert message in capsys.readouterr().err
    assert (results / "results.json").read_bytes() == before


def test_a_folder_of_another_model_or_other_images_is_refused(
    model: Path, pairs: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, info = load_model(model)
    info.threshold = 1.0
    save_model(tmp_path / "other.safetensors", network, info)
    assert main(arguments(tmp_path / "other.safetensors", pairs, results)) == 1
    assert "another model: tiny.safetensors" in capsys.readouterr().err
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes((pairs / folder / "0.png").read_bytes())
    assert main(arguments(model, tmp_path, results)) == 1
    assert "holds results of mine from other images" in capsys.readouterr().err


def test_bad_images_are_named_the_rest_is_evaluated_and_a_second_call_mends(
    model: Path, pairs: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "set", tmp_path / "out"
    for path in pairs.rglob("*.png"):
        copy = root / path.relative_to(pairs)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (root / "images/2.png").write_bytes((root / "images/2.png").read_bytes()[:500])
    cv2.imwrite(str(root / "labels/5.png"), np.full((64, 96), 9, np.uint8))
    cv2.imwrite(str(root / "labels/7.png"), np.zeros((10, 10), np.uint8))
    assert main(arguments(model, root, out)) == 1
    errors = capsys.readouterr().err
    for message in (
        "images/2.png cannot be read as an image",
        "labels/5.png holds the value 9",
        "7.png are 10×10",
        "3 images could not be evaluated",
    ):
        assert message in errors
    broken = Results.load(out).sets["mine"]
    assert broken.scores["energy"].images == broken.set.images == IMAGES - 3
    assert {Path(file).name for file in broken.set.failed} == {"2.png", "5.png", "7.png"}
    for path in pairs.rglob("*.png"):
        (root / path.relative_to(pairs)).write_bytes(path.read_bytes())
    assert main(arguments(model, root, out)) == 0
    assert figures(out).scores == figures(results).scores


def test_a_set_that_fails_wholly_does_not_take_the_others_along(
    model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes((pairs / folder / "0.png").read_bytes()[:100])
    out = tmp_path / "out"
    assert main(arguments(model, pairs, out, f"--dataset=broken={tmp_path}", "--scores=energy")) == 1
    assert list(Results.load(out).sets) == ["mine"]
    assert "images/0.png cannot be read" in capsys.readouterr().err


def test_one_class_alone_is_said(model: Path, pairs: Path, tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes((pairs / folder / "0.png").read_bytes())
    assert main(arguments(model, tmp_path, tmp_path / "out", "--scores=energy")) == 0
    score = Results.load(tmp_path / "out").sets["mine"].scores["energy"]
    assert score.auroc is None and score.ap_interval is None and score.components is None
    assert score.undefined is not None and "no outlier pixel" in score.undefined


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset=nothing"], "--dataset takes NAME=PATH"),
        (["--dataset=run=/tmp"], "'run' cannot name a data set"),
        (["--dataset=CamVid=/nowhere"], "/nowhere of CamVid does not exist"),
        (["--scores=energie"], "There is no score 'energie'"),
        (["--scores=sml"], "needs --sml-images"),
        (["--model=nowhere.onnx"], "There is no model 'nowhere.onnx'"),
    ],
)
def test_wrong_options_are_one_sentence(
    options: list[str], message: str, model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model, pairs, tmp_path / "out", *options)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


def test_real_frames_keep_the_metrics_within_256_mb(shared_dir: Path, model: Path, tmp_path: Path) -> None:
    """The model's own memory at this size is measured first, in the same process, and given back."""
    few = tmp_path / "few" / "Static"
    for image in sorted((shared_dir / "data/fishyscapes/Static/labels").iterdir())[:8]:
        for part in (shared_dir / "data/fishyscapes/Static").glob(f"*/{image.stem}.*"):
            (few / part.parent.name).mkdir(parents=True, exist_ok=True)
            (few / part.parent.name / part.name).symlink_to(part)
    code = f"""
import sys
from pebal_core.benchmark.evaluate import peak_memory_mb
from pebal_core.benchmark.forward import ScoreReader, score_names
from pebal_core.commands.main import main
from pebal_core.data.anomaly_sets import open_set
from pebal_core.detector import AnomalyDetector
path = {str(few.parent)!r}
reader = ScoreReader(AnomalyDetector.load({str(model)!r}))
names = list(score_names(["energy", "msp", "max_logit", "entropy"], True))
for index in range(8):
    reader(open_set("FishyscapesStatic", path).load(index).image, names)
del reader
before = peak_memory_mb()
arguments = [{f"--model={model}"!r}, f"--dataset=FishyscapesStatic={{path}}", {f"--out={tmp_path / 'out'}"!r}]
status = main(["benchmark", *arguments])
print(status, peak_memory_mb() - before)
"""
    # A fixed threshold gives freed maps back to the system, so that the peak is what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    status, used = output.stdout.splitlines()[-1].split()
    assert status == "0" and float(used) < 256
