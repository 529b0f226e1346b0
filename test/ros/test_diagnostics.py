"""Every fault that a user can make or meet is said in words on /diagnostics, and taken back when it is over."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool

from .harness import (
    REFUSING,
    STARTUP,
    Inbox,
    Rig,
    TestCamera,
    frame_counts,
    picture,
    set_parameter,
    start_rig,
    values,
    wait_until,
)

IMAGE = "/rig/image"


def test_stamps_in_the_future(rig: Rig, camera: TestCamera, labels: Inbox) -> None:
    header = rig.client.header()
    header.stamp.sec += 3600
    labels.wait_for(camera.send(picture(), header=header))
    status = rig.client.status(IMAGE, lambda s: "in the future" in s.message)
    assert status.level == DiagnosticStatus.WARN
    assert "The stamps on /rig/image are 3" in status.message and "Synchronise the clocks" in status.message
    labels.wait_for(camera.send(picture()))
    rig.client.status(IMAGE, lambda s: s.level == DiagnosticStatus.OK)


def test_overload_is_said_and_taken_back(rig: Rig, camera: TestCamera, labels: Inbox) -> None:
    labels.wait_for(camera.send(picture(240, 320)))

    def overloaded() -> DiagnosticStatus | None:
        camera.send_many([picture(240, 320)], count=50, pause=0.005)
        status = rig.client.last(IMAGE)
        return status if "The camera is faster than the model" in status.message else None

    status = wait_until(overloaded)
    assert status.level == DiagnosticStatus.WARN and values(status)["finding"] == "overload"
    said = re.match(rf"([\d.]+) of ([\d.]+) frames per second from {IMAGE} are answered", status.message)
    rates = [float(values(status)[f"rate {way} (Hz)"]) for way in ("out", "in")]
    assert said and [float(number) for number in said.groups()] == pytest.approx(rates, rel=0.1, abs=0.2)
    assert rates[0] < rates[1]
    camera.send_until(lambda: rig.client.last(IMAGE).level == DiagnosticStatus.OK)


def test_frames_that_are_all_too_old(rig: Rig, camera: TestCamera, labels: Inbox) -> None:
    set_parameter(rig.client, "max_age", 0.5)

    def said() -> bool:
        header = rig.client.header()
        header.stamp.sec -= 2
        camera.send(picture(), header=header)
        time.sleep(0.1)
        return "older than max_age (0.5 s)" in rig.client.last(IMAGE).message

    try:
        wait_until(said)
        status = rig.client.last(IMAGE)
        assert status.level == DiagnosticStatus.WARN and values(status)["finding"] == "too old"
        assert "the last one arrived 2." in status.message
    finally:
        set_parameter(rig.client, "max_age", 0.0)
    camera.send_until(lambda: values(rig.client.last(IMAGE)).get("finding") == "running")


def test_a_listener_that_comes_back_is_no_overload(rig: Rig, camera: TestCamera) -> None:
    first = rig.client.listen("labels")
    camera.send_until(lambda: first.messages)
    first.close()
    camera.send_until(lambda: "no output has a subscriber" in rig.client.last(IMAGE).message)
    seen: set[str] = set()
    again, end = rig.client.listen("labels"), time.monotonic() + 3

    def watched() -> bool:
        seen.add(rig.client.last(IMAGE).message)
        return time.monotonic() > end

    camera.send_until(watched)
    again.close()
    assert not any("faster than the model" in message for message in seen), seen


FORGETFUL = """
from pebal_ros import diagnostics
from pebal_ros.anomaly_node import main

diagnostics.REPEAT_AFTER = 8.0
main()
"""


def test_the_last_word_in_the_log_is_true(tiny_model: Path, tmp_path: Path) -> None:
    with start_rig("/forgetful", tmp_path / "log", {"model": tiny_model}, script=FORGETFUL) as rig:
        rig.process.wait_for_output("the node is active", STARTUP)
        rig.client.call(SetBool, "anomaly_node/set_enabled", SetBool.Request(data=False))
        rig.process.wait_for_output("paused by set_enabled")
        rig.client.call(SetBool, "anomaly_node/set_enabled", SetBool.Request(data=True))
        wait_until(lambda: rig.process.output().count("the node is active") == 2)


def test_a_listener_that_asks_for_what_is_not_offered(rig: Rig, camera: TestCamera) -> None:
    latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
    subscription = rig.client.node.create_subscription(Image, "energy", lambda _: None, latched)
    camera.send_until(lambda: "transient local" in rig.client.last(IMAGE).message)
    status = rig.client.last(IMAGE)
    assert status.level == DiagnosticStatus.WARN
    assert (
        status.message.startswith("/rig/client asks for messages that were sent before it subscribed")
        and "/rig/energy" in status.message
    )
    rig.client.node.destroy_subscription(subscription)
    camera.send_until(lambda: rig.client.last(IMAGE).level == DiagnosticStatus.OK)


def test_two_cameras_on_one_topic(rig: Rig, camera: TestCamera, labels: Inbox) -> None:
    other = rig.client.camera()
    other.wait_for_subscriber()
    before = rig.client.counts(IMAGE)
    for number in range(6):
        labels.wait_for((camera, other)[number % 2].send(picture()))
    status = rig.client.status(IMAGE, lambda s: "2 publishers" in s.message)
    assert status.level == DiagnosticStatus.WARN and "may be mixed" in status.message
    after = rig.client.counts(IMAGE)
    assert after["answered"] - before["answered"] == 6, "each camera's numbering is its own"
    assert after["lost before the node"] == before["lost before the node"]
    other.close()
    camera.send_until(lambda: rig.client.last(IMAGE).level == DiagnosticStatus.OK)


def test_another_node_that_publishes_the_same(rig: Rig, camera: TestCamera) -> None:
    twin = rig.client.node.create_publisher(Image, "mask", 1)
    camera.send_until(lambda: "another node" in rig.client.last(IMAGE).message)
    assert rig.client.last(IMAGE).message.startswith("/rig/mask is also published by another node")
    rig.client.node.destroy_publisher(twin)
    camera.send_until(lambda: rig.client.last(IMAGE).level == DiagnosticStatus.OK)


@pytest.fixture(scope="module")
def simulated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    log = tmp_path_factory.mktemp("simulated") / "log"
    with start_rig("/simulated", log, {"model": tiny_model, "use_sim_time": "true", "max_age": 2.0}) as rig:
        yield rig


def test_simulated_time(simulated: Rig) -> None:
    client, part = simulated.client, "/simulated/image"
    camera = client.camera()
    camera.wait_for_subscriber()  # without a clock there is no timer in simulated time: the node must not wait for it
    labels = client.listen("labels")
    labels.wait_for(camera.send(picture(), header=Header(stamp=Time(sec=1000), frame_id="front")))
    status = client.status(part, lambda s: s.level == DiagnosticStatus.WARN)
    assert status.message.startswith("use_sim_time is set, but nothing publishes /clock")

    clock = client.node.create_publisher(Clock, "/clock", 1)
    wait_until(clock.get_subscription_count)

    def play(second: int) -> tuple[int, int]:
        """A frame of this second of the recording, after /clock has said so."""
        stamp = Time(sec=second, nanosec=5)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:  # a frame that overtakes its /clock would count as from another time
            clock.publish(Clock(clock=stamp))
            time.sleep(0.1)
        return camera.send(picture(), header=Header(stamp=stamp, frame_id="front"))

    labels.wait_for(play(1001))
    client.status(part, lambda s: s.level == DiagnosticStatus.OK)
    labels.wait_for(play(500))  # the recording begins again: time goes back
    client.status(part, lambda s: s.level == DiagnosticStatus.OK)
    before = client.counts(part)
    old = camera.send(picture(), header=Header(stamp=Time(sec=400), frame_id="front"))
    status = client.status(part, lambda s: "100.0 s in the past" in s.message)
    assert "Because use_sim_time is set, the player of the images must also publish /clock" in status.message
    assert client.counts(part)["too old"] == before["too old"] + 1 and old not in labels.stamps()
    labels.wait_for(play(501))
    camera.close()


def test_outputs_that_the_middleware_refuses(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "refusing.xml"
    profile.write_text(REFUSING.format(topic="/refused/labels"))
    part = "/refused/image"
    with monkeypatch.context() as environment:
        environment.setenv("RMW_FASTRTPS_USE_QOS_FROM_XML", "1")
        environment.setenv("FASTDDS_DEFAULT_PROFILES_FILE", str(profile))
        environment.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(profile))
        rigs = start_rig("/refused", tmp_path / "log", {"model": tiny_model})
        rig = rigs.__enter__()
    try:
        camera = rig.client.camera()
        camera.wait_for_subscriber()
        labels = rig.client.listen("labels")
        camera.send(picture())
        status = rig.client.status(part, lambda s: frame_counts(s)["unsent"] == 1)
        assert status.level == DiagnosticStatus.WARN
        assert status.message.startswith("The middleware refused labels: ") and len(status.message) > 40
        energies = rig.client.listen("energy")
        for seed in range(3):  # the other outputs go on
            energies.wait_for(camera.send(picture(seed=seed)))
        assert rig.client.counts(part)["answered"] == 3 and not labels.messages
        labels.close()
        rig.client.status(part, lambda s: values(s)["outputs wanted"] == "energy")
        energies.wait_for(camera.send(picture()))
        rig.client.status(part, lambda s: s.level == DiagnosticStatus.OK)
        rig.process.interrupt()
        assert rig.process.exit_code() == 0
    finally:
        rigs.__exit__(None, None, None)
    assert "The middleware refused labels" in rig.process.output() and "Traceback" not in rig.process.output()
