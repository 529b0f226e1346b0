"""Ctrl-C and SIGKILL at any moment: what is there afterwards is whole, and the run can go on. Two runs, one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pebal_core.benchmark.results import Results
from pebal_core.footage import FrameSource
from pebal_core.locks import LOCK
from pebal_core.model_file import load_model, save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import build_network

from ..core.scenes import write_camvid
from ..core.training import pretrain_options, train_options
from .commands import refused, run

pytestmark = pytest.mark.slow

PATIENCE = 120.0
FRAMES = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, a folder of images with labels, and a video of them."""
    root = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    save_model(root / "small.safetensors", build_network("espnetv2", scale=0.5), ModelInfo("espnetv2", {"scale": 0.5}))
    rng = np.random.default_rng(0)
    video = cv2.VideoWriter(str(root / "drive.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for number in range(FRAMES):
        image = rng.integers(0, 256, (64, 96, 3), np.uint8)
        labels = np.zeros((64, 96), np.uint8)
        labels[20:40, 30:60] = 1
        video.write(image)
        for folder, pixels in (("images", image), ("labels", labels)):
            (root / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(root / folder / f"{number:03d}.png"), pixels)
    video.release()
    return root


def interrupt(arguments: list[str], begun: Callable[[], bool], how: signal.Signals, may_crash: bool = False) -> str:
    """Run a command, send a signal once something has begun; what it said, and checks of its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pebal_core", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "200"},
    )
    deadline = time.monotonic() + PATIENCE
    while not begun():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"it could not be interrupted: {process.communicate()[0].decode()[-2000:]}")
        time.sleep(0.005)
    process.send_signal(how)
    said = process.communicate(timeout=PATIENCE)[0].decode()
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    elif not (may_crash and process.returncode == -signal.SIGSEGV):
        assert process.returncode == 130 and "interrupted" in said, said
        assert "Traceback" not in said, said
    return said


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if ".part" in path.name or path.name == LOCK]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_predict(how: signal.Signals, place: Path, tmp_path: Path) -> None:
    command = ["predict", str(place / "drive.avi"), f"--model={place / 'small.safetensors'}", f"--out={tmp_path}"]
    interrupt(command, lambda: (tmp_path / "overlay/000003.jpg").exists(), how)
    shapes = {np.load(path).shape for path in (tmp_path / "energy").glob("[0-9]*.npy")}
    assert shapes == {(64, 96)}
    assert all(
        cv2.imread(str(p)) is not None for kind in ("labels", "overlay") for p in (tmp_path / kind).glob("[0-9]*")
    )
    if how == signal.SIGINT:
        assert not leftovers(tmp_path)
        assert 3 <= len(list(FrameSource(tmp_path / "overlay.mp4"))) < FRAMES
    else:
        assert not (tmp_path / "overlay.mp4").exists()
    assert run(command) == 0
    assert len(list((tmp_path / "energy").glob("[0-9]*.npy"))) == FRAMES
    assert len(list(FrameSource(tmp_path / "overlay.mp4"))) == FRAMES


def test_triage(place: Path, tmp_path: Path) -> None:
    """SIGKILL is in the tests of the triage."""
    out = tmp_path / "out"
    command = ["triage", str(place / "images"), str(place / "drive.avi"), f"--model={place / 'small.safetensors'}"]
    command += ["--threshold=-9", f"--out={out}"]
    interrupt(command, lambda: len(list(out.glob("sources/[!.]*/moments.json"))) == 1, signal.SIGINT)
    assert not leftovers(out) and not (out / "index.html").exists()
    (first,) = (out / "sources").iterdir()
    kept = (first / "moments.json").stat().st_mtime_ns
    assert run(command) == 0 and (out / "index.html").is_file()
    assert (first / "moments.json").stat().st_mtime_ns == kept, "done is done"


def test_benchmark(place: Path, tmp_path: Path) -> None:
    """SIGKILL is in the tests of the benchmark."""
    command = ["benchmark", f"--model={place / 'small.safetensors'}", f"--dataset=mine={place}", f"--out={tmp_path}"]
    records = tmp_path / "work/mine/images"
    interrupt(command, lambda: records.is_dir() and len(list(records.glob("[0-9]*.npz"))) > 2, signal.SIGINT)
    assert not leftovers(tmp_path) and not (tmp_path / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in records.glob("[0-9]*.npz")}
    assert 2 < len(kept) < FRAMES
    assert run(command) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "done is done"
    assert Results.load(tmp_path).sets["mine"].set.images == FRAMES


def test_export(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    out = tmp_path / "small.onnx"
    command = ["export", str(place / "small.safetensors"), str(out), f"--images={place / 'images'}"]
    began = time.monotonic()
    # PyTorch's exporter crashes on rare occasions where a signal interrupts it; even then nothing is left behind.
    interrupt(command, lambda: time.monotonic() - began > 6, signal.SIGINT, may_crash=True)
    assert not out.exists() and not leftovers(tmp_path)


def test_pretrain(tmp_path: Path) -> None:
    """SIGKILL, and the equality of what follows, is in the tests of the training."""
    out = tmp_path / "run/model.safetensors"
    command = pretrain_options(write_camvid(tmp_path / "camvid"), out, "--steps=20", "--checkpoint_every=2")
    interrupt(command, lambda: (out.parent / "last.ckpt").exists(), signal.SIGINT)
    assert not out.exists() and not leftovers(out.parent)
    torch.load(out.parent / "last.ckpt", weights_only=True)
    assert run([*command, "--resume=true"]) == 0
    load_model(out)


def test_train(workshop: Path, tmp_path: Path) -> None:
    command = train_options(workshop, tmp_path, "--trainer.steps=16")
    interrupt(command, lambda: (tmp_path / "last.ckpt").exists(), signal.SIGINT)
    assert not leftovers(tmp_path)
    assert run([*command, "--trainer.resume=true"]) == 0
    for name in ("best", "last"):
        load_model(tmp_path / f"{name}.safetensors")


def test_two_predictions_into_one_folder(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused, and takes nothing from the first."""
    command = ["predict", str(place / "drive.avi"), f"--model={place / 'small.safetensors'}", f"--out={tmp_path}"]
    first = subprocess.Popen([sys.executable, "-m", "pebal_core", *command])
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "overlay/000003.jpg").exists():
        assert first.poll() is None and time.monotonic() < deadline, "it ended before the second began"
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    assert f"Another run is writing into {tmp_path}" in refused(command, capsys)
    first.send_signal(signal.SIGCONT)
    assert first.wait(PATIENCE) == 0
    assert not leftovers(tmp_path)
    assert len(list(FrameSource(tmp_path / "overlay.mp4"))) == FRAMES
    assert [json.loads(line)["name"] for line in (tmp_path / "objects.jsonl").read_text().splitlines()] == [
        f"{number:06d}" for number in range(FRAMES)
    ]


# ---- crafted files of an earlier run ----


def crafted_checkpoints(whole: Path) -> dict[str, Callable[[], bytes | dict[str, object]]]:
    def without(key: str) -> dict[str, object]:
        return {name: value for name, value in torch.load(whole, weights_only=True).items() if name != key}

    def changed(key: str, value: object) -> dict[str, object]:
        return {**torch.load(whole, weights_only=True), key: value}

    return {
        "empty": lambda: b"",
        "cut short": lambda: whole.read_bytes()[:-500],
        "code": lambda: b"\x80\x02cposix\nsystem\nX\x0d\x00\x00\x00touch crafted\x85R.",
        **{f"no {key}": partial(without, key) for key in ("state_dict", "loops", "best")},
        "a state of words": lambda: changed("state_dict", {"a": "b"}),
        "a negative step": lambda: changed("global_step", -5),
        "an optimiser of another": lambda: changed("optimizer_states", [{"state": {}, "param_groups": []}]),
        "callbacks of words": lambda: changed("callbacks", ["x"]),
        "a run of words": lambda: changed("pebal", "x"),
    }


def test_a_crafted_checkpoint_on_resume(
    workshop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = train_options(workshop, tmp_path / "run", "--trainer.steps=4", "--trainer.stop_after=2")
    assert run(command) == 0
    checkpoint = tmp_path / "run/last.ckpt"
    (tmp_path / "whole.ckpt").write_bytes(checkpoint.read_bytes())
    for name, make in crafted_checkpoints(tmp_path / "whole.ckpt").items():
        content = make()
        checkpoint.write_bytes(content) if isinstance(content, bytes) else torch.save(content, checkpoint)
        capfd.readouterr()
        status = run([*command, "--trainer.resume=true", "--trainer.stop_after=3"])
        said = capfd.readouterr()
        assert "Traceback" not in said.err and not (tmp_path / "crafted").exists(), name
        if name in ("a negative step", "callbacks of words") and status == 0:
            continue  # Lightning looks at the loops alone
        assert status == 1, name
        assert len([line for line in said.err.splitlines() if line.startswith("pebal train: ")]) == 1, (name, said.err)


@pytest.fixture(scope="module")
def benchmarked(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command of a benchmark, and the folder of its results."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    small = tmp_path_factory.mktemp("pair")
    for folder in ("images", "labels"):
        (small / folder).mkdir()
        for number in range(3):
            name = f"{folder}/{number:03d}.png"
            (small / name).write_bytes((place / name).read_bytes())
    command = ["benchmark", f"--model={place / 'small.safetensors'}", f"--dataset=mine={small}", f"--out={out}"]
    assert run(command) == 0
    return command, out


def arrays(**values: object) -> bytes:
    import io

    stream = io.BytesIO()
    np.savez(stream, **values)  # type: ignore[arg-type]
    return stream.getvalue()


ARCHIVES: dict[str, bytes] = {
    "empty": b"",
    "no archive": b"PK\x03\x04" + bytes(40),
    "nothing in it": arrays(),
    "other arrays": arrays(costs=np.zeros(0), figure=np.array("x")),
    "objects": arrays(costs=np.array([{"a": 1}], dtype=object)),
}
TEXTS: dict[str, bytes] = {
    "noise": bytes(range(256)),
    "a list": b"[]",
    "an empty mapping": b"{}",
    "nested": json.dumps({"images": 3, "scores": {"energy": {"x": 1}}}).encode(),
}
FILES = {
    "work/mine/images/000001.npz": ARCHIVES,
    "work/mine/figures.json": TEXTS,
    "work/mine/files.json": TEXTS,
    "work/identity.json": TEXTS,
    "results.json": TEXTS,
}


def test_crafted_records_in_the_folder_of_a_benchmark(
    benchmarked: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command, out = benchmarked
    for file, contents in FILES.items():
        whole = (out / file).read_bytes()
        for name, content in contents.items():
            (out / file).write_bytes(content)
            capsys.readouterr()
            status = run(command)
            said = capsys.readouterr().err
            assert status in (0, 1) and "Traceback" not in said, (file, name, said)
            if status == 1:
                assert any(line.startswith("pebal benchmark: ") for line in said.splitlines()), (file, name, said)
            (out / file).write_bytes(whole)
    assert run(command) == 0


def test_stray_files_among_the_records(benchmarked: tuple[list[str], Path]) -> None:
    command, out = benchmarked
    for name in ("999999.npz", "000000.npz.part", ".x.part.npz", "a.failed", "-1.npz"):
        (out / "work/mine/images" / name).write_bytes(b"x")
    assert run(command) in (0, 1)
    (out / "work/mine/images/999999.npz").unlink()
    assert run(command) == 0


def test_a_failed_output_folder_is_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    model = f"--model={place / 'small.safetensors'}"
    for command in (
        ["predict", str(place / "images"), model, f"--out={tmp_path / 'file'}"],
        ["benchmark", f"--dataset=mine={place}", model, f"--out={tmp_path / 'file'}"],
        ["pack", str(place / "images"), "--format=fishyscapes", model, f"--out={tmp_path / 'file'}"],
        ["calibrate", str(place / "images"), model, f"--out={tmp_path / 'file' / 'm.safetensors'}", "--alpha=0.04"],
        ["predict", str(place / "images"), model, f"--out=/proc/{os.getpid()}/no"],
        ["predict", str(place / "images"), model, f"--out={'x' * 5000}"],
    ):
        sentence = refused(command, capsys)
        assert "file" in sentence or "/proc" in sentence or "xxx" in sentence
