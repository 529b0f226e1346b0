"""Objects over the middleware: points on the ground, markers, and what is said where the geometry is not known.

The node runs a network that takes red for an anomaly, so that the truth is known; everything behind it is real.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, Image
from visualization_msgs.msg import Marker

from pebal_core.errors import PebalError
from pebal_core.outputs import ClassMap
from pebal_core.outputs.messages import DETECTIONS
from pebal_ros.messages import message_class

from .harness import Rig, set_parameter, start_rig, values
from .red_boxes import CAMERA_HEIGHT, HEIGHT, PARAMETERS, PITCH, SEES_RED, WIDTH, Scene, calibration, points


@pytest.fixture(scope="module")
def red(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    log = tmp_path_factory.mktemp("red") / "log"
    with start_rig("/red", log, {"model": tiny_model, **PARAMETERS}, script=SEES_RED) as rig:
        yield rig


@pytest.fixture
def shown(red: Rig) -> Iterator[Scene]:
    scene = Scene(red)
    yield scene
    scene.close()


def test_obstacles_and_markers_stand_where_the_object_stands(shown: Scene) -> None:
    stamps = [shown.show(distance) for distance in (12.0, 11.6, 11.2, 10.8)]
    first, last = (shown.obstacles.wait_for(stamps[index]) for index in (0, -1))
    assert first.width == 0, "an object that was seen once is not confirmed"
    deadline = time.monotonic() + 10
    while last.width == 0 and time.monotonic() < deadline:  # the first calibrations may be lost to discovery
        stamps.append(shown.show(10.8))
        last = shown.obstacles.wait_for(stamps[-1])
    assert last.header.frame_id == "base_footprint"
    cloud = points(last)
    assert set(cloud.dtype.names or ()) == {"x", "y", "z", "score", "id"}
    assert np.allclose(cloud["x"], 10.8, rtol=0.02) and np.abs(cloud["y"]).max() == pytest.approx(0.5, abs=0.05)
    assert (cloud["z"] == 0).all() and len(set(cloud["id"])) == 1
    assert np.allclose(cloud["score"], (10 - 2) / 9, atol=1e-3)
    array = shown.markers.wait_for(stamps[-1])
    (text,) = [m for m in array.markers if m.type == Marker.TEXT_VIEW_FACING]
    assert text.text == f"{cloud['id'][0]}: {text.pose.position.x:.1f} m"
    assert text.pose.position.x == pytest.approx(10.8, rel=0.02) and text.header.frame_id == "base_footprint"


def test_an_empty_road_gives_an_empty_cloud_and_clears_the_markers(shown: Scene) -> None:
    for _ in range(3):
        stamp = shown.show(None)
    assert shown.obstacles.wait_for(stamp).width == 0
    assert [marker.action for marker in shown.markers.wait_for(stamp).markers] == [Marker.DELETEALL]


def test_overlay_draws_the_outline_of_an_object(shown: Scene) -> None:
    overlay = shown.client.listen("overlay", Image)
    for _ in range(4):
        stamp = shown.show(10.0)
    message = overlay.wait_for(stamp)
    overlay.close()
    picture = np.frombuffer(message.data, np.uint8).reshape(HEIGHT, WIDTH, 3)
    assert (picture == (0, 255, 255)).all(axis=-1).sum() > 50


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        (calibration(height=480, width=640), "No camera_info with the size of the images"),
        (calibration(focal=0.0), "focal lengths 0 and 0; they must be positive"),
    ],
)
def test_a_calibration_that_cannot_be_used_is_said(shown: Scene, info: CameraInfo, sentence: str) -> None:
    for _ in range(17):  # as many as the node keeps
        stamp = shown.show(10.0, info)
    assert shown.obstacles.wait_for(stamp).width == 0
    status = shown.client.status("/red/image", lambda s: values(s).get("finding") == "no geometry")
    assert sentence in status.message
    for _ in range(3):
        shown.show(10.0)


def test_the_mounting_changes_while_the_node_runs(shown: Scene) -> None:
    for _ in range(4):
        stamp = shown.show(10.0)
    assert np.allclose(points(shown.obstacles.wait_for(stamp))["x"], 10, rtol=0.02)
    assert set_parameter(shown.client, "camera_height", 3.0)[0]
    stamp = shown.show(10.0)
    assert np.allclose(points(shown.obstacles.wait_for(stamp))["x"], 20, rtol=0.02), "twice as high, twice as far"
    assert set_parameter(shown.client, "camera_height", CAMERA_HEIGHT)[0]
    assert set_parameter(shown.client, "camera_pitch", -60.0)[0]
    shown.show(10.0)
    shown.client.status("/red/image", lambda s: "horizon lies below the image" in s.message)
    assert set_parameter(shown.client, "camera_pitch", PITCH)[0]


def test_thresholds_that_do_not_fit_are_refused(red: Rig) -> None:
    done, reason = set_parameter(red.client, "grow_threshold", -3.0)
    assert not done and "lies above the threshold (-4 nats)" in reason


def test_an_ignore_mask_hides_and_must_fit(tiny_model: Path, tmp_path: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[HEIGHT // 2 :] = 255
    for name, content in (("fits.png", mask), ("other.png", mask[:100])):
        cv2.imwrite(str(tmp_path / name), content)
    for name in ("fits.png", "other.png"):
        parameters = {"model": tiny_model, **PARAMETERS, "ignore_mask": tmp_path / name}
        with start_rig("/masked", tmp_path / f"{name}.log", parameters, script=SEES_RED) as rig:
            shown = Scene(rig)
            for _ in range(4):
                stamp = shown.show(10.0)
            if name == "fits.png":
                assert shown.obstacles.wait_for(stamp).width == 0
            else:
                status = rig.client.status("/masked/image", lambda s: values(s).get("finding") == "ignore mask")
                assert "other.png is 320×100 but the images are 320×240" in status.message
            shown.close()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("- HAZARD\n", "must map names to names"),
        ("lawn: HAZARD\n", "names 'lawn', but the model's classes are: road"),
        ("default: [\n", "cannot be read"),
    ],
)
def test_class_mappings_that_cannot_be_used(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(content)
    with pytest.raises(PebalError, match=sentence):
        ClassMap.read(str(path), ["road", "car"])


def test_a_class_mapping_names_objects(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text("default: HAZARD\ncar: UNKNOWN\n")
    names = ClassMap.read(str(path), ["road", "car"])
    assert (names("car"), names("road")) == ("UNKNOWN", "HAZARD")
    assert ClassMap.read("", ["road"])("road") == "anomaly"


@pytest.mark.skipif(message_class(DETECTIONS) is None, reason="vision_msgs is not installed")
def test_detections_carry_box_class_and_covariance(shown: Scene) -> None:
    from vision_msgs.msg import Detection2DArray

    inbox = shown.client.listen("objects", Detection2DArray)
    for _ in range(4):
        stamp = shown.show(10.0)
    (detection,) = inbox.wait_for(stamp).detections
    inbox.close()
    (hypothesis,) = detection.results
    assert hypothesis.hypothesis.class_id == "anomaly" and detection.id
    assert (detection.bbox.size_x, detection.bbox.size_y) == (31, 16)
    position = hypothesis.pose.pose.position
    angle = np.radians(PITCH)
    assert position.z == pytest.approx(10 * np.cos(angle) + CAMERA_HEIGHT * np.sin(angle), rel=0.02)
    covariance = np.reshape(hypothesis.pose.covariance, (6, 6))
    assert 0.3 < np.sqrt(covariance[2, 2]) < 1.0


def test_frames_keep_their_time(shown: Scene) -> None:
    """A gap that is longer than max_gap gives an object a new number."""
    for _ in range(4):
        stamp = shown.show(10.0)
    before = points(shown.obstacles.wait_for(stamp))["id"][0]
    shown.show(None)
    shown.show(None)
    time.sleep(0.6)
    for _ in range(4):
        stamp = shown.show(10.0)
    assert points(shown.obstacles.wait_for(stamp))["id"][0] > before
