"""The player as a camera: every frame, evenly paced, with stamps; and how it ends."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo

from ..core.bags import START, Messages, write_bag
from .harness import STARTUP, Client, NodeProcess, picture, stamp_of

FRAMES = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of `FRAMES` lossless images."""
    path = tmp_path / "footage"
    path.mkdir()
    for number in range(FRAMES):
        cv2.imwrite(str(path / f"{number:02d}.png"), picture(seed=number)[..., ::-1])
    return path


def seconds(message: object) -> float:
    sec, nanosec = stamp_of(message)
    return sec + nanosec * 1e-9


def test_every_frame_arrives_once_in_order_at_an_even_pace(tmp_path: Path, folder: Path) -> None:
    client = Client("/player")
    parameters = {
        "source": folder, "rate": 10.0, "loop": "true", "count": 20, "frame_id": "front",
        "wait_for_subscribers": 1,
        "manifest": tmp_path / "sent.csv",
    }  # fmt: skip
    with NodeProcess("camera_player", tmp_path / "log", parameters, "-r", "__ns:=/player") as process:
        images = client.listen("image")
        assert process.exit_code(STARTUP) == 0
    client.close()
    assert f"Published 20 frames of {folder}." in process.output()
    assert len(images.messages) == 20, "none is lost, the first and the last included"
    for number, message in enumerate(images.messages):
        assert (message.encoding, message.header.frame_id) == ("rgb8", "front")
        pixels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        np.testing.assert_array_equal(pixels, picture(seed=number % FRAMES))
    gaps = np.diff([seconds(message) for message in images.messages])
    assert 0.095 < np.median(gaps) < 0.105
    stamps = (sec * 1_000_000_000 + nanosec for sec, nanosec in images.stamps())
    sent = [f"{stamp},{number % FRAMES:02d}" for number, stamp in enumerate(stamps)]
    assert (tmp_path / "sent.csv").read_text().splitlines() == ["stamp_ns,name", *sent]


def test_camera_info_goes_with_every_image(tmp_path: Path, folder: Path) -> None:
    client = Client("/info")
    parameters = {"source": folder, "rate": 20.0, "start_delay": 1.0, "wait_for_subscribers": 1}
    with NodeProcess("camera_player", tmp_path / "log", parameters, "-r", "__ns:=/info") as process:
        infos = client.listen("camera_info", CameraInfo)
        images = client.listen("image")
        assert process.exit_code(STARTUP) == 0
    client.close()
    assert images.stamps() == infos.stamps() and len(images.messages) == FRAMES
    assert {(info.height, info.width, info.k[0]) for info in infos.messages} == {(96, 160, 0.0)}


def test_a_topic_of_a_recording_is_played(tmp_path: Path) -> None:
    messages = Messages(ros1=False)
    entries = [
        (topic, START + number * 50_000_000, messages.image(picture(seed=seed + number), "rgb8", START))
        for number in range(FRAMES)
        for seed, topic in ((0, "/left/image"), (100, "/right/image"))
    ]
    bag = write_bag(tmp_path / "drive", "mcap", entries)
    client = Client("/bag")
    parameters = {"source": bag, "topic": "/right/image", "wait_for_subscribers": 1}
    with NodeProcess("camera_player", tmp_path / "log", parameters, "-r", "__ns:=/bag") as process:
        images = client.listen("image")
        assert process.exit_code(STARTUP) == 0
    client.close()
    assert len(images.messages) == FRAMES
    for number, message in enumerate(images.messages):
        pixels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        np.testing.assert_array_equal(pixels, picture(seed=100 + number))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.mp4", "The source nowhere.mp4 does not exist"),
        ("empty.mp4", "cannot be opened"),
        ("", "The parameter source is empty"),
    ],
)
def test_a_bad_source_ends_it_with_one_sentence(tmp_path: Path, source: str, sentence: str) -> None:
    (tmp_path / "empty.mp4").touch()
    path = str(tmp_path / source) if source == "empty.mp4" else source
    with NodeProcess("camera_player", tmp_path / "log", {"source": path or "''"}) as process:
        assert process.exit_code(STARTUP) == 1
    assert sentence in process.output() and "Traceback" not in process.output()


def test_a_file_that_turns_bad_on_the_way_ends_it_after_the_good_ones(tmp_path: Path, folder: Path) -> None:
    broken = folder / "05.png"
    broken.write_bytes(broken.read_bytes()[:50])
    client = Client("/broken")
    parameters = {"source": folder, "rate": 50.0, "wait_for_subscribers": 1}
    with NodeProcess("camera_player", tmp_path / "log", parameters, "-r", "__ns:=/broken") as process:
        images = client.listen("image")
        assert process.exit_code(STARTUP) == 1
    client.close()
    assert len(images.messages) == 5 and str(broken) in process.output() and "Traceback" not in process.output()


def test_a_truncated_video_is_a_warning(tmp_path: Path) -> None:
    """Every frame that can be read is published; a player that loops goes on."""
    path = tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for seed in range(12):
        writer.write(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    parameters = {"source": path, "rate": 50.0, "loop": "true", "count": 20}
    with NodeProcess("camera_player", tmp_path / "log", parameters, "-r", "__ns:=/cut") as process:
        assert process.exit_code(STARTUP) == 0
    output = process.output()
    assert output.count("declares 12 frames, but only") == 1 and "[WARN]" in output
    assert "Published 20 frames" in output
