"""What users of ROS expect of every node: qos_overrides, namespaces, remappings (use_sim_time: test_diagnostics)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.srv import GetParameters
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage

from .harness import STARTUP, Client, NodeProcess, wait_until

OVERRIDES = """
/**:
  ros__parameters:
    qos_overrides:
      /rover/score:
        publisher:
          reliability: {reliability}
          depth: 3
      /mast/image_raw:
        subscription:
          reliability: reliable
"""
ARGUMENTS = ["-r", "__ns:=/rover", "-r", "image:=/mast/image_raw", "-r", "labels:=classes"]


def overrides(folder: Path, reliability: str) -> str:
    path = folder / "overrides.yaml"
    path.write_text(OVERRIDES.format(reliability=reliability))
    return str(path)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rover") / "log"


@pytest.fixture(scope="module")
def rover(log: Path, tiny_model: Path) -> Iterator[Client]:
    client = Client("/rover")
    arguments = ["--params-file", overrides(log.parent, "best_effort"), *ARGUMENTS]
    try:
        with NodeProcess("anomaly_node", log, {"model": tiny_model}, *arguments):
            yield client
    finally:
        client.close()


def test_qos_overrides_reach_their_publisher_alone(rover: Client, log: Path) -> None:
    def offered(topic: str) -> QoSProfile | None:
        return next((info.qos_profile for info in rover.node.get_publishers_info_by_topic(topic)), None)

    for topic, reliability in (
        ("/rover/score", QoSReliabilityPolicy.BEST_EFFORT),
        ("/rover/score/compressed", QoSReliabilityPolicy.RELIABLE),
        ("/rover/energy", QoSReliabilityPolicy.RELIABLE),
    ):
        profile = wait_until(lambda topic=topic: offered(topic), STARTUP, topic)  # type: ignore[misc]
        assert profile.reliability == reliability, topic
    request = GetParameters.Request(names=["qos_overrides./rover/score.publisher.depth"])
    assert rover.call(GetParameters, "anomaly_node/get_parameters", request).values[0].integer_value == 3
    # Not silently: what the node asks of a camera is its own choice.
    assert "'qos_overrides./mast/image_raw.subscription.reliability' is ignored" in log.read_text()


def test_remapped_topics_and_their_siblings_are_served(rover: Client) -> None:
    camera = rover.camera("/mast/image_raw")
    inboxes = [rover.listen("classes"), rover.listen("classes/compressed", CompressedImage)]
    camera.send_until(lambda: all(inbox.messages for inbox in inboxes))
    rover.status("/mast/image_raw", lambda status: status.level != DiagnosticStatus.ERROR)
    assert rover.node.count_publishers("/rover/labels") == 0
    camera.close()
    for inbox in inboxes:
        inbox.close()


def test_an_override_that_cannot_be_meant_ends_the_start(tmp_path: Path, tiny_model: Path) -> None:
    arguments = ["--params-file", overrides(tmp_path, "sometimes"), *ARGUMENTS]
    with NodeProcess("anomaly_node", tmp_path / "log", {"model": tiny_model}, *arguments) as process:
        assert process.exit_code(STARTUP) == 1
        sentence = "A parameter of qos_overrides./rover/score.publisher is invalid: Unexpected QoS override"
        assert sentence in process.output() and "sometimes" in process.output()
        assert "Traceback" not in process.output()
