"""pebal benchmark and its folder: kills, two runs at once, other requests, bad input."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from pebal_core.benchmark.results import Results
from pebal_core.commands.main import main
from pebal_core.model_file import load_model, save_model

from .benchmarks import IMAGES, arguments, figures
from .benchmarks import model as model  # fixtures
from .benchmarks import pairs as pairs
from .benchmarks import results as results


@pytest.mark.slow
def test_a_second_call_computes_nothing(model: Path, pairs: Path, results: Path) -> None:
    before, records = figures(results), sorted((results / "work/mine/images").iterdir())
    times = [path.stat().st_mtime_ns for path in records]
    assert main(arguments(model, pairs, results)) == 0
    assert times == [path.stat().st_mtime_ns for path in records]
    assert figures(results) == before


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_keeps_others_out_until_then(
    model: Path, pairs: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, done = arguments(model, pairs, tmp_path), tmp_path / "work/mine/images"
    process = subprocess.Popen([sys.executable, "-m", "pebal_core", *command])
    deadline = time.monotonic() + 240
    while len(list(done.glob("0*.npz"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    assert main(command) == 1
    assert f"Another run is writing into {tmp_path}. Wait until it ends" in capsys.readouterr().err
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in done.glob("0*.npz")}
    assert len(kept) >= 3
    assert main(command) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert figures(tmp_path) == figures(results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--protocol=pebal"], "another protocol, which is smiyc there and pebal here"),
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
    assert "another model, which is tiny.safetensors" in capsys.readouterr().err
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes((pairs / folder / "0.png").read_bytes())
    assert main(arguments(model, tmp_path, results)) == 1
    assert "contains results of mine from other images" in capsys.readouterr().err


@pytest.mark.slow
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
        "labels/5.png contains the value 9",
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


@pytest.mark.slow
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
