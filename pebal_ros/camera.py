"""One camera: its input, its mailbox, its outputs and the account of its frames."""

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
"""CameraInfo messages that are kept for the frames that are being answered."""


@dataclass(frozen=True)
class ReceivedFrame:
    """A message as it came, and when."""

    message: Image | CompressedImage
    received_at: float
    """`time.monotonic()` in the subscription's callback."""

    @property
    def stamp_ns(self) -> int:
        """When the camera says that it took the picture, in nanoseconds."""
        stamp = self.message.header.stamp
        return stamp.sec * 1_000_000_000 + stamp.nanosec

    def decode(self) -> RgbImage:
        """RGB pixels.

        Raises:
            PebalError: a malformed message.
        """
        return decode(self.message)


class Camera:
    """Everything the node holds for one camera.

    Args:
        name: "" for a single camera whose topics have no prefix.
        transport: "raw" or "compressed".
        objects: what all cameras share for finding objects.
        ready: notified when a frame waits; shared by all cameras.
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
        """Of the camera's topics."""
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
        """Hold an answered frame against the frames that the model was calibrated on; of the inference thread."""
        if self._drift is not None:
            self._drift.update(result.energy, image)

    @property
    def drift(self) -> str:
        """That the guarantee no longer holds, and why, in one sentence; empty: it holds, or there is none."""
        return self._drift.state.text if self._drift is not None and self._drift.state.drifted else ""

    def open(self) -> None:
        """Begin to receive."""
        self.record.opened()
        self.input.watch()
        # Best effort hears reliable and best-effort cameras alike, and a calibration is small.
        self._info_subscription = self._node.create_subscription(
            CameraInfo, self._info_topic, self._receive_info, keep_last(BEST_EFFORT)
        )

    def close(self) -> None:
        """Receive no more; a waiting frame is dropped."""
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
        """The CameraInfo of this frame: that of its stamp, else the last one; None where it is of another size."""
        infos = tuple(self._infos)
        of_stamp = [info for info in infos if info.header.stamp == header.stamp]
        info = (of_stamp or infos or (None,))[-1]
        return info if info is not None and (info.height, info.width) in ((height, width), (0, 0)) else None

    @property
    def simulated(self) -> bool:
        """Whether the node's time is that of /clock."""
        return bool(self._node.get_parameter("use_sim_time").value)

    @property
    def clock_missing(self) -> bool:
        """Whether the node's time should be that of /clock, but none has come."""
        return self.simulated and self._node.get_clock().now().nanoseconds == 0

    def _receive(self, message: Image | CompressedImage, lost: int) -> None:
        frame = ReceivedFrame(message, time.monotonic())
        clock_offset = (self._node.get_clock().now().nanoseconds - frame.stamp_ns) * 1e-9
        self.record.received(message.header.frame_id, clock_offset, lost, self.mailbox.put(frame))

    def _receive_info(self, message: CameraInfo) -> None:
        self._infos.append(message)
