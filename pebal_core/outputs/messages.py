"""Makes the published ROS messages as plain values, without rclpy or rosbags.

`pebal_ros.messages` converts them to rclpy's classes, and `pebal_core.footage.bag_writer` to the bytes of a recording,
so both have the same content.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..objects import Locator, RoadObject
from .sighting import Sighting

IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
DETECTIONS, CLOUD, MARKERS = (
    "vision_msgs/msg/Detection2DArray", "sensor_msgs/msg/PointCloud2", "visualization_msgs/msg/MarkerArray",
)  # fmt: skip
JPEG_QUALITY = 90
PNG_LEVEL = 1  # zlib's fastest level, which shrinks label maps enough without delaying the camera
POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("score", "<f4"), ("id", "<u4")])
"""One point of `obstacles`, which has five values of four bytes."""
FIELD_TYPES = {"<f4": 7, "<u4": 6}
"""FLOAT32 and UINT32 of sensor_msgs/PointField."""
ADD, DELETEALL, LINE_STRIP, TEXT_VIEW_FACING = 0, 3, 4, 9
"""Constants of visualization_msgs/Marker."""
MARKER_NAMESPACE = "anomalies"
TEXT_HEIGHT = 0.4
"""Height of the text in metres."""


@dataclass(frozen=True)
class Message:
    """A ROS message, given by its type and the fields that differ from the type's defaults.

    Values are numbers, strings, other messages, lists of these, or a memoryview of bytes for an array.
    """

    type: str
    fields: Mapping[str, Any]


def message(type_name: str, **fields: Any) -> Message:
    """Make a message from its type and its fields.

    Examples:
        >>> message("std_msgs/msg/Float32", data=0.5)
        Message(type='std_msgs/msg/Float32', fields={'data': 0.5})
    """
    return Message(type_name, fields)


def header(stamp_ns: int, frame_id: str) -> Message:
    """Make a std_msgs/Header from a stamp in nanoseconds.

    Examples:
        >>> header(1_500_000_000, "camera").fields["stamp"].fields
        {'sec': 1, 'nanosec': 500000000}
    """
    sec, nanosec = divmod(stamp_ns, 1_000_000_000)
    stamp = message("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
    return message("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def image(pixels: np.ndarray, encoding: str, header: Message) -> Message:
    """Make a sensor_msgs/Image from an array.

    Args:
        pixels: H×W or H×W×C.
        encoding: encoding that matches the dtype and channels of `pixels`.
        header: header of the camera image.

    Examples:
        >>> made = image(np.zeros((2, 3, 3), np.uint8), "rgb8", header(0, "camera"))
        >>> made.fields["height"], made.fields["width"], made.fields["step"], len(made.fields["data"])
        (2, 3, 9, 18)
    """
    height, width = pixels.shape[:2]
    return message(
        IMAGE,
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(sys.byteorder == "big"),
        step=pixels.nbytes // height,
        data=np.ascontiguousarray(pixels).data.cast("B"),
    )


def compressed(pixels: np.ndarray, codec: str, header: Message) -> Message:
    """Make a sensor_msgs/CompressedImage from mono8 (H×W) or rgb8 (H×W×3) pixels.

    Args:
        pixels: H×W or H×W×3 RGB, uint8.
        codec: "png" (lossless) or "jpeg".
        header: header of the camera image.

    Examples:
        >>> made = compressed(np.zeros((2, 3), np.uint8), "png", header(0, "camera"))
        >>> made.fields["format"], bytes(made.fields["data"][1:4])
        ('mono8; png compressed ', b'PNG')
    """
    color = pixels.ndim == 3
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if codec == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL]
    stored = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if color else pixels
    _, data = cv2.imencode(f".{codec}", stored, options)
    # This is the format string of compressed_image_transport, which its subscribers parse.
    name = f"rgb8; {codec} compressed bgr8" if color else f"mono8; {codec} compressed "
    return message(COMPRESSED_IMAGE, header=header, format=name, data=data.data.cast("B"))


def copy_of_image(original: Any, header: Message) -> Message:
    """Copy a raw or compressed image message of a recording, with another header.

    Examples:
        >>> from types import SimpleNamespace
        >>> original = compressed(np.zeros((2, 3), np.uint8), "png", header(0, "camera"))
        >>> recorded = SimpleNamespace(**original.fields)
        >>> copy_of_image(recorded, header(0, "front")).fields["header"].fields["frame_id"]
        'front'
    """
    fields = {"header": header, "data": memoryview(original.data).cast("B")}
    if hasattr(original, "encoding"):
        names = ("height", "width", "encoding", "is_bigendian", "step")
        return Message(IMAGE, {**fields, **{name: getattr(original, name) for name in names}})
    return message(COMPRESSED_IMAGE, **fields, format=original.format)


def number(value: float) -> Message:
    """Make a std_msgs/Float32, which has no header; its time is the recording time.

    Examples:
        >>> number(0.1).fields  # the nearest number in single precision
        {'data': 0.10000000149011612}
    """
    return message("std_msgs/msg/Float32", data=float(np.float32(value)))


def detections(sighting: Sighting, header: Message) -> Message:
    """Make a vision_msgs/Detection2DArray of the confirmed objects.

    The pose of an object, if it is known, is its contact point in the frame of the header, with the covariance.

    Examples:
        >>> foot = np.array([[20, 44], [39, 44]])
        >>> found = RoadObject((20, 30, 20, 15), 300, -2.0, -1.0, 0, (30, 44), foot, foot, np.ones((15, 20)), 1, True)
        >>> sighting = Sighting([found], [0.9], ["anomaly"], None, "base_footprint")
        >>> [one] = detections(sighting, header(0, "camera")).fields["detections"]
        >>> one.fields["id"], one.fields["bbox"].fields["size_x"]
        ('1', 20.0)
    """
    found_ones = []
    for found, score, name in zip(sighting.objects, sighting.scores, sighting.names):
        if not found.confirmed:
            continue
        x, y, width, height = found.box
        result = {"hypothesis": message("vision_msgs/msg/ObjectHypothesis", class_id=name, score=float(score))}
        if sighting.locator is not None and found.position is not None:
            position, covariance = _in_camera(found, sighting.locator)
            full = np.zeros((6, 6))
            full[:3, :3] = covariance
            pose = message("geometry_msgs/msg/Pose", position=_point(*position))
            result["pose"] = message(
                "geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=full.ravel().tolist()
            )
        centre = message("vision_msgs/msg/Point2D", x=x + width / 2, y=y + height / 2)
        box = message(
            "vision_msgs/msg/BoundingBox2D",
            center=message("vision_msgs/msg/Pose2D", position=centre),
            size_x=float(width),
            size_y=float(height),
        )
        hypothesis = Message("vision_msgs/msg/ObjectHypothesisWithPose", result)
        found_ones.append(
            message("vision_msgs/msg/Detection2D", header=header, id=str(found.id), results=[hypothesis], bbox=box)
        )
    return message(DETECTIONS, header=header, detections=found_ones)


def _in_camera(found: RoadObject, locator: Locator) -> tuple[list[float], np.ndarray]:
    """Contact point of a located object in the camera's optical frame in metres, and its 3×3 covariance."""
    assert found.position is not None and found.covariance is not None
    rotation, origin = locator.ground.rotation, locator.ground.origin
    on_ground = np.zeros((3, 3))
    on_ground[:2, :2] = found.covariance
    position = rotation.T @ (np.array([*found.position, 0.0]) - origin)
    if not np.isfinite(found.covariance).all():
        return position.tolist(), np.diag([np.inf] * 3)
    return position.tolist(), rotation.T @ on_ground @ rotation


def obstacles(sighting: Sighting, header: Message) -> Message:
    """Make a sensor_msgs/PointCloud2 of points along the foot of every confirmed object, in the ground frame.

    The cloud is one row of points with the fields x, y, z (in metres), score (0 to 1) and id.

    Examples:
        >>> from pebal_core.objects import CameraModel, GroundPlane, Mounting
        >>> camera = CameraModel(80, 60, np.array([[80, 0, 40], [0, 80, 20], [0, 0, 1.0]]), np.zeros(5))
        >>> locator = Locator(GroundPlane.from_mounting(camera, Mounting(height=1.5)))
        >>> foot = np.array([[20, 44], [39, 44]])
        >>> found = RoadObject((20, 30, 20, 15), 300, -2.0, -1.0, 0, (30, 44), foot, foot, np.ones((15, 20)), 1, True)
        >>> cloud = obstacles(Sighting([found], [0.9], ["anomaly"], locator, "base_footprint"), header(0, "camera"))
        >>> points = np.frombuffer(cloud.fields["data"], POINT)
        >>> points["x"].round(2).tolist(), points["id"].tolist()
        ([5.0, 5.0], [1, 1])
    """
    parts = []
    for found, score in sighting.confirmed:
        if sighting.locator is None:
            break
        places = sighting.locator.foot(found)
        points = np.zeros(len(places), POINT)
        points["x"], points["y"] = places.T
        points["score"], points["id"] = score, found.id
        parts.append(points)
    points = np.concatenate(parts) if parts else np.zeros(0, POINT)
    return message(
        CLOUD,
        header=_on_ground(sighting, header),
        height=1,
        width=len(points),
        fields=[
            message(
                "sensor_msgs/msg/PointField",
                name=name,
                offset=4 * index,
                datatype=FIELD_TYPES[POINT[name].str],
                count=1,
            )
            for index, name in enumerate(POINT.names or ())
        ],
        point_step=POINT.itemsize,
        row_step=POINT.itemsize * len(points),
        is_dense=True,
        data=memoryview(points.tobytes()),
    )


def markers(sighting: Sighting, header: Message) -> Message:
    """Make a visualization_msgs/MarkerArray of all confirmed objects, in the ground frame.

    Each object gets a line along its foot and a text with its number and distance.

    Examples:
        >>> from pebal_core.objects import CameraModel, GroundPlane, Mounting
        >>> camera = CameraModel(80, 60, np.array([[80, 0, 40], [0, 80, 20], [0, 0, 1.0]]), np.zeros(5))
        >>> locator = Locator(GroundPlane.from_mounting(camera, Mounting(height=1.5)))
        >>> foot = np.array([[20, 44], [39, 44]])
        >>> found = RoadObject((20, 30, 20, 15), 300, -2.0, -1.0, 0, (30, 44), foot, foot, np.ones((15, 20)), 1, True)
        >>> sighting = Sighting(locator.locate([found]), [0.9], ["anomaly"], locator, "base_footprint")
        >>> _, line, text = markers(sighting, header(0, "camera")).fields["markers"]
        >>> len(line.fields["points"]), text.fields["text"]
        (2, '1: 5.0 m')
    """
    header = _on_ground(sighting, header)
    array = [message("visualization_msgs/msg/Marker", header=header, ns=MARKER_NAMESPACE, action=DELETEALL)]
    for found, _ in sighting.confirmed:
        if sighting.locator is None or found.position is None:
            continue
        line = [_point(float(x), float(y), 0.05) for x, y in sighting.locator.foot(found)]
        if len(line) > 1:
            array.append(_marker(header, 2 * found.id, LINE_STRIP, _vector(x=0.1), points=line))
        position = _point(found.position[0], found.position[1], 2 * TEXT_HEIGHT)
        array.append(
            _marker(
                header,
                2 * found.id + 1,
                TEXT_VIEW_FACING,
                _vector(z=TEXT_HEIGHT),
                {"position": position},
                text=found.caption,
            )
        )
    return message(MARKERS, markers=array)


def _marker(
    header: Message, number: int, kind: int, scale: Message, place: dict[str, Message] | None = None, **fields: Any
) -> Message:
    return message(
        "visualization_msgs/msg/Marker",
        header=header,
        ns=MARKER_NAMESPACE,
        id=number,
        type=kind,
        action=ADD,
        pose=message(
            "geometry_msgs/msg/Pose", **(place or {}), orientation=message("geometry_msgs/msg/Quaternion", w=1.0)
        ),
        scale=scale,
        color=message("std_msgs/msg/ColorRGBA", r=1.0, g=0.35, b=0.0, a=0.95),
        # Viewers drop the markers of a terminated node after a second.
        lifetime=message("builtin_interfaces/msg/Duration", sec=1),
        **fields,
    )


def _on_ground(sighting: Sighting, header: Message) -> Message:
    return message("std_msgs/msg/Header", stamp=header.fields["stamp"], frame_id=sighting.ground_frame)


def _point(x: float, y: float, z: float) -> Message:
    return message("geometry_msgs/msg/Point", x=float(x), y=float(y), z=float(z))


def _vector(**components: float) -> Message:
    return message("geometry_msgs/msg/Vector3", **components)
