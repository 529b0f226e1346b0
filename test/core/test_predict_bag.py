"""`pebal predict --out-bag`: what lies in the recording, read back by rosbags and by mcap, and what ends early."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Reader

from pebal_core.commands.main import main
from pebal_core.detector import AnomalyDetector, Result
from pebal_core.engines.selection import model_info
from pebal_core.footage.bag_writer import BagWriter, typestore
from pebal_core.model_file import resolve_model, rewrite_info
from pebal_core.outputs import messages
from pebal_core.render import VideoWriter

from .bags import PERIOD, START, Messages, drive, write_bag

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 120, 160


def scene(number: int) -> np.ndarray:
    """A grey road with a red box that moves to the right."""
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    image[80:100, 40 + number : 60 + number] = (255, 0, 0)
    return image


@pytest.fixture
def sees_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network takes red for an anomaly."""

    def call(self: AnomalyDetector, image: np.ndarray) -> Result:
        red = (image[..., 0] > 200) & (image[..., 1] < 80)
        return Result(np.zeros(image.shape[:2], np.uint8), np.where(red, -0.5, -12).astype(np.float32))

    monkeypatch.setattr(AnomalyDetector, "__call__", call)


def recorded(path: Path, kind: str = "mcap", count: int = 5) -> Path:
    made = Messages(kind == "ros1")
    entries = []
    for number in range(count):
        stamp = START + number * PERIOD
        entries.append(("/front/image_raw", stamp + 7, made.image(scene(number), "rgb8", stamp)))
    info = made.camera_info(HEIGHT, WIDTH, START)
    return write_bag(path, kind, [("/front/camera_info", START, info), *entries])


def read(path: Path) -> dict[str, list[tuple[int, Any]]]:
    """Messages by topic with their times of recording."""
    found: dict[str, list[tuple[int, Any]]] = defaultdict(list)
    with Reader(path) as reader:
        for connection, log_ns, data in reader.messages():
            found[connection.topic].append((log_ns, typestore().deserialize_cdr(data, connection.msgtype)))
    return found


def pixels(message: Any) -> np.ndarray:
    return message.data.reshape(message.height, message.width, -1).squeeze()


@pytest.mark.parametrize("kind", ["mcap", "ros1"])
def test_the_recording_holds_every_output_at_the_original_stamps(tmp_path: Path, kind: str, sees_red: None) -> None:
    out = tmp_path / "result.mcap"
    source = recorded(tmp_path / "drive", kind)
    assert main(["predict", str(source), "--out-bag", str(out), "--with-images", "--camera-info", "topic"]) == 0
    assert out.is_file() and not list(tmp_path.glob(".*"))
    found = read(out)
    names = "labels score mask overlay/compressed objects obstacles peak_energy alarm_share confirmed_objects image_raw"
    assert set(found) == {f"/front/{name}" for name in [*names.split(), "markers"]}
    for topic, entries in found.items():
        assert [log_ns for log_ns, _ in entries] == [START + n * PERIOD + 7 for n in range(5)], topic
    for number in range(5):
        stamps = {
            (message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec, message.header.frame_id)
            for topic in ("labels", "score", "mask", "overlay/compressed", "objects", "image_raw")
            for message in [found[f"/front/{topic}"][number][1]]
        }
        assert stamps == {(START + number * PERIOD, "front")}
        red = np.zeros((HEIGHT, WIDTH), bool)
        red[80:100, 40 + number : 60 + number] = True
        np.testing.assert_array_equal(pixels(found["/front/mask"][number][1]), np.where(red, 255, 0))
        np.testing.assert_array_equal(pixels(found["/front/image_raw"][number][1]), scene(number))
        (_, share) = found["/front/alarm_share"][number]
        assert share.data == pytest.approx(400 / (HEIGHT * WIDTH))
        boxes = [detection.bbox for detection in found["/front/objects"][number][1].detections]
        assert [box.center.position.x for box in boxes] == ([50.0 + number] if number >= 2 else [])
        assert found["/front/confirmed_objects"][number][1].data == (number >= 2)
        cloud = found["/front/obstacles"][number][1]
        assert cloud.header.frame_id == "base_footprint" and (cloud.width > 0) == (number >= 2)
    points = np.frombuffer(found["/front/obstacles"][4][1].data, "<f4").reshape(-1, 5)
    assert points[:, 0] == pytest.approx(150 * 1.5 / (99.5 - 60), rel=0.02)


def test_mcap_reads_it_and_finds_the_definitions(tmp_path: Path, sees_red: None) -> None:
    from mcap.reader import make_reader

    out = tmp_path / "result.mcap"
    assert main(["predict", str(recorded(tmp_path / "drive")), "--out-bag", str(out)]) == 0
    with out.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None and summary.statistics is not None and reader.get_header().profile == "ros2"
        assert {chunk.compression for chunk in summary.chunk_indexes} == {"zstd"}, "file compression shuts viewers out"
        kinds = {channel.topic: summary.schemas[channel.schema_id] for channel in summary.channels.values()}
        assert kinds["/front/labels"].name == "sensor_msgs/msg/Image" and kinds["/front/labels"].encoding == "ros2msg"
        assert b"MSG: vision_msgs/BoundingBox2D" in kinds["/front/objects"].data
        assert sum(1 for _ in reader.iter_messages(topics=["/front/labels"])) == 5
        assert summary.statistics.message_count == 5 * len(kinds)


def test_a_video_becomes_a_recording_that_begins_at_zero(tmp_path: Path, sees_red: None) -> None:
    video = VideoWriter(tmp_path / "drive.mp4", 10)
    for number in range(3):
        video.write(scene(number))
    video.close()
    out = tmp_path / "result.mcap"
    words = ["--out-bag", str(out), "--with-images", "--outputs", "energy", "labels/compressed", "energy"]
    assert main(["predict", str(tmp_path / "drive.mp4"), *words, "--out", str(tmp_path / "files")]) == 0
    found = read(out)
    series = {"/peak_energy", "/alarm_share", "/confirmed_objects"}
    assert set(found) == {"/image/compressed", "/energy", "/labels/compressed", *series}
    assert [log_ns for log_ns, _ in found["/energy"]] == [0, 100_000_000, 200_000_000]
    energy = found["/energy"][1][1]
    assert (energy.encoding, energy.header.frame_id) == ("32FC1", "camera")
    stored = np.load(tmp_path / "files" / "energy" / "000001.npy")
    np.testing.assert_array_equal(energy.data.view(np.float32).reshape(HEIGHT, WIDTH), stored)
    labels = cv2.imdecode(found["/labels/compressed"][1][1].data, cv2.IMREAD_UNCHANGED)
    assert labels is not None and not labels.any()


def test_a_result_is_a_source(tmp_path: Path, sees_red: None) -> None:
    first, second = tmp_path / "first.mcap", tmp_path / "second.mcap"
    assert main(["predict", str(recorded(tmp_path / "drive")), "--out-bag", str(first), "--with-images"]) == 0
    words = ["--topic", "/front/image_raw", "--out-bag", str(second), "--with-images"]
    assert main(["predict", str(first), *words]) == 0
    assert {topic: [stamp for stamp, _ in entries] for topic, entries in read(first).items()} == {
        topic: [stamp for stamp, _ in entries] for topic, entries in read(second).items()
    }


def test_without_a_threshold_what_needs_one_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.mcap"
    source = recorded(tmp_path / "drive", count=1)
    model = tmp_path / "model.safetensors"
    rewrite_info("starter", model, replace(model_info(resolve_model("starter")), threshold=None))
    assert main(["predict", str(source), "--out-bag", str(out), "--model", str(model)]) == 0
    assert "does not contain mask, objects, obstacles, markers, alarm_share, confirmed" in capsys.readouterr().err
    assert set(read(out)) == {f"/front/{name}" for name in ("labels", "score", "overlay/compressed", "peak_energy")}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "No output is named. Pass --out FOLDER, --out-bag FILE.mcap, or both."),
        (["--out-bag", "result.bag"], "result.bag must end in .mcap"),
        (["--out-bag", "file/result.mcap"], "file/result.mcap could not be written: "),
        (["--out-bag", "result.mcap", "--camera-info", "topic"], "no calibration on /front/camera_info"),
    ],
)
def test_options_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    write_bag(Path("drive"), "mcap", drive("mcap"))
    assert main(["predict", "drive", *words]) == 1
    assert sentence in capsys.readouterr().err
    assert not Path("result.mcap").exists() and not list(Path().glob(".*"))


def test_what_ends_the_run_leaves_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "result.mcap"
    with pytest.raises(ZeroDivisionError), BagWriter(path) as bag:
        bag.write("/number", messages.number(7), 5)
        raise ZeroDivisionError
    assert [(log_ns, message.data) for log_ns, message in read(path)["/number"]] == [(5, 7)]


def test_a_recording_that_ends_early_gives_what_came_before(
    tmp_path: Path, sees_red: None, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = recorded(tmp_path / "drive", "sqlite3"), tmp_path / "result.mcap"
    metadata = source / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("message_count: 5", "message_count: 8"))
    assert main(["predict", str(source), "--out-bag", str(out)]) == 1
    assert "declares 8 images on /front/image_raw, but only 5 could be read" in capsys.readouterr().err
    assert len(read(out)["/front/labels"]) == 5


WRITE_FOR_EVER = """
import sys, time
import numpy as np
from pathlib import Path
from pebal_core.errors import PebalError
from pebal_core.footage.bag_writer import BagWriter
from pebal_core.outputs import messages

noise = np.random.default_rng(0).integers(0, 256, (500, 500), np.uint8)
try:
    with BagWriter(Path(sys.argv[1])) as bag:
        for number in range(10**6):
            bag.write("/noise", messages.image(noise, "mono8", messages.header(number, "")), number)
            print(number, flush=True)
            time.sleep(60 if number == int(sys.argv[2]) else 0)
except PebalError as error:
    sys.exit(str(error))
"""


def writing(path: Path, limit: int, rest_after: int) -> Iterator[subprocess.Popen[str]]:
    """A process that writes until something ends it, with a long rest after some messages; no file of its may have
    more than `limit` bytes."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(path), str(rest_after)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_full_disk_leaves_one_sentence_and_the_older_result(tmp_path: Path) -> None:
    (tmp_path / "result.mcap").write_text("an older result")
    for process in writing(tmp_path / "result.mcap", 3_000_000, -1):
        assert "result.mcap could not be written: " in process.communicate(timeout=60)[1]
        assert process.returncode == 1
    (left,) = tmp_path.iterdir()
    assert left.read_text() == "an older result"


def test_ctrl_c_leaves_a_complete_recording(tmp_path: Path) -> None:
    path = tmp_path / "result.mcap"
    for process in writing(path, 1 << 40, 6):
        assert process.stdout is not None
        while process.stdout.readline() != "6\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode != 0
    assert list(tmp_path.iterdir()) == [path] and len(read(path)["/noise"]) == 7
