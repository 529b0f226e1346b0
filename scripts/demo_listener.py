"""A subscriber as any user would write it: takes every output, keeps what the account needs."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header

QUIET = 3.0
"""Seconds without a message after which none is on its way: outputs keep one message, so a later one may replace it."""
OUTPUTS = ("labels", "energy", "score", "overlay", "label_colors")


def stamp_of(header: Header) -> int:
    """Nanoseconds."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


class Listener(Node):
    """Receives the node's outputs and diagnostics.

    Args:
        folder: energies are kept there as STAMP.npy, labels and pictures as STAMP_labels.png, STAMP_overlay.png and
            STAMP_label_colors.png.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("demo")
        self.folder = folder
        self.model: dict[str, str] = {}
        """Engine, device, model file and hash, as the node states them; empty until it is ready."""
        self._received = dict.fromkeys(OUTPUTS, 0)
        self._last_arrival = time.monotonic()
        self._latencies: list[float] = []
        self._camera: dict[str, str] = {}
        reliable = QoSProfile(depth=10)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, reliable)
        for output in OUTPUTS:
            self.create_subscription(
                Image, output, lambda message, name=output: self._on_image(name, message), reliable
            )

    @property
    def node_is_active(self) -> bool:
        return self.model.get("state") == "active"

    @property
    def answered(self) -> int:
        """Frames whose energy has arrived."""
        return self._received["energy"]

    def settled(self) -> int:
        """Frames that the node has answered, dropped or refused so far."""
        return sum(self._count(kind) for kind in ("answered", "dropped", "bad", "too old", "unheard", "failed"))

    def complete(self) -> bool:
        """Whether every frame that the node received was answered or dropped, and no answer is on its way."""
        arrived = min(self._received.values()) >= self._count("answered")
        quiet = time.monotonic() - self._last_arrival > QUIET
        return 0 < self._count("received") == self.settled() and (arrived or quiet)

    def frame_counts(self) -> dict[str, int]:
        kinds = ("received", "answered", "dropped", "bad", "lost before the node")
        counts = {kind: self._count(kind) for kind in kinds}
        return {**counts, **{f"{name} received here": count for name, count in self._received.items()}}

    def latencies(self) -> dict[str, float]:
        """Milliseconds from the camera's stamp to the arrival of the energy."""
        p50, p95, largest = np.percentile(self._latencies, [50, 95, 100])
        return {"p50": float(p50), "p95": float(p95), "max": float(largest)}

    def stage_times(self) -> dict[str, float]:
        """The node's own account of where the time went."""
        suffix = " (ms)"
        return {key.removesuffix(suffix): float(v) for key, v in self._camera.items() if key.endswith(suffix)}

    def _count(self, kind: str) -> int:
        return int(self._camera.get(f"frames {kind}", 0))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {item.key: item.value for item in status.values}
            if "engine" in values:
                self.model = values
            elif "frames received" in values:
                self._camera = values

    def _on_image(self, name: str, message: Image) -> None:
        stamp = stamp_of(message.header)
        self._received[name] += 1
        self._last_arrival = time.monotonic()
        if name == "labels":
            labels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width)
            cv2.imwrite(str(self.folder / f"{stamp}_labels.png"), labels)
        elif name == "energy":
            self._latencies.append((time.time_ns() - stamp) * 1e-6)
            energy = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
            np.save(self.folder / f"{stamp}.npy", energy)
        elif name in ("overlay", "label_colors"):
            image = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
            compression = [cv2.IMWRITE_PNG_COMPRESSION, 1]
            cv2.imwrite(str(self.folder / f"{stamp}_{name}.png"), image[..., ::-1], compression)
