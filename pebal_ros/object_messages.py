"""Messages for those who act on objects: detections, points on the ground, and markers for people who look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from pebal_core.errors import PebalError
from pebal_core.objects import Locator, RoadObject

try:
    from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose
except ImportError:  # not part of every installation
    Detection2DArray = None

DETECTIONS: type[Any] | None = Detection2DArray
"""Type of `objects`; None: vision_msgs is not installed."""
POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("score", "<f4"), ("id", "<u4")])
"""One point of `obstacles`: five values of four bytes."""
FIELD_TYPES = {"<f4": PointField.FLOAT32, "<u4": PointField.UINT32}
MARKER_NAMESPACE = "anomalies"
MARKER_COLOR = ColorRGBA(r=1.0, g=0.35, b=0.0, a=0.95)
MARKER_LIFETIME = Duration(sec=1)
"""After which a viewer drops a marker of a node that went away."""
TEXT_HEIGHT = 0.4
"""Metres."""


class ClassMap:
    """Names by which an integrator's software knows objects.

    A YAML file maps what the network takes an object for to the name that is published; ``default`` names the rest.

        default: HAZARD
        person: PEDESTRIAN
    """

    def __init__(self, names: dict[str, str], default: str) -> None:
        self._names, self._default = names, default

    @classmethod
    def read(cls, path: str, class_names: Sequence[str]) -> ClassMap:
        """Read a mapping file; no path: every object is an ``anomaly``.

        Raises:
            PebalError: the file cannot be read, is no mapping of names, or names a class that the model does not have.
        """
        if not path:
            return cls({}, "anomaly")
        try:
            content = yaml.safe_load(Path(path).expanduser().read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = next(iter(str(error).splitlines()), "no reason given")
            raise PebalError(f"The class mapping {path} cannot be read: {reason}") from error
        if not isinstance(content, dict) or not all(isinstance(x, str) for item in content.items() for x in item):
            raise PebalError(f"The class mapping {path} must map names to names, one on each line.")
        default = content.pop("default", "anomaly")
        for name in content:
            if name not in class_names:
                raise PebalError(
                    f"The class mapping {path} names '{name}', but the model's classes are: {', '.join(class_names)}."
                )
        return cls(content, default)

    def __call__(self, class_name: str) -> str:
        return self._names.get(class_name, self._default)


@dataclass(frozen=True)
class Sighting:
    """The objects of one frame, and what is needed to tell others of them."""

    objects: Sequence[RoadObject]
    scores: Sequence[float]
    """0 to 1 for each object: its mean energy between the limits of `score`."""
    names: Sequence[str]
    """Published class of each object."""
    locator: Locator | None
    """None: the geometry is not known."""
    ground_frame: str

    @property
    def confirmed(self) -> list[tuple[RoadObject, float]]:
        """Confirmed objects with their scores."""
        return [(found, score) for found, score in zip(self.objects, self.scores) if found.confirmed]


def detections(sighting: Sighting, header: Header) -> Any:
    """vision_msgs/Detection2DArray of the confirmed objects.

    The pose of each, where it is known, is the contact point in the frame of the header with its covariance.
    """
    array = Detection2DArray(header=header)
    for found, score, name in zip(sighting.objects, sighting.scores, sighting.names):
        if not found.confirmed:
            continue
        x, y, width, height = found.box
        hypothesis = ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id, hypothesis.hypothesis.score = name, score
        if sighting.locator is not None and found.position is not None:
            position, covariance = in_camera(found, sighting.locator)
            pose = hypothesis.pose
            pose.pose.position = Point(x=position[0], y=position[1], z=position[2])
            full = np.zeros((6, 6))
            full[:3, :3] = covariance
            pose.covariance = full.ravel().tolist()
        detection = Detection2D(header=header, id=str(found.id), results=[hypothesis])
        detection.bbox.center.position.x, detection.bbox.center.position.y = x + width / 2, y + height / 2
        detection.bbox.size_x, detection.bbox.size_y = float(width), float(height)
        array.detections.append(detection)
    return array


def in_camera(found: RoadObject, locator: Locator) -> tuple[list[float], np.ndarray]:
    """Contact point of a located object in the camera's optical frame, in metres, and its 3×3 covariance."""
    assert found.position is not None and found.covariance is not None
    rotation, origin = locator.ground.rotation, locator.ground.origin
    on_ground = np.zeros((3, 3))
    on_ground[:2, :2] = found.covariance
    position = rotation.T @ (np.array([*found.position, 0.0]) - origin)
    if not np.isfinite(found.covariance).all():
        return position.tolist(), np.diag([np.inf] * 3)
    return position.tolist(), rotation.T @ on_ground @ rotation


def obstacles(sighting: Sighting, header: Header) -> PointCloud2:
    """Points on the ground along the foot of every confirmed object, in the ground frame.

    The message is a row of points with the fields x, y, z (metres), score (0 to 1) and id.
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
    cloud = PointCloud2(
        header=Header(stamp=header.stamp, frame_id=sighting.ground_frame),
        height=1,
        width=len(points),
        fields=[
            PointField(name=name, offset=4 * index, datatype=FIELD_TYPES[POINT[name].str], count=1)
            for index, name in enumerate(POINT.names or ())
        ],
        point_step=POINT.itemsize,
        row_step=POINT.itemsize * len(points),
        is_dense=True,
    )
    cloud.data.frombytes(points.tobytes())
    return cloud


def markers(sighting: Sighting, header: Header) -> MarkerArray:
    """The foot of every confirmed object as a line, and its number and distance as text, in the ground frame."""
    on_ground = Header(stamp=header.stamp, frame_id=sighting.ground_frame)
    array = MarkerArray(markers=[Marker(header=on_ground, ns=MARKER_NAMESPACE, action=Marker.DELETEALL)])
    for found, _ in sighting.confirmed:
        if sighting.locator is None or found.position is None:
            continue
        line = _marker(on_ground, 2 * found.id, Marker.LINE_STRIP)
        line.scale.x = 0.1
        line.points = [Point(x=float(x), y=float(y), z=0.05) for x, y in sighting.locator.foot(found)]
        if len(line.points) > 1:
            array.markers.append(line)
        text = _marker(on_ground, 2 * found.id + 1, Marker.TEXT_VIEW_FACING)
        text.pose.position = Point(x=found.position[0], y=found.position[1], z=2 * TEXT_HEIGHT)
        text.scale.z = TEXT_HEIGHT
        text.text = found.caption
        array.markers.append(text)
    return array


def _marker(header: Header, number: int, kind: int) -> Marker:
    marker = Marker(header=header, ns=MARKER_NAMESPACE, id=number, type=kind, action=Marker.ADD)
    marker.color, marker.lifetime = MARKER_COLOR, MARKER_LIFETIME
    marker.pose.orientation.w = 1.0
    return marker
