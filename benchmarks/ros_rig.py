"""What the benchmarks of the node share: processes of its own, and a subscriber that measures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image

from pebal_ros.qos import RELIABLE, keep_last

ROOT = Path(__file__).resolve().parents[1]
STARTUP = 300.0  # seconds, enough to import PyTorch and load a model on a busy machine


class Process:
    """A Python process with its output in a file; used as a context manager, it ends by SIGINT.

    Args:
        target: what follows `python`: ["-m", module] or [script], and its arguments.
        log: where its output goes.
    """

    def __init__(self, target: list[str], log: Path) -> None:
        self.log = log
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, *target], stdout=stream, stderr=subprocess.STDOUT, env=environment
            )
        self.pid = self._process.pid

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Raises SystemExit with the end of the log where the process has ended."""
        if self._process.poll() is not None:
            raise SystemExit(
                f"A process ended with exit code {self._process.returncode}:\n{self.log.read_text()[-2000:]}"
            )

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def ros_node(module: str, namespace: str, parameters: dict[str, object]) -> list[str]:
    """Target of a `Process`: a node of the package."""
    target = ["-m", f"pebal_ros.{module}", "--ros-args", "-r", f"__ns:={namespace}"]
    for name, value in parameters.items():
        target += ["-p", f"{name}:={value}"]
    return target


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """H×W×3: smooth patches under noise, so that nothing along the way is cheaper than with a camera."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (9, 16, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + generator.integers(-8, 9, smooth.shape, np.int16), 0, 255).astype(np.uint8)


class Listener(Node):
    """Subscribes to labels and energy of some namespaces, and notes when each answer arrived.

    Args:
        namespaces: those of the nodes that are measured.
    """

    def __init__(self, namespaces: list[str]) -> None:
        super().__init__("benchmark")
        self.arrivals: dict[str, dict[int, float]] = {namespace: {} for namespace in namespaces}
        """Seconds from each stamp (ns) until both outputs were here, by namespace."""
        self.camera: dict[str, str] = {}
        """The last diagnostics of anomaly_node's camera."""
        self._half: dict[tuple[str, int], str] = {}
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._diagnose, 10)
        for namespace in namespaces:
            for output in ("labels", "energy"):
                self.create_subscription(
                    Image, f"{namespace}/{output}", self._receiver(namespace, output), keep_last(RELIABLE, 10)
                )

    def _receiver(self, namespace: str, output: str) -> Callable[[Image], None]:
        def receive(message: Image) -> None:
            stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
            if self._half.pop((namespace, stamp), output) == output:
                self._half[namespace, stamp] = output
            else:
                self.arrivals[namespace][stamp] = (time.time_ns() - stamp) * 1e-9

        return receive

    def _diagnose(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {item.key: item.value for item in status.values}
            if status.name.lstrip("/").startswith("benchmark/") and "frames received" in values:
                self.camera = values

    def spin(self, seconds: float) -> None:
        """Receive for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def wait_for(self, condition: Callable[[], Any], timeout: float, what: str) -> None:
        """Receive until a condition holds; raises SystemExit when it does not in time."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise SystemExit(f"Timed out after {timeout:.0f} s while waiting for this: {what}.")
            self._executor.spin_once(timeout_sec=0.05)


def use_image_profile() -> None:
    """Give Fast DDS the shared memory that images need, unless the environment says otherwise."""
    for variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        if variable in os.environ:
            return
    os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds.xml")


def milliseconds(seconds: list[float], percentile: float) -> float:
    return 1e3 * float(np.percentile(seconds, percentile)) if seconds else float("nan")
