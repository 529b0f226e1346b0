"""A road with a red box on it, and a node whose network takes red for an anomaly, so that the truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo, PointCloud2
from visualization_msgs.msg import MarkerArray

from .harness import Rig, Stamp

HEIGHT, WIDTH = 240, 320

FOCAL = 300.0

CAMERA_HEIGHT, PITCH = 1.5, 5.0

PARAMETERS = {
    "threshold": -4.0, "score_min": -10.0, "score_max": -1.0, "mounting": "parameters",
    "camera_height": CAMERA_HEIGHT, "camera_pitch": PITCH,
}  # fmt: skip

SEES_RED = """
import numpy as np
from pebal_core.detector import AnomalyDetector, Result

def call(self, images):
    single = isinstance(images, np.ndarray)
    results = []
    for image in [images] if single else images:
        labels = np.full(image.shape[:2], 2, np.uint8)
        labels[image.shape[0] // 2 :] = 0
        red = (image[..., 0] > 200) & (image[..., 1] < 80)
        results.append(Result(labels, np.where(red, -2, -10).astype(np.float32)))
    return results[0] if single else results

AnomalyDetector.__call__ = call
from pebal_ros.anomaly_node import main
main()
"""


def scene(distance: float | None) -> np.ndarray:
    """A grey road with a red box of 1 m at a distance straight ahead; None: an empty road."""
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    if distance is not None:
        bottom = round(foot_row(distance))
        half = round(FOCAL / distance / 2)
        image[bottom - half : bottom + 1, WIDTH // 2 - half : WIDTH // 2 + half + 1] = (255, 0, 0)
    return image


def foot_row(distance: float) -> float:
    """Image row of a point of the ground straight ahead."""
    return HEIGHT / 2 + FOCAL * np.tan(np.arctan2(CAMERA_HEIGHT, distance) - np.radians(PITCH))


def calibration(height: int = HEIGHT, width: int = WIDTH, focal: float = FOCAL) -> CameraInfo:
    info = CameraInfo(height=height, width=width, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [focal, 0.0, WIDTH / 2, 0.0, focal, HEIGHT / 2, 0.0, 0.0, 1.0]
    return info


class Scene:
    """A camera with its calibration, and listeners to what the node makes of it."""

    def __init__(self, rig: Rig) -> None:
        self.client, self.camera = rig.client, rig.client.camera()
        self._infos = rig.client.camera("camera_info", "best_effort", CameraInfo)
        self.camera.wait_for_subscriber()
        self._infos.wait_for_subscriber()
        self.obstacles = rig.client.listen("obstacles", PointCloud2)
        self.markers = rig.client.listen("markers", MarkerArray)

    def show(self, distance: float | None, info: CameraInfo | None = None) -> Stamp:
        """Publish a frame with its calibration, wait for the answer, and return its stamp."""
        stamped = calibration() if info is None else info
        stamped.header = self.client.header()
        self._infos.send_message(stamped)
        stamp = self.camera.send(scene(distance))
        self.obstacles.wait_for(stamp)
        return stamp

    def close(self) -> None:
        for part in (self.camera, self._infos, self.obstacles, self.markers):
            part.close()


def points(cloud: PointCloud2) -> np.ndarray:
    """The points of a cloud as any consumer reads them: by its own fields."""
    types = {7: "<f4", 6: "<u4"}
    layout: Any = {
        "names": [field.name for field in cloud.fields],
        "formats": [types[field.datatype] for field in cloud.fields],
        "offsets": [field.offset for field in cloud.fields],
        "itemsize": cloud.point_step,
    }
    assert cloud.row_step == cloud.point_step * cloud.width == len(cloud.data) and cloud.height == 1
    return np.frombuffer(cloud.data, np.dtype(layout))
