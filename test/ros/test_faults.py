"""What a vehicle does to a node: signals at the worst moment, cameras that die, a middleware that refuses."""

from __future__ import annotations

import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

from .harness import (
    PROMPT,
    REFUSING,
    STARTUP,
    Client,
    Inbox,
    NodeProcess,
    Rig,
    TestCamera,
    frame_counts,
    picture,
    start_rig,
    values,
    wait_until,
)

IMAGE = "/rig/image"

SLOW_ENGINE = """
import time
from pebal_core.engines.torch import TorchEngine
from pebal_ros.anomaly_node import main

run, calls = TorchEngine.__call__, []

def run_slowly(self, images):
    result = run(self, images)
    calls.append(1)
    if len(calls) > 2:  # warm-up and one answer
        print("The slow inference begins", flush=True)
        time.sleep(60)
    return result

TorchEngine.__call__ = run_slowly
main()
"""


@pytest.mark.parametrize(
    ("deactivated", "signals"),
    [(False, [signal.SIGTERM]), (False, [signal.SIGINT, signal.SIGINT]), (True, [signal.SIGTERM])],
    ids=["SIGTERM", "two SIGINTs", "SIGTERM while a manager deactivates"],
)
def test_a_signal_during_an_inference_that_takes_long(
    tmp_path: Path, tiny_model: Path, deactivated: bool, signals: list[signal.Signals]
) -> None:
    with start_rig("/slow", tmp_path / "log", {"model": tiny_model}, script=SLOW_ENGINE) as rig:
        camera = rig.client.camera()
        camera.wait_for_subscriber()
        labels = rig.client.listen("labels")
        labels.wait_for(camera.send(picture()))
        camera.send(picture())
        rig.process.wait_for_output("The slow inference begins")
        if deactivated:  # its callback waits for the frame in hand
            manager: Any = rig.client.node.create_client(ChangeState, "anomaly_node/change_state")
            wait_until(manager.service_is_ready)
            manager.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE)))
            rig.client.status("model", lambda s: values(s)["state"] == "deactivating")
        started = time.monotonic()
        for number in signals:
            rig.process.send_signal(number)
            time.sleep(0.05)
        assert rig.process.exit_code() == 0
        assert time.monotonic() - started < PROMPT
    assert len(labels.messages) == 1
    assert "Error" not in rig.process.output() and "Traceback" not in rig.process.output()


SPOILED_ENGINE = """
import numpy as np
from pebal_core.engines.torch import TorchEngine
from pebal_ros.anomaly_node import main

run, calls = TorchEngine.__call__, []

def spoil(self, images):
    labels, energy = run(self, images)
    calls.append(1)
    if len(calls) > 2:  # warm-up and one answer
        energy[0, 5, 7] = np.nan
    return labels, energy

TorchEngine.__call__ = spoil
main()
"""


def test_energies_that_are_not_finite_are_a_failure_of_the_engine(tmp_path: Path, tiny_model: Path) -> None:
    """Counted, in the diagnostics, never published, and the end of the node when they repeat."""
    with start_rig("/spoiled", tmp_path / "log", {"model": tiny_model}, script=SPOILED_ENGINE) as rig:
        camera = rig.client.camera()
        camera.wait_for_subscriber()
        energy = rig.client.listen("energy")
        energy.wait_for(camera.send(picture()))
        camera.send(picture())
        rig.client.status("/spoiled/image", lambda s: frame_counts(s)["failed"] == 1)
        status = rig.client.status("model", lambda s: s.level == DiagnosticStatus.ERROR)
        assert "EngineError: 1 of 15360 energies are not finite" in status.message
        camera.send_until(lambda: not rig.process.running)
        assert rig.process.exit_code() == 1
    assert len(energy.messages) == 1
    assert "5 times in a row; the node ends." in rig.process.output()


def test_a_camera_process_that_is_killed_and_comes_back(rig: Rig, labels: Inbox, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "picture.png"), picture())
    parameters = {"source": tmp_path / "picture.png", "loop": "true", "rate": 10.0, "wait_for_subscribers": 1}

    def player(name: str) -> NodeProcess:
        return NodeProcess("camera_player", tmp_path / name, parameters, "-r", "__ns:=/rig")

    with player("first") as process:
        wait_until(lambda: len(labels.messages) >= 5)
        process.send_signal(signal.SIGKILL)
        process.exit_code()
    status = rig.client.status(IMAGE, lambda s: s.level == DiagnosticStatus.ERROR)
    assert "No frame has arrived on /rig/image for" in status.message or "no publisher" in status.message
    count = len(labels.messages)
    with player("second"):
        wait_until(lambda: len(labels.messages) >= count + 5)
        rig.client.status(IMAGE, lambda s: s.level != DiagnosticStatus.ERROR)
    assert rig.process.running


def test_two_nodes_on_one_camera(rig: Rig, tmp_path: Path, tiny_model: Path) -> None:
    """Both answer every frame that they are given time for, each below its own name."""
    remap = ("-r", "__ns:=/second", "-r", "image:=/rig/image")
    with (
        closing(Client("/second")) as client,
        NodeProcess("anomaly_node", tmp_path / "log", {"model": tiny_model}, *remap),
        closing(rig.client.listen("labels")) as of_first,
        closing(client.listen("labels")) as of_second,
    ):
        client.status("model", lambda s: values(s)["state"] == "active", STARTUP)
        with closing(rig.client.camera()) as camera:

            def both() -> bool:
                """Each node has seen the camera, and keeps the one subscription that fits it."""
                infos = rig.client.node.get_subscriptions_info_by_topic(camera.publisher.topic_name)
                nodes = {info.node_namespace for info in infos}
                matched = camera.publisher.get_subscription_count()
                return nodes == {"/rig", "/second"} and len(infos) == matched == 2

            wait_until(both)
            rig.client.be_known(camera.publisher.topic_name)
            client.be_known("/second/labels")
            for seed in range(5):
                stamp = camera.send(picture(seed=seed))
                assert of_first.wait_for(stamp).data == of_second.wait_for(stamp).data


STOPPED_LISTENER = """
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image

rclpy.init()
node = Node("stopped", namespace="/rig")
for topic in ("energy", "overlay"):
    node.create_subscription(Image, topic, lambda _: print("heard", flush=True), 1)
rclpy.spin(node)
"""


def test_a_listener_that_stands_still_holds_up_nobody(
    rig: Rig, camera: TestCamera, labels: Inbox, tmp_path: Path
) -> None:
    """Reliable outputs, whose listener neither reads nor acknowledges any longer."""

    def seconds_per_answer() -> float:
        labels.latencies.clear()
        for seed in range(8):
            labels.wait_for(camera.send(picture(240, 320, seed)))
        return float(np.median(labels.latencies))

    with NodeProcess("", tmp_path / "log", {}, script=STOPPED_LISTENER) as listener:
        wait_until(lambda: rig.client.node.count_subscribers("/rig/overlay"))
        camera.send_until(lambda: "heard" in listener.output())
        moving = seconds_per_answer()
        listener.send_signal(signal.SIGSTOP)
        try:
            assert seconds_per_answer() < 2 * moving + 0.1
        finally:
            listener.send_signal(signal.SIGCONT)


def test_a_player_whose_images_the_middleware_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "refusing.xml"
    profile.write_text(REFUSING.format(topic="/refusing_player/image"))
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        monkeypatch.setenv(name, str(profile))
    monkeypatch.setenv("RMW_FASTRTPS_USE_QOS_FROM_XML", "1")
    cv2.imwrite(str(tmp_path / "picture.png"), picture())
    parameters = {"source": tmp_path / "picture.png", "loop": "true", "rate": 50.0, "count": 3}
    remap = ("-r", "__ns:=/refusing_player")
    with NodeProcess("camera_player", tmp_path / "log", parameters, *remap) as process:
        assert process.exit_code() == 0
    output = process.output()
    assert output.count("was not sent, because the middleware refused it: ") == 3
    assert "Published 0 frames" in output and "Traceback" not in output
