"""What the node does with good frames: one shared node process, cameras and listeners of the test's own."""

from __future__ import annotations

import re
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool

from pebal_core import render
from pebal_core.detector import AnomalyDetector
from pebal_ros.parameters import PARAMETERS

from .harness import Inbox, Rig, TestCamera, picture, set_parameter, values, wait_until

IMAGE = "/rig/image"  # the part of the diagnostics that is about the camera


def pixels(message: Image, dtype: type = np.uint8) -> np.ndarray:
    shape = (message.height, message.width, 3) if message.encoding == "rgb8" else (message.height, message.width)
    return np.frombuffer(message.data, dtype).reshape(shape)


def test_without_a_camera_it_says_so(rig: Rig) -> None:
    """Runs first: no test has made a camera yet."""
    status = rig.client.status(IMAGE, lambda s: s.level == DiagnosticStatus.ERROR, timeout=180)
    assert status.message.startswith("/rig/image has no publisher. Start the camera, or remap 'image'")
    rig.process.wait_for_output("/rig/image has no publisher")
    time.sleep(2.5)
    assert rig.process.output().count("has no publisher") == 1, "said once, not every second"


def test_outputs_are_what_the_detector_says(rig: Rig, camera: TestCamera, tiny_model: Path) -> None:
    image = picture(97, 161)  # sides that are no multiple of the network's stride
    raw = {name: rig.client.listen(name) for name in ("labels", "energy", "score", "overlay", "label_colors")}
    packed = {
        name: rig.client.listen(f"{name}/compressed", CompressedImage)
        for name in ("labels", "score", "overlay", "label_colors")
    }
    wanted = {*raw, *(f"{name}/compressed" for name in packed)}
    rig.client.status(IMAGE, lambda s: set(values(s)["outputs wanted"].split(", ")) == wanted)
    stamp = camera.send(image)
    received = {name: inbox.wait_for(stamp) for name, inbox in raw.items()}
    compressed = {name: inbox.wait_for(stamp) for name, inbox in packed.items()}
    for inbox in (*raw.values(), *packed.values()):
        inbox.close()

    for message in (*received.values(), *compressed.values()):
        assert message.header.frame_id == "front_left"
    encodings = {name: message.encoding for name, message in received.items()}
    assert encodings == {
        "labels": "mono8", "energy": "32FC1", "score": "mono8", "overlay": "rgb8", "label_colors": "rgb8",
    }  # fmt: skip
    assert {(m.height, m.width) for m in received.values()} == {(97, 161)}

    detector = AnomalyDetector.load(tiny_model, device="cpu")
    expected = detector(image)
    labels, energy = pixels(received["labels"]), pixels(received["energy"], np.float32)
    np.testing.assert_allclose(energy, expected.energy, atol=1e-4)
    assert (labels == expected.labels).mean() > 0.999
    assert len(np.unique(labels)) > 1 and energy.std() > 1e-3, "the network says something"
    low, high = detector.info.energy_range
    score = pixels(received["score"])
    np.testing.assert_array_equal(score, render.score_map(energy, low, high))
    np.testing.assert_array_equal(pixels(received["overlay"]), render.overlay(image, score, 0.8))
    colors = render.label_colors(labels, detector.info.palette)
    np.testing.assert_array_equal(pixels(received["label_colors"]), colors)

    def unpack(name: str) -> np.ndarray:
        pixels = cv2.imdecode(np.frombuffer(compressed[name].data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert pixels is not None
        return pixels

    np.testing.assert_array_equal(unpack("labels"), labels)
    np.testing.assert_array_equal(unpack("score"), score)
    assert np.abs(unpack("overlay")[..., ::-1].astype(int) - pixels(received["overlay"])).mean() < 6
    assert unpack("label_colors").shape == (97, 161, 3) and "jpeg" in compressed["label_colors"].format


def test_a_reliable_camera_that_starts_after_the_node_loses_no_frame(rig: Rig, labels: Inbox) -> None:
    camera = rig.client.camera(reliability="reliable")
    camera.wait_for_subscriber()
    for seed in range(5):
        stamp = camera.send(picture(seed=seed))  # the very first, the moment the two have met
        labels.wait_for(stamp)
    status = rig.client.status(IMAGE, lambda s: values(s)["publishers"] == "1")
    assert values(status)["reliability"] == "reliable"
    camera.close()


def test_a_best_effort_camera_is_heard_as_well(rig: Rig, labels: Inbox) -> None:
    camera = rig.client.camera(reliability="best_effort")
    camera.wait_for_subscriber()
    # A best-effort publisher may meet its subscriber before that has met it: repeat until one is through.
    camera.send_until(lambda: labels.messages)
    for seed in range(5):
        labels.wait_for(camera.send(picture(seed=seed)))
    status = rig.client.status(IMAGE, lambda s: values(s)["publishers"] == "1")
    assert values(status)["reliability"] == "best_effort"
    camera.close()


@pytest.mark.parametrize("encoding", ["bgr8", "mono8", "rgba8"])
def test_other_encodings_keep_the_size(rig: Rig, camera: TestCamera, labels: Inbox, encoding: str) -> None:
    channels = {"bgr8": 3, "rgba8": 4, "mono8": 1}[encoding]
    image = np.ascontiguousarray(np.dstack([picture(), picture()])[..., :channels].squeeze())
    answer = labels.wait_for(camera.send(image, encoding))
    assert (answer.height, answer.width) == (96, 160)


def test_size_and_encoding_may_change_at_any_time(camera: TestCamera, labels: Inbox) -> None:
    for height, width, encoding in ((96, 160, "rgb8"), (64, 64, "rgb8"), (64, 64, "mono8"), (120, 96, "bgr8")):
        image = picture(height, width)
        answer = labels.wait_for(camera.send(image[..., 0] if encoding == "mono8" else image, encoding))
        assert (answer.height, answer.width) == (height, width)


def test_nothing_is_computed_when_nobody_listens(rig: Rig, camera: TestCamera) -> None:
    before = rig.client.counts(IMAGE)
    for seed in range(4):
        camera.send(picture(seed=seed))
        time.sleep(0.1)
    after = wait_until(lambda: (c := rig.client.counts(IMAGE))["received"] >= before["received"] + 4 and c)
    assert after["unheard"] - before["unheard"] + after["dropped"] - before["dropped"] == 4
    assert after["answered"] == before["answered"]
    camera.send_until(lambda: "no output has a subscriber" in rig.client.last(IMAGE).message)
    assert rig.client.last(IMAGE).level == DiagnosticStatus.OK


def test_under_overload_every_frame_is_answered_or_counted_as_dropped(
    rig: Rig, camera: TestCamera, labels: Inbox
) -> None:
    labels.wait_for(camera.send(picture(240, 320)))  # warm-up of this size is not part of the load
    before, answers = rig.client.counts(IMAGE), len(labels.messages)
    frames = [picture(240, 320, seed) for seed in range(3)]
    last = camera.send_many(frames, count=100, pause=0.005)
    labels.wait_for(last)  # the newest frame is never the one that is dropped
    after = rig.client.counts(IMAGE)
    change = {name: after[name] - before[name] for name in after}
    assert change["dropped"] + change["lost before the node"] > 20, f"no overload: {change}"
    assert change["answered"] + change["dropped"] + change["lost before the node"] == 100, change
    # Outputs keep one message: a listener that lags may miss an answer, but never sees one that was not given.
    assert 0.5 * change["answered"] <= len(labels.messages) - answers <= change["answered"]
    assert labels.stamps() == sorted(labels.stamps()), "answers keep the order"


def test_camera_info_comes_with_the_stamp_of_the_answer(rig: Rig, camera: TestCamera, labels: Inbox) -> None:
    publisher = rig.client.node.create_publisher(CameraInfo, "camera_info", 1)
    wait_until(publisher.get_subscription_count)
    passed_on = rig.client.listen("camera_info_out", CameraInfo)
    info = CameraInfo(height=96, width=160, k=[100.0, 0.0, 80.0, 0.0, 100.0, 48.0, 0.0, 0.0, 1.0])

    def answered() -> CameraInfo | None:
        publisher.publish(info)
        stamp = camera.send(picture())
        labels.wait_for(stamp)
        time.sleep(0.1)
        return next((m for m in passed_on.messages if (m.header.stamp.sec, m.header.stamp.nanosec) == stamp), None)

    message = wait_until(answered)
    assert (message.height, message.width, message.k[0]) == (96, 160, 100.0)
    assert message.header.frame_id == "front_left"
    passed_on.close()
    rig.client.node.destroy_publisher(publisher)


def test_the_threshold_can_be_set_while_it_runs(rig: Rig, camera: TestCamera) -> None:
    energies, masks = rig.client.listen("energy"), rig.client.listen("mask")
    stamp = camera.send(picture())
    energy = pixels(energies.wait_for(stamp), np.float32)
    assert not masks.messages, "the model stores no threshold"
    energies.close()
    status = rig.client.status(IMAGE, lambda s: s.level == DiagnosticStatus.WARN)
    assert "Set the parameter threshold" in status.message
    threshold = float(np.median(energy))
    assert set_parameter(rig.client, "threshold", threshold) == (True, "")
    mask = pixels(masks.wait_for(camera.send(picture())))
    assert set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(mask == 255, energy >= threshold)
    assert set_parameter(rig.client, "threshold", "auto")[0]
    masks.close()


def test_limits_and_opacity_can_be_set_while_it_runs(rig: Rig, camera: TestCamera) -> None:
    inboxes = {name: rig.client.listen(name) for name in ("energy", "score", "overlay")}
    image = picture()

    def answers() -> dict[str, Image]:
        stamp = camera.send(image)
        return {name: inbox.wait_for(stamp) for name, inbox in inboxes.items()}

    energy = pixels(answers()["energy"], np.float32)
    low, high = float(energy.min()), float(np.median(energy))
    changes = {"score_min": low, "score_max": high, "overlay_alpha": 0.25}
    for name, value in changes.items():
        assert set_parameter(rig.client, name, value) == (True, "")
    changed = answers()
    score = pixels(changed["score"])
    np.testing.assert_array_equal(score, render.score_map(pixels(changed["energy"], np.float32), low, high))
    assert score.max() == 255 and score.min() == 0
    np.testing.assert_array_equal(pixels(changed["overlay"]), render.overlay(image, score, 0.25))
    for name in ("score_max", "score_min"):
        assert set_parameter(rig.client, name, "auto")[0]
    assert set_parameter(rig.client, "overlay_alpha", 0.8)[0]
    for inbox in inboxes.values():
        inbox.close()


def test_every_frozen_parameter_says_that_a_restart_is_needed(rig: Rig) -> None:
    for spec in PARAMETERS:
        if not spec.runtime:
            reason = f"{spec.name} cannot change while the node runs; restart the node with the new value."
            assert set_parameter(rig.client, spec.name, "other") == (False, reason)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("overlay_alpha", 2.0, "overlay_alpha must lie between 0 and 1, not 2.0."),
        ("score_min", 5.0, "score_min (5) must be below score_max (-2)."),
        ("score_max", "high", "score_max takes a number or 'auto', not 'high'."),
        ("max_rate", -1.0, "max_rate must lie between 0 and 1000, not -1.0."),
        ("max_age", float("nan"), "max_age must be finite, not nan."),
        ("threshold", 2000.0, "threshold must lie between -1000 and 1000, not 2000.0."),
    ],
)
def test_parameters_are_refused_with_a_reason(rig: Rig, name: str, value: float | str, reason: str) -> None:
    assert set_parameter(rig.client, name, value) == (False, reason)


def test_a_rate_limit_drops_and_keeps_the_newest(rig: Rig, camera: TestCamera, labels: Inbox) -> None:
    labels.wait_for(camera.send(picture()))
    assert set_parameter(rig.client, "max_rate", 2.0)[0]
    try:
        count, started = len(labels.messages), time.monotonic()
        labels.wait_for(camera.send_many([picture()], count=40, pause=0.05))
        elapsed, answered = time.monotonic() - started, len(labels.messages) - count
        assert answered <= 2.0 * elapsed + 2
    finally:
        set_parameter(rig.client, "max_rate", 0.0)


def test_frames_that_are_too_old_are_skipped(rig: Rig, camera: TestCamera, labels: Inbox) -> None:
    before = rig.client.counts(IMAGE)
    set_parameter(rig.client, "max_age", 30.0)
    try:
        header = rig.client.header()
        header.stamp.sec -= 60
        old = camera.send(picture(), header=header)
        rig.client.status(IMAGE, lambda s: re.search(r"6\d\.\d s in the past", s.message))
        fresh = camera.send(picture())
        labels.wait_for(fresh)
    finally:
        set_parameter(rig.client, "max_age", 0.0)
    assert old not in labels.stamps()
    assert rig.client.counts(IMAGE)["too old"] == before["too old"] + 1


def test_pausing_and_going_on(rig: Rig, camera: TestCamera, labels: Inbox) -> None:
    labels.wait_for(camera.send(picture()))
    response = rig.client.call(SetBool, "anomaly_node/set_enabled", SetBool.Request(data=False))
    assert response.success and "paused" in response.message
    wait_until(lambda: camera.publisher.get_subscription_count() == 0)
    rig.client.status(IMAGE, lambda s: "paused by set_enabled" in s.message)
    before = rig.client.counts(IMAGE)
    camera.send_many([picture()], count=5, pause=0.01)
    rig.client.call(SetBool, "anomaly_node/set_enabled", SetBool.Request(data=True))
    camera.wait_for_subscriber()
    labels.wait_for(camera.send(picture()))
    after = rig.client.counts(IMAGE)
    assert after["answered"] == before["answered"] + 1
    assert after["lost before the node"] == before["lost before the node"], "what is sent in a pause is not lost"


def test_diagnostics_say_what_runs(rig: Rig, camera: TestCamera, labels: Inbox, tiny_model: Path) -> None:
    from pebal_core.model_file import file_sha256

    labels.wait_for(camera.send(picture()))
    model = values(rig.client.status("model", lambda s: s.hardware_id))
    assert (model["engine"], model["device"], model["state"]) == ("torch", "cpu", "active")
    assert model["model sha256"] == file_sha256(tiny_model) and model["model"] == str(tiny_model)
    seen = rig.client.status(IMAGE, lambda s: s.hardware_id == "front_left")
    stages = (
        "waiting",
        "decode",
        "preprocess",
        "inference",
        "postprocess",
        "render",
        "publish",
        "overhead",
        "in the node",
        "latency",
    )
    for stage in stages:
        p50, p95 = (float(values(seen)[f"{stage} {p} (ms)"]) for p in ("p50", "p95"))
        assert 0 <= p50 <= p95, stage
    assert float(values(seen)["rate in (Hz)"]) > 0 and float(values(seen)["age of the last frame (s)"]) >= 0


def test_a_camera_that_stops_is_missed(rig: Rig, camera: TestCamera, labels: Inbox) -> None:
    labels.wait_for(camera.send(picture()))
    status = rig.client.status(IMAGE, lambda s: s.level == DiagnosticStatus.ERROR)
    assert "No frame has arrived on /rig/image for" in status.message and "has a publisher" in status.message
    camera.send_until(lambda: rig.client.last(IMAGE).level != DiagnosticStatus.ERROR)
