"""Videos and folders of images that are not what they promise."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pebal_core.errors import CutShortError, PebalError
from pebal_core.footage import FrameSource
from pebal_core.model_file import save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import build_network

from ..core.scenes import write_video
from .commands import run


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_video_is_not_taken_for_a_short_one(share: float, tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.avi")
    assert len(list(FrameSource(path))) == 30, "whole, it says nothing"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    frames = []
    with pytest.raises(CutShortError, match=r"cut\.avi declares 30 frames, but only \d+ can be read"):
        for frame in FrameSource(path):
            frames.append(frame)


def test_predict_keeps_what_a_truncated_video_gave_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = write_video(tmp_path / "cut.avi", 12), tmp_path / "small.safetensors"
    arguments = {"scale": 0.5}
    save_model(model, build_network("espnetv2", **arguments), ModelInfo("espnetv2", arguments))  # type: ignore[arg-type]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    out = tmp_path / "out"
    assert run(["predict", str(path), f"--model={model}", f"--out={out}", "--batch=5"]) == 1
    said = capsys.readouterr()
    read = len(list((out / "labels").iterdir()))
    assert 3 <= read < 12
    assert f"declares 12 frames, but only {read} can be read" in said.err and f"Results of {read} frames" in said.out
    assert len(list(FrameSource(out / "overlay.mp4"))) == read
    written = ["energy", "labels", "objects", "objects.jsonl", "overlay", "overlay.mp4"]
    assert sorted(p.name for p in out.iterdir()) == written, "no leftovers"
    assert run(["predict", str(path), f"--model={model}", f"--out={out}", "--frames=3"]) == 0, "that many there are"
    assert run(["calibrate", str(path), f"--model={model}", f"--out={tmp_path / 'c.safetensors'}"]) == 1
    assert not (tmp_path / "c.safetensors").exists()


def test_a_real_drive_cut_off(shared_dir: Path, tmp_path: Path) -> None:
    whole = shared_dir / "data/video/solidWhiteRight.mp4"
    path = tmp_path / "cut.mp4"
    for size in (40_000, whole.stat().st_size - 20_000):
        path.write_bytes(whole.read_bytes()[:size])
        try:
            source = FrameSource(path)
        except PebalError:
            continue  # its index is gone
        with pytest.raises(CutShortError, match="declares 221 frames"):
            list(source)
    assert len(list(FrameSource(whole))) == 221


def test_images_that_would_hide_each_other(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(PebalError, match="have the same name; rename one"):
        FrameSource(tmp_path)
