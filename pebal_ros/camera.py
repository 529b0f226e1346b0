"""One camera of the node, with its input, its mailbox, its outputs and the record of its frames."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from pebal_core.detector import Result
from pebal_core.drift import DriftMonitor
from pebal_core.footage.ros_images import RgbImage, decode

from .camera_input import CameraInput
from .mailbox import Mailbox
from .object_stage import ObjectContext, ObjectStage
from .outputs import CameraOutputs
from .qos import BEST_EFFORT, keep_last
from .stream_statistics import CameraRecord

INFOS = 16
"""Number of recent CameraInfo messages that are kept for the frames being processed."""


@dataclass(frozen=True)
class ReceivedFrame:
    """An image message with its time of arrival."""

    message: Image | CompressedImage
    received_at: float
    """`time.monotonic()` in the subscription's callback."""

    @property
    def stamp_ns(self) -> int:
        """Time stamp of the camera in nanoseconds."""
        stamp = self.message.header.stamp
        return stamp.sec * 1_000_000_000 + stamp.nanosec

    def decode(self) -> RgbImage:
        """Decode the message to H×W×3 uint8 RGB.

        Raises:
            PebalError: the message is malformed.
        """
        return decode(self.message)


class Camera:
    """The state of the node for one camera.

    Args:
        node: the node.
        name: name of the camera; "" for a single camera whose topics have no prefix.
        transport: "raw" or "compressed".
        input_reliability: "auto", or the reliability of the subscription.
        output_qos: quality of service of the outputs.
        outputs: names of the outputs that are offered.
        objects: the context for finding objects, shared by all cameras.
        ready: condition that is notified when a frame is waiting, shared by all cameras.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        transport: str,
        input_reliability: str,
        output_qos: QoSProfile,
        outputs: list[str],
        objects: ObjectContext,
        ready: threading.Condition,
    ) -> None:
        self.prefix = prefix = f"{name}/" if name else ""
        """Prefix of the camera's topics."""
        topic = node.resolve_topic_name(f"{prefix}image")
        compressed = transport == "compressed"
        self.name = name
        self.mailbox: Mailbox[ReceivedFrame] = Mailbox(ready)
        self.outputs = CameraOutputs(node, prefix, outputs, output_qos)
        self.objects = ObjectStage(objects)
        self._drift = DriftMonitor(objects.info) if objects.info.profile else None
        self.input = CameraInput(
            node,
            CompressedImage if compressed else Image,
            f"{topic}/compressed" if compressed else topic,
            input_reliability,
            self._receive,
        )
        self.record = CameraRecord()
        self._infos: deque[CameraInfo] = deque(maxlen=INFOS)
        self._node = node
        self._info_topic = f"{prefix}camera_info"
        self._info_subscription: Subscription[Any] | None = None

    def watch(self, result: Result, image: RgbImage) -> None:
        """Compare a processed frame with the calibration frames of the model; called in the inference thread."""
        if self._drift is not None:
            self._drift.update(result.energy, image)

    @property
    def drift(self) -> str:
        """A sentence that says why the guarantee no longer holds; empty if it holds or there is no guarantee."""
        return self._drift.state.text if self._drift is not None and self._drift.state.drifted else ""

    def open(self) -> None:
        """Start to receive images."""
        self.record.opened()
        self.input.watch()
        # A best-effort subscription receives from both kinds of publishers, and a calibration is small.
        self._info_subscription = self._node.create_subscription(
            CameraInfo, self._info_topic, self._receive_info, keep_last(BEST_EFFORT)
        )

    def close(self) -> None:
        """Stop receiving images; a waiting frame is dropped."""
        self.input.close()
        if self._info_subscription is not None:
            self._node.destroy_subscription(self._info_subscription)
            self._info_subscription = None
        self.mailbox.discard()
        self._infos.clear()
        self.record.closed()

    def destroy(self) -> None:
        self.close()
        self.outputs.destroy()

    def calibration(self, header: Header, height: int, width: int) -> CameraInfo | None:
        """The CameraInfo with the stamp of a frame, otherwise the last one; None if its image size differs."""
        infos = tuple(self._infos)
        of_stamp = [info for info in infos if info.header.stamp == header.stamp]
        info = (of_stamp or infos or (None,))[-1]
        return info if info is not None and (info.height, info.width) in ((height, width), (0, 0)) else None

    @property
    def simulated(self) -> bool:
        """Whether the node takes its time from /clock."""
        return bool(self._node.get_parameter("use_sim_time").value)

    @property
    def clock_missing(self) -> bool:
        """Whether the node takes its time from /clock but has not received any."""
        return self.simulated and self._node.get_clock().now().nanoseconds == 0

    def _receive(self, message: Image | CompressedImage, lost: int) -> None:
        frame = ReceivedFrame(message, time.monotonic())
        clock_offset = (self._node.get_clock().now().nanoseconds - frame.stamp_ns) * 1e-9
        self.record.received(message.header.frame_id, clock_offset, lost, self.mailbox.put(frame))

    def _receive_info(self, message: CameraInfo) -> None:
        self._infos.append(message)
