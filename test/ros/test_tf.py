"""Where the camera is mounted, by tf2: what is said without a transform, and a transform that comes late."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped

from .harness import start_rig, values
from .red_boxes import CAMERA_HEIGHT, PARAMETERS, PITCH, SEES_RED, Scene, points

tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros is not installed")

AHEAD, LEFT = 1.2, 0.3
"""Metres from the origin of the ground frame to the camera."""


def mounting(camera_frame: str) -> TransformStamped:
    """From the ground frame to a camera's optical frame (z forward, x right) that looks down by `PITCH`."""
    pitch = np.radians(PITCH)
    right, forward = np.array([0, -1.0, 0]), np.array([np.cos(pitch), 0, -np.sin(pitch)])
    axes = np.stack([right, np.cross(forward, right), forward], axis=1)
    w = np.sqrt(1 + np.trace(axes)) / 2
    transform = TransformStamped()
    transform.header.frame_id, transform.child_frame_id = "base_footprint", camera_frame
    origin, rotation = transform.transform.translation, transform.transform.rotation
    origin.x, origin.y, origin.z = AHEAD, LEFT, CAMERA_HEIGHT
    rotation.w = float(w)
    rotation.x = float((axes[2, 1] - axes[1, 2]) / (4 * w))
    rotation.y = float((axes[0, 2] - axes[2, 0]) / (4 * w))
    rotation.z = float((axes[1, 0] - axes[0, 1]) / (4 * w))
    return transform


def test_a_transform_that_comes_late_puts_the_objects_on_the_ground(tmp_path: Path, tiny_model: Path) -> None:
    given = {name: value for name, value in PARAMETERS.items() if not name.startswith("camera_")}
    parameters = {**given, "model": tiny_model, "mounting": "tf"}
    with start_rig("/tf", tmp_path / "log", parameters, script=SEES_RED) as rig:
        scene = Scene(rig)
        for _ in range(4):
            stamp = scene.show(10.8)
        assert scene.obstacles.wait_for(stamp).width == 0
        status = rig.client.status("/tf/image", lambda s: values(s).get("finding") == "no geometry")
        frame = rig.client.header().frame_id
        assert f"no transform from '{frame}' to 'base_footprint'" in status.message
        caster, transform = tf2_ros.StaticTransformBroadcaster(rig.client.node), mounting(frame)
        transform.header.stamp = rig.client.header().stamp
        caster.sendTransform(transform)
        for _ in range(40):
            cloud = scene.obstacles.wait_for(scene.show(10.8))
            if cloud.width:
                break
        found = points(cloud)
        assert cloud.header.frame_id == "base_footprint" and np.allclose(found["x"], 10.8 + AHEAD, rtol=0.02)
        assert (found["y"].max() + found["y"].min()) / 2 == pytest.approx(LEFT, abs=0.05)
        assert np.abs(found["z"]).max() < 1e-6
        rig.client.status("/tf/image", lambda s: values(s).get("finding") != "no geometry")
        scene.close()
