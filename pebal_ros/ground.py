"""Makes the locator of one camera from its CameraInfo, and from parameters or tf2."""

from __future__ import annotations

from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo

from pebal_core.errors import PebalError
from pebal_core.objects import CameraModel, GroundPlane, Locator, Mounting

try:
    import tf2_ros
except ImportError:  # not part of every installation
    tf2_ros = None


class TransformSource:
    """Looks up the poses of cameras in tf2.

    Raises:
        PebalError: tf2_ros is not installed.
    """

    def __init__(self, node: Node) -> None:
        if tf2_ros is None:
            raise PebalError(
                "mounting is tf, but tf2_ros is not installed. Install it (apt: ros-DISTRO-tf2-ros-py), or set "
                "mounting to parameters."
            )
        self._buffer: Any = tf2_ros.Buffer()
        self._listener: Any = tf2_ros.TransformListener(self._buffer, node)

    def destroy(self) -> None:
        self._listener.unregister()

    def pose(self, ground_frame: str, camera_frame: str) -> tuple[np.ndarray, np.ndarray]:
        """The latest known pose of a camera in the ground frame, as rotation (3×3) and origin (3, in metres).

        Raises:
            PebalError: there is no such transform.
        """
        try:
            transform = self._buffer.lookup_transform(ground_frame, camera_frame, Time()).transform
        except tf2_ros.TransformException as error:
            reason = next(iter(str(error).splitlines()), "no reason given").rstrip(".")
            raise PebalError(
                f"tf2 has no transform from '{camera_frame}' to '{ground_frame}' ({reason}). Publish it, or set "
                "ground_frame."
            ) from error
        q, t = transform.rotation, transform.translation
        return _rotation(q.x, q.y, q.z, q.w), np.array([t.x, t.y, t.z])


class CameraGround:
    """Caches the locator of one camera, which is rebuilt only when its calibration or its mounting changes."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._locator: Locator | None = None

    def locator(self, info: CameraInfo, mounting: Mounting, pose: tuple[np.ndarray, np.ndarray] | None) -> Locator:
        """Return the locator of this camera.

        Args:
            info: calibration of the camera.
            mounting: height and angles of the camera; with `pose`, only their standard deviations are used.
            pose: rotation and origin of the camera in the ground frame; None derives them from `mounting`.

        Raises:
            PebalError: the calibration or the mounting is invalid.
        """
        key = (
            info.width, info.height, info.distortion_model, tuple(info.d), tuple(info.k), mounting,
            *((pose[0].tobytes(), pose[1].tobytes()) if pose is not None else ()),
        )  # fmt: skip
        if self._locator is None or key != self._key:
            camera = CameraModel(
                info.width, info.height, np.array(info.k).reshape(3, 3), np.array(info.d), info.distortion_model
            )
            if pose is None:
                ground = GroundPlane.from_mounting(camera, mounting)
            else:
                ground = GroundPlane(camera, *pose, mounting)
            self._key, self._locator = key, Locator(ground)
        return self._locator


def _rotation(x: float, y: float, z: float, w: float) -> np.ndarray:
    """Convert a unit quaternion to a 3×3 rotation."""
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
