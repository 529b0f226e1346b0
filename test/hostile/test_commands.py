"""Hostile images, labels, models, options and folders through the real commands, in processes of their own.

A worker process runs one case after the other, each in a fork of itself that has PyTorch imported already: a case that
dies by a signal, hangs or writes to the wrong place takes no other along.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pebal_core.model_file import save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import build_network

from ..core.scenes import write_video
from .commands import SERVER

pytestmark = pytest.mark.slow

PATIENCE = 30.0
"""Seconds after which a case hangs."""


class Server:
    """Runs commands in forks of a process that has everything imported."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        )

    def __call__(self, *words: str | Path, limit: int = 0) -> tuple[int, str]:
        """Exit status, negative for a signal, and all that was said.

        Args:
            limit: bytes that a file may have at most, as a disk that is full; 0: any.
        """
        assert self._process.stdin and self._process.stdout
        case = {"words": [os.fsdecode(word) for word in words], "patience": PATIENCE, "limit": limit}
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        status, said = json.loads(self._process.stdout.readline())
        return status, said

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and one fine image."""
    root = tmp_path_factory.mktemp("commands")
    torch.manual_seed(0)
    save_model(root / "m.safetensors", build_network("espnetv2", scale=0.5), ModelInfo("espnetv2", {"scale": 0.5}))
    (root / "fine").mkdir()
    cv2.imwrite(str(root / "fine/a.png"), photo())
    return root


@pytest.fixture(scope="module")
def pebal(place: Path) -> Iterator[Server]:
    server = Server(place)
    yield server
    server.close()


def photo(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def refused(answer: tuple[int, str], *expected: str) -> None:
    """One sentence and a status other than 0; no traceback, no signal."""
    status, said = answer
    sentences = [line for line in said.splitlines() if line.startswith("pebal")]
    assert status in (1, 2) and len(sentences) == 1 and "Traceback" not in said, answer
    assert all(word in sentences[0] for word in expected), answer


def png(width: int, height: int, data: bytes = b"", depth: int = 8, kind: int = 2) -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    import io

    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def images() -> dict[str, tuple[str, bytes, bool]]:
    """Name → file name, content, whether it is an image."""
    rgb = Image.fromarray(photo())
    turned = Image.Exif()
    turned[0x0112] = 6
    jpeg = encoded(rgb, "JPEG")
    return {
        "fine": ("a.png", encoded(rgb, "PNG"), True),
        "16 bits": ("a.png", cv2.imencode(".png", photo().astype(np.uint16) * 257)[1].tobytes(), True),
        "grey": ("a.png", encoded(rgb.convert("L"), "PNG"), True),
        "RGBA": ("a.png", encoded(rgb.convert("RGBA"), "PNG"), True),
        "palette": ("a.png", encoded(rgb.convert("P"), "PNG"), True),
        "black and white": ("a.png", encoded(rgb.convert("1"), "PNG"), True),
        "CMYK": ("a.jpg", encoded(rgb.convert("CMYK"), "JPEG"), True),
        "turned by EXIF": ("a.jpg", encoded(rgb, "JPEG", exif=turned), True),
        "another suffix": ("a.jpg", encoded(rgb, "PNG"), True),
        "TIFF": ("a.tif", encoded(rgb, "TIFF"), True),
        "strange name": ("ä ⏎\n'\"$(touch x);[bold].png", encoded(rgb, "PNG"), True),
        "name that is no UTF-8": (os.fsdecode(b"\xff\xfe.png"), encoded(rgb, "PNG"), True),
        "name of 250 characters": ("n" * 246 + ".png", encoded(rgb, "PNG"), False),
        "empty": ("a.png", b"", False),
        "truncated PNG": ("a.png", encoded(rgb, "PNG")[:-300], False),
        "truncated JPEG": ("a.jpg", jpeg[: len(jpeg) // 2], False),
        "truncated TIFF": ("a.tif", encoded(rgb, "TIFF")[:400], False),
        "noise": ("a.png", bytes(range(256)) * 9, False),
        "text": ("a.jpg", b"this is no image", False),
        "header of 50000×50000": ("a.png", png(50000, 50000), False),
        "header of 2147483647×1": ("a.png", png(2**31 - 1, 1), False),
        "header of 0×0": ("a.png", png(0, 0), False),
        "header of 10000×10000, packed": ("a.png", png(10000, 10000, bytes(30001) * 10000, kind=2), False),
        "flat": ("a.png", encoded(Image.fromarray(photo(3, 900)), "PNG"), False),
    }


@pytest.mark.parametrize("name", images())
def test_images(name: str, pebal: Server, place: Path, tmp_path: Path) -> None:
    file, content, fine = images()[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / file).write_bytes(content)
    answer = pebal("predict", tmp_path / "in", "--model=m.safetensors", f"--out={tmp_path / 'out'}")
    if not fine:
        return refused(answer)
    assert answer[0] == 0, answer
    (energy,) = (tmp_path / "out/energy").iterdir()
    height, width = (64, 48) if name == "turned by EXIF" else (48, 64)
    assert np.load(energy).shape == (height, width) and not (place / "x").exists()


LABELS = {
    "grey of 16 bits": cv2.imencode(".png", np.zeros((48, 64), np.uint16))[1].tobytes(),
    "colour": cv2.imencode(".png", photo())[1].tobytes(),
    "another size": cv2.imencode(".png", np.zeros((64, 48), np.uint8))[1].tobytes(),
    "an undeclared value": cv2.imencode(".png", np.full((48, 64), 7, np.uint8))[1].tobytes(),
    "empty": b"",
    "noise": bytes(range(256)),
    "a header of 50000×50000": png(50000, 50000, kind=0),
}


def test_labels(pebal: Server, tmp_path: Path) -> None:
    """A bad pair is named, the good one is evaluated, and the status says that something is missing."""
    for number, (name, content) in enumerate(LABELS.items()):
        root = tmp_path / str(number)
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True)
        cv2.imwrite(str(root / "images/a.png"), photo())
        (root / "labels/a.png").write_bytes(content)
        status, said = pebal("benchmark", f"--dataset=x={root}", "--model=m.safetensors", f"--out={root / 'out'}")
        assert status == 1 and "Traceback" not in said and "a.png" in said.replace("\n", ""), (name, said)


LONG = "n" * 5000
PATHS = ["", LONG, "~nosuchuser/x", "/dev/null", "/proc/self/mem", "no\nsuch", "-", "file\udcff"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: repr(path[:20]))
def test_paths(path: str, pebal: Server, tmp_path: Path) -> None:
    for words in (
        ["info", path], ["predict", path, f"--out={tmp_path / 'o'}"], ["predict", "fine", f"--model={path}", "--out=o"],
        ["export", path, str(tmp_path / "x.onnx")], ["convert", path, str(tmp_path / "x.safetensors")],
        ["benchmark", f"--dataset=a={path}", f"--out={tmp_path / 'o'}"], ["calibrate", path, f"--out={tmp_path / 'm'}"],
        ["pack", path, "--format=smiyc", f"--out={tmp_path / 'o'}"], ["pretrain", f"--data={path}"],
        ["prepare-coco", path, str(tmp_path / "o")], ["train", f"--config={path}"],
    ):  # fmt: skip
        refused(pebal(*words))


def test_folders_that_cannot_take_results(pebal: Server, place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out, model = tmp_path / "out", "--model=m.safetensors"
    refused(pebal("predict", "fine", model, f"--out={tmp_path / 'file'}"), "file")
    refused(pebal("predict", "fine", model, f"--out={tmp_path / 'file' / 'deeper'}"), "file")
    refused(pebal("predict", "fine", model, "--out=/proc/1/no"), "/proc/1/no")
    refused(pebal("predict", "fine", model, f"--out={LONG}"))
    refused(pebal("predict", "fine", model, f"--out={out}", limit=2000), "could not be written")
    assert not [path for path in out.rglob("*") if path.is_file() and path.stat().st_size == 2000], (
        "nothing half written"
    )
    refused(pebal("pack", "fine", "--format=fishyscapes", model, f"--out={out}", limit=2000))
    refused(
        pebal("calibrate", "fine", model, "--alpha=0.04", f"--out={out / 'm.safetensors'}", limit=2000),
        "could not be written",
    )
    refused(pebal("benchmark", f"--dataset=a={place}", model, f"--out={tmp_path / 'file'}"))


def test_a_disk_that_gets_full_in_the_middle(pebal: Server, place: Path, tmp_path: Path) -> None:
    """Nothing that is cut short passes for a result: neither the video, nor records, nor what a triage keeps."""
    model, source, out = "--model=m.safetensors", write_video(tmp_path / "drive.avi"), tmp_path / "out"
    refused(pebal("predict", source, model, f"--out={out}", "--threshold=-9", limit=16_000), "overlay.mp4")
    assert len(list((out / "energy").iterdir())) == 30 and not list(out.rglob("*.mp4"))
    for folder in ("images", "labels"):
        (tmp_path / "pair" / folder).mkdir(parents=True)
        cv2.imwrite(
            str(tmp_path / "pair" / folder / "a.png"), photo() if folder == "images" else photo()[..., 0] // 200
        )
    refused(pebal("benchmark", f"--dataset=a={tmp_path / 'pair'}", model, f"--out={out / 'b'}", limit=3000))
    assert not (out / "b/results.json").exists()
    for limit in (500, 9_000):
        words = ("triage", source, model, f"--out={out / 't'}", "--threshold=-9")
        status, said = pebal(*words, limit=limit)
        assert status == 1 and "free space" in said and "Traceback" not in said, said
        assert not (out / "t/index.html").exists() and not list((out / "t").rglob("*.webm"))
    assert pebal(*words)[0] == 0
    assert not [path for path in out.rglob("*") if ".part" in path.name]


ARGUMENTS = [
    [], ["predict"], ["predict", "fine"], ["predict", "fine", "--out"], ["predict", "fine", "--out=o", "--device=gpu"],
    ["predict", "fine", "--out=o", "--device=cuda:99"], ["predict", "fine", "--out=o", "--device=tensorrt"],
    ["predict", "fine", "--out=o", "--device=cuda:99999999999999999999"],
    ["predict", "fine", "--out=o", "--device=meta"],
    ["predict", "fine", "--out=o", "--engine=onnxruntime", "--model=m.safetensors"],
    ["predict", "fine", "--out=o", "--precision=int8"], ["predict", "99", "--out=o"], ["predict", "9" * 40, "--out=o"],
    ["pack", "fine", "--format=smiyc", "--method=../x", "--out=o"], ["pack", "fine", "--format=x", "--out=o"],
    ["benchmark", "--dataset=../x=fine", "--out=o"], ["benchmark", "--dataset==", "--out=o"],
    ["benchmark", "--dataset=a=fine", "--dataset=a=fine", "--out=o"], ["benchmark", "--dataset=fine", "--out=o"],
    ["benchmark", "--dataset=a=fine", "--out=o", "--scores=none"], ["export", "m.safetensors", "x.txt"],
    ["export", "m.safetensors", "x.onnx", "--images=nowhere"], ["convert", "fine/a.png", "x.safetensors"],
    ["convert", "m.safetensors", "x.pth"], ["calibrate", "fine", "--out=m.onnx"],
    ["export", "m.safetensors", "x.onnx", "--labelled=x"],
    ["calibrate", "fine", "--layout=camvid", "--out=m.safetensors"], ["paste-outliers", "--to=x"], ["suggest-margins"],
]  # fmt: skip


@pytest.mark.parametrize("words", ARGUMENTS, ids=lambda words: " ".join(words)[:50])
def test_arguments(words: list[str], pebal: Server, place: Path) -> None:
    if not words:
        assert pebal()[0] == 2
        return
    refused(pebal(*words))
    assert (place / "m.safetensors").is_file() and not (place / "m.onnx").exists()


def test_the_server_itself_sees_what_it_must(pebal: Server) -> None:
    """A death by a signal and a traceback are told, so that the tests above can fail."""
    assert pebal("--die", "signal")[0] == -signal.SIGSEGV
    assert "Traceback" in pebal("--die", "exception")[1]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
