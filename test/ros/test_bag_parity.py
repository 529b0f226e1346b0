"""A recording by `pebal predict --out-bag` against the real node that is sent the same frames over the middleware."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from ..core.bags import PERIOD, START, Messages, write_bag
from .harness import REPOSITORY, picture, stamp_of, start_rig, wait_until
from .red_boxes import CAMERA_HEIGHT, FOCAL, HEIGHT, PITCH, WIDTH, calibration

TOPICS: dict[str, Any] = {
    "labels": Image, "energy": Image, "score": Image, "mask": Image, "overlay": Image, "label_colors": Image,
    "labels/compressed": CompressedImage, "score/compressed": CompressedImage, "mask/compressed": CompressedImage,
    "overlay/compressed": CompressedImage, "label_colors/compressed": CompressedImage,
    "obstacles": PointCloud2, "markers": MarkerArray,
}  # fmt: skip
FRAMES = 5


def test_the_recording_says_what_the_node_says(tmp_path: Path, tiny_model: Path) -> None:
    images = [picture(HEIGHT, WIDTH, number) for number in range(FRAMES)]
    made, stamps = Messages(False), [START + number * PERIOD for number in range(FRAMES)]
    entries = [("/front/image", stamp + 1, made.image(image, "rgb8", stamp)) for image, stamp in zip(images, stamps)]
    info = ("/front/camera_info", START, made.camera_info(HEIGHT, WIDTH, START, FOCAL))
    bag = write_bag(tmp_path / "drive", "mcap", [info, *entries])
    out, threshold = tmp_path / "result.mcap", -3.0  # of random weights, that of some regions is higher
    words = ["predict", bag, "--model", tiny_model, "--out-bag", out, "--outputs", *TOPICS, "--threshold", threshold]
    words += ["--camera-info", "topic", "--camera-height", CAMERA_HEIGHT, "--camera-pitch", PITCH]
    # As the node runs in the tests: with another number of threads, a network may round differently.
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    subprocess.run([sys.executable, "-m", "pebal_core", *map(str, words)], cwd=REPOSITORY, env=environment, check=True)

    parameters = {
        "model": tiny_model, "threshold": threshold, "mounting": "parameters",
        "camera_height": CAMERA_HEIGHT, "camera_pitch": PITCH,
    }  # fmt: skip
    with start_rig("/front", tmp_path / "log", parameters) as rig:
        camera, infos = rig.client.camera(), rig.client.camera("camera_info", "best_effort", CameraInfo)
        camera.wait_for_subscriber()
        infos.wait_for_subscriber()
        inboxes = {topic: rig.client.listen(topic, kind) for topic, kind in TOPICS.items()}
        for image, stamp_ns in zip(images, stamps):
            header = rig.client.header("front")
            header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
            calibrated = calibration()
            calibrated.header = header
            infos.send_message(calibrated)
            sent = camera.send(image, header=header)
            inboxes["labels"].wait_for(sent)  # so that none replaces another
        wait_until(lambda: all(len(inbox.messages) == FRAMES for inbox in inboxes.values()))

    with Reader(out) as reader:
        recorded: dict[str, list[bytes]] = {}
        for connection, _, data in reader.messages():
            recorded.setdefault(connection.topic.removeprefix("/front/"), []).append(bytes(data))
    for topic, kind in TOPICS.items():
        ours = [deserialize_message(data, kind) for data in recorded[topic]]
        assert ours == inboxes[topic].messages, f"{topic} differs"
        if kind is not MarkerArray:
            assert [stamp_of(message) for message in ours] == [divmod(stamp, 1_000_000_000) for stamp in stamps]
    assert len(inboxes["markers"].messages[-1].markers) > 1, "there was an object to compare"
