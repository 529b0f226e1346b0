"""Recordings for the tests, written by rosbags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags", reason="recordings need the package rosbags")

from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

KINDS = ("mcap", "mcap-chunk-zstd", "mcap-message-zstd", "sqlite3", "sqlite3-message-zstd", "sqlite3-file-zstd", "ros1")
START = 1_700_000_000_000_000_000
PERIOD = 50_000_000
"""Nanoseconds between two frames."""

Entry = tuple[str, int, Any]
"""Topic, time of recording, message."""


class Messages:
    """Makes messages of one ROS."""

    def __init__(self, ros1: bool) -> None:
        self.ros1 = ros1
        self.store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_JAZZY)

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        stamp = self.store.types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 1_000_000_000))
        sequence = {"seq": 0} if self.ros1 else {}
        return self.store.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id, **sequence)

    def image(self, pixels: np.ndarray, encoding: str, stamp_ns: int, frame_id: str = "front") -> Any:
        return self.store.types["sensor_msgs/msg/Image"](
            header=self.header(stamp_ns, frame_id),
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=pixels[0].nbytes,
            data=np.ascontiguousarray(pixels).view(np.uint8).ravel(),
        )

    def compressed(self, pixels: np.ndarray, codec: str, stamp_ns: int, frame_id: str = "front") -> Any:
        data = cv2.imencode(f".{codec}", pixels[..., ::-1])[1].ravel()
        return self.store.types["sensor_msgs/msg/CompressedImage"](self.header(stamp_ns, frame_id), codec, data)

    def camera_info(self, height: int, width: int, stamp_ns: int, focal: float = 150.0) -> Any:
        zeros = {"r": np.eye(3).ravel(), "p": np.zeros(12), "d": np.zeros(5)}
        zeros["k"] = np.array([focal, 0, width / 2, 0, focal, height / 2, 0, 0, 1])
        region = self.store.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        return self.store.types["sensor_msgs/msg/CameraInfo"](
            header=self.header(stamp_ns, "front"), height=height, width=width, distortion_model="plumb_bob",
            binning_x=0, binning_y=0, roi=region,
            **{name.upper() if self.ros1 else name: values for name, values in zeros.items()},
        )  # fmt: skip

    def text(self, data: str) -> Any:
        return self.store.types["std_msgs/msg/String"](data)


def write_bag(path: Path, kind: str, entries: Iterable[Entry], topics: Sequence[tuple[str, str]] = ()) -> Path:
    """A recording of these messages; returns what a user would name: the folder, or the file of ROS 1.

    Args:
        topics: further topics and their types, without messages.
    """
    ros1 = kind == "ros1"
    messages = Messages(ros1)
    if ros1:
        path = path.with_suffix(".bag")
        writer: Any = Writer1(path)
    else:
        storage, _, compression = kind.partition("-")
        writer = Writer2(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
        modes = {"chunk": CompressionMode.STORAGE, "message": CompressionMode.MESSAGE, "file": CompressionMode.FILE}
        if compression:
            writer.set_compression(modes[compression.partition("-")[0]], CompressionFormat.ZSTD)
    serialize = messages.store.serialize_ros1 if ros1 else messages.store.serialize_cdr
    with writer:
        connections: dict[tuple[str, str], Any] = {}

        def connection(topic: str, kind: str) -> Any:
            if (topic, kind) not in connections:
                connections[topic, kind] = writer.add_connection(topic, kind, typestore=messages.store)
            return connections[topic, kind]

        for topic, kind_ in topics:
            connection(topic, kind_)
        for topic, log_ns, message in entries:
            data = message if isinstance(message, bytes) else serialize(message, message.__msgtype__)
            kind_ = "sensor_msgs/msg/Image" if isinstance(message, bytes) else message.__msgtype__
            writer.write(connection(topic, kind_), log_ns, data)
    return path


def picture(number: int, height: int = 32, width: int = 48) -> np.ndarray:
    """H×W×3 RGB that tells its number: red is ten times it (mod 256), green and blue are ramps."""
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = 10 * number % 256
    image[..., 1] = np.arange(width)
    image[..., 2] = np.arange(height)[:, None]
    return image


def drive(kind: str, count: int = 5, topic: str = "/front/image_raw", encoding: str = "bgr8") -> list[Entry]:
    """Images in even time, each recorded 3 ms after its stamp."""
    messages = Messages(kind == "ros1")
    return [
        (
            topic,
            START + number * PERIOD + 3_000_000,
            messages.image(picture(number)[..., ::-1], encoding, START + number * PERIOD),
        )
        for number in range(count)
    ]
