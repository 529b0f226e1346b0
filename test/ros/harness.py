"""Real processes and real middleware for the tests: start a node, talk to it as any user's node would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image

from pebal_ros.messages import to_message

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds; every wait ends as soon as it can, so this only matters when something is broken
PROMPT = 3.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
"""Seconds in which a node ends; it takes less than two where the processor is free, and launch waits for five."""
STARTUP = 300.0  # importing PyTorch on a busy machine
ATTEMPTS = 10  # at a service within STARTUP

Stamp = tuple[int, int]


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE, what: str = "") -> Any:
    """The first true value of a condition; fails when there is none in time."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"Not within {timeout:.0f} s: {what or condition}")


class NodeProcess:
    """An executable of the package in a process of its own, its output kept in a file."""

    def __init__(self, module: str, log: Path, parameters: dict[str, Any], *arguments: str, script: str = "") -> None:
        """With `script`, that Python source runs instead of the module."""
        command = [sys.executable, *(["-c", script] if script else ["-m", f"pebal_ros.{module}"]), "--ros-args"]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={value}"]
        self._log = log
        with log.open("w") as stream:
            # Two threads of which one is not let run wait for each other in every layer: seconds for a frame on a
            # busy machine. Only here: with other threads than ours, the core's tests would round differently.
            environment = dict(os.environ, OMP_NUM_THREADS="1")
            self._process = subprocess.Popen(
                [*command, *arguments], cwd=REPOSITORY, env=environment, stdout=stream, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if error is not None:
            print(self.output())  # pytest shows it with the failure

    def output(self) -> str:
        return self._log.read_text()

    def wait_for_output(self, text: str, timeout: float = PATIENCE) -> None:
        wait_until(lambda: text in self.output(), timeout, f"'{text}' in the output")

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        return self._process.pid

    def interrupt(self) -> None:
        self.send_signal(signal.SIGINT)

    def exit_code(self, timeout: float = PATIENCE) -> int:
        return self._process.wait(timeout)

    @property
    def running(self) -> bool:
        return self._process.poll() is None


def qos(reliability: str) -> QoSProfile:
    reliable = reliability == "reliable"
    return QoSProfile(
        depth=10,
        reliability=QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT,
    )


def stamp_of(message: Any) -> Stamp:
    header = message.header if hasattr(message, "header") else message.markers[0].header
    return header.stamp.sec, header.stamp.nanosec


class Inbox:
    """What a subscription received."""

    def __init__(self, client: Client, message_type: type, topic: str) -> None:
        self.messages: list[Any] = []
        self.latencies: list[float] = []
        """Seconds from each message's stamp to its arrival."""
        self._client = client
        self._subscription = client.node.create_subscription(message_type, topic, self._receive, qos("reliable"))
        self.topic = topic
        wait_until(
            lambda: client.node.count_publishers(self._subscription.topic_name),
            STARTUP,
            f"publisher on {topic}",
        )
        if hasattr(self._subscription, "get_publisher_count"):  # not on Humble
            wait_until(self._subscription.get_publisher_count, what=f"match on {topic}")
        client.be_known(self._subscription.topic_name)

    def _receive(self, message: Any) -> None:
        sec, nanosec = stamp_of(message)
        self.latencies.append(time.time() - sec - nanosec * 1e-9)
        self.messages.append(message)

    def stamps(self) -> list[Stamp]:
        return [stamp_of(message) for message in tuple(self.messages)]

    def wait_for(self, stamp: Stamp, timeout: float = PATIENCE) -> Any:
        """The message with this stamp."""
        return wait_until(
            lambda: next((m for m in tuple(self.messages) if stamp_of(m) == stamp), None),
            timeout,
            f"{self.topic} with stamp {stamp}",
        )

    def close(self) -> None:
        self._client.node.destroy_subscription(self._subscription)


class TestCamera:
    """A publisher of images with a stamp of its own on each."""

    __test__ = False

    def __init__(self, client: Client, topic: str, reliability: str = "reliable", message_type: type = Image) -> None:
        self._client = client
        self._reliable = reliability == "reliable"
        self.publisher: Any = client.node.create_publisher(message_type, topic, qos(reliability))

    def wait_for_subscriber(self) -> None:
        """Until a subscription is matched; for a reliable camera one that asks for reliability, which the node may
        have to make first where the camera before this one was best effort."""
        topic = self.publisher.topic_name

        def matched() -> bool:
            asked = [info.qos_profile.reliability for info in self._client.node.get_subscriptions_info_by_topic(topic)]
            return self.publisher.get_subscription_count() > 0 and (
                not self._reliable or QoSReliabilityPolicy.RELIABLE in asked
            )

        wait_until(matched, STARTUP, f"subscriber on {topic}")
        self._client.be_known(topic)

    def send(self, image: np.ndarray, encoding: str = "rgb8", **changes: Any) -> Stamp:
        """Publish an image, with fields of the message changed; returns its stamp."""
        message = to_message(image, encoding, self._client.header())
        for name, value in changes.items():
            setattr(message, name, value)
        return self.send_message(message)

    def send_message(self, message: Any) -> Stamp:
        self.publisher.publish(message)
        return stamp_of(message)

    def send_many(self, images: Sequence[np.ndarray], count: int, pause: float) -> Stamp:
        """Publish images in turn with pauses between them; returns the last stamp."""
        stamp = self.send(images[0])
        for number in range(1, count):
            time.sleep(pause)
            stamp = self.send(images[number % len(images)])
        return stamp

    def send_until(self, condition: Callable[[], Any]) -> None:
        """Publish a picture five times a second until a condition holds."""
        due = 0.0
        statuses = self._client.statuses

        def met() -> Any:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + 0.2
                self.send(picture())
            return condition()

        try:
            wait_until(met, STARTUP)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last statuses: {statuses}") from None

    def close(self) -> None:
        self._client.node.destroy_publisher(self.publisher)


class Client:
    """A user's node in the test process, spinning in a thread."""

    def __init__(self, namespace: str) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = Node("client", namespace=namespace, context=self._context)
        self.statuses: dict[str, DiagnosticStatus] = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnose, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._stopping = False
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stopping:
            try:
                self._executor.spin_once(timeout_sec=0.05)
            except ExternalShutdownException:
                return

    def _diagnose(self, array: DiagnosticArray) -> None:
        prefix = self.node.get_namespace().strip("/") + "/anomaly_node: "
        for status in array.status:
            if status.name.startswith(prefix):
                self.statuses[status.name.removeprefix(prefix)] = status

    def header(self, frame_id: str = "front_left") -> Any:
        from std_msgs.msg import Header

        return Header(stamp=self.node.get_clock().now().to_msg(), frame_id=frame_id)

    def be_known(self, topic: str) -> None:
        """Until the nodes on this topic know every publisher and subscription that this node has made so far.

        A match is seen here up to seconds before it is seen there, and nothing arrives until then. Their answer proves
        it: the middleware announces in order, and what the question needs comes last.
        """
        known = {self.node.get_fully_qualified_name()}
        end = time.monotonic() + STARTUP
        while strangers := self._nodes_on(topic) - known:
            assert time.monotonic() < end, f"No answer from {strangers} on {topic}"
            time.sleep(0.01)
            known.update(name for name in strangers if "_UNKNOWN_" not in name and self._answers(name))

    def _nodes_on(self, topic: str) -> set[str]:
        """Full names of those that publish or subscribe; their name arrives a little after the match."""
        infos = [*self.node.get_publishers_info_by_topic(topic), *self.node.get_subscriptions_info_by_topic(topic)]
        return {f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos}

    def _answers(self, node: str) -> bool:
        """Whether a node answers at once; it cannot while it does not know who asks."""
        client: Any = self.node.create_client(GetParameters, f"{node}/get_parameters")
        try:
            wait_until(client.service_is_ready, 1.0)
            wait_until(client.call_async(GetParameters.Request()).done, 1.0)
        except AssertionError:
            return False
        finally:
            self.node.destroy_client(client)
        return True

    def camera(self, topic: str = "image", reliability: str = "reliable", message_type: type = Image) -> TestCamera:
        return TestCamera(self, topic, reliability, message_type)

    def listen(self, topic: str, message_type: type = Image) -> Inbox:
        return Inbox(self, message_type, topic)

    def status(
        self, part: str, condition: Callable[[DiagnosticStatus], Any], timeout: float = PATIENCE
    ) -> DiagnosticStatus:
        """The first status of this part, published from now on, that meets a condition."""
        self.statuses.pop(part, None)

        def met() -> DiagnosticStatus | None:
            status = self.statuses.get(part)
            return status if status is not None and condition(status) else None

        try:
            return wait_until(met, timeout)
        except AssertionError:
            raise AssertionError(f"No such status of {part}; the last one: {self.statuses.get(part)}") from None

    def last(self, part: str) -> DiagnosticStatus:
        """The last status of this part; one without a word before the first."""
        return self.statuses.get(part, DiagnosticStatus(level=DiagnosticStatus.STALE))

    def counts(self, part: str) -> dict[str, int]:
        """The frame counts of a camera once none is under way."""

        def settled(status: DiagnosticStatus) -> bool:
            counts = frame_counts(status)
            lost = counts.pop("lost before the node")
            return counts.pop("received") == sum(counts.values()) and lost >= 0

        return frame_counts(self.status(part, settled))

    def call(self, service_type: type, name: str, request: Any) -> Any:
        """The response of a service."""
        client: Any = self.node.create_client(service_type, name)
        try:
            wait_until(client.service_is_ready, STARTUP, f"service {name}")
            return self._response(client, request, name)
        finally:
            self.node.destroy_client(client)

    def _response(self, client: Any, request: Any, name: str) -> Any:
        """Ask again after a while: a server that has not discovered its client yet loses the response."""
        futures: list[Any] = []

        def response() -> Any:
            if time.monotonic() >= started + len(futures) * STARTUP / ATTEMPTS:
                futures.append(client.call_async(request))
            return next((future.result() for future in futures if future.done()), None)

        started = time.monotonic()
        return wait_until(response, STARTUP, f"response of {name}")

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)


@dataclass
class Rig:
    """A running anomaly node and a client in its namespace."""

    client: Client
    process: NodeProcess


@contextmanager
def start_rig(namespace: str, log: Path, parameters: dict[str, object], script: str = "") -> Iterator[Rig]:
    client = Client(namespace)
    try:
        with NodeProcess("anomaly_node", log, parameters, "-r", f"__ns:={namespace}", script=script) as process:
            yield Rig(client, process)
    finally:
        client.close()


def set_parameter(client: Client, name: str, value: float | str) -> tuple[bool, str]:
    """Whether it was set, and the reason if not."""
    if isinstance(value, str):
        stored = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value)
    else:
        stored = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
    request = SetParameters.Request(parameters=[Parameter(name=name, value=stored)])
    result = client.call(SetParameters, "anomaly_node/set_parameters", request).results[0]
    return result.successful, result.reason


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


def frame_counts(status: DiagnosticStatus) -> dict[str, int]:
    """The "frames …" values of a camera's status, without that word."""
    return {
        key.removeprefix("frames "): int(value) for key, value in values(status).items() if key.startswith("frames ")
    }


def picture(height: int = 96, width: int = 160, seed: int = 0) -> np.ndarray:
    """A smooth random image H×W×3: JPEG keeps it, and the network sees structure."""
    import cv2

    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


REFUSING = """<?xml version="1.0" encoding="UTF-8"?>
<profiles xmlns="http://www.eprosima.com">
  <data_writer profile_name="{topic}"><historyMemoryPolicy>PREALLOCATED</historyMemoryPolicy></data_writer>
</profiles>
"""
"""A history of fixed size: the middleware itself refuses every message on that topic that is larger."""
