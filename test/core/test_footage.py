"""Footage: what can be played, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pebal_core.errors import PebalError
from pebal_core.footage import FrameSource
from pebal_core.render import VideoWriter


def colored(value: int) -> np.ndarray:
    """Red RGB image of a given strength."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[..., 0] = value
    return image


def test_video_comes_back_in_rgb_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    writer = VideoWriter(path, 12)
    for value in (50, 120, 250):
        writer.write(colored(value))
    writer.close()
    source = FrameSource(path)
    assert source.rate == pytest.approx(12) and source.count == 3 and source.is_video
    frames = list(source)
    assert [frame.name for frame in frames] == ["000000", "000001", "000002"]
    reds = [frame.image[..., 0].mean() for frame in frames]
    assert reds == pytest.approx([50, 120, 250], abs=12)
    assert max(frame.image[..., 2].mean() for frame in frames) < 12


def test_folder_is_sorted_and_one_image_is_a_source(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), colored(ord(name))[..., ::-1])
    assert [frame.name for frame in FrameSource(tmp_path)] == ["a", "b", "c"]
    (frame,) = FrameSource(tmp_path / "b.png")
    assert (frame.image == colored(ord("b"))).all()


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(PebalError, match=r"nothing\.mp4 does not exist"):
        FrameSource(tmp_path / "nothing.mp4")


@pytest.mark.parametrize("content", [b"", b"this is not a video"])
def test_video_without_frames_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.mp4"
    path.write_bytes(content)
    with pytest.raises(PebalError, match=r"The video .*empty\.mp4"):
        FrameSource(path)


def test_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(PebalError, match="contains no images"):
        FrameSource(tmp_path)


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(PebalError, match=r"a\.png cannot be read as an image"):
        FrameSource(tmp_path)


def test_missing_camera_is_named() -> None:
    with pytest.raises(PebalError, match="The camera 97 cannot be opened"):
        FrameSource("97")
