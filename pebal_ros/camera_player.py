"""The node `camera_player` publishes a video, a recording, a folder of images, one image or a webcam as a ROS camera.

python -m pebal_ros.camera_player --ros-args -p source:=drive.mp4 -p wait_for_subscribers:=1
"""

from __future__ import annotations

import csv
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, TypeAlias

from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.executors import Executor
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from pebal_core.errors import CutShortError, PebalError
from pebal_core.footage import Frame, FrameSource

from . import process
from .messages import to_message
from .parameters import Spec, declare
from .process import Finish
from .qos import BEST_EFFORT, RELIABLE, create_publisher, keep_last, try_publish

Decoded: TypeAlias = "tuple[Frame, Time | None] | PebalError | None"
"""A frame and, from a webcam, its reading time; or an error that ended the source; or None at its end."""
DECODED_AHEAD = 4  # number of frames, which is enough to hide a slow key frame
KEPT = 10  # number of messages, so that a subscriber that is slow for a moment misses none
PARAMETERS = (
    Spec("source", str, "", "Video, recording, folder of images, one image, or index of a webcam."),
    Spec("topic", str, "", "Name or type of the image topic in a recording; empty for the only one."),
    Spec("rate", float, 0.0, "Frames per second; 0 keeps the recorded rate.", (0.0, 1000.0)),
    Spec("loop", bool, False, "Start again at the end."),
    Spec("count", int, 0, "Number of frames to publish before ending; 0 publishes all.", (0, 1_000_000_000)),
    Spec("frame_id", str, "camera", "Frame id of the camera in the headers."),
    Spec("reliability", str, RELIABLE, "Reliability offered to subscribers.", choices=(RELIABLE, BEST_EFFORT)),
    Spec("wait_for_subscribers", int, 0, "Nodes that must subscribe to image before the first frame.", (0, 100)),
    Spec("start_delay", float, 0.0, "Seconds to wait before the first frame.", (0.0, 3600.0)),
    Spec("manifest", str, "", "CSV file for stamp (ns) and name of every published frame; empty for none."),
)


class CameraPlayer(Node):
    """Publishes frames at an even pace; one thread decodes ahead and another publishes, independent of the executor.

    Args:
        finish: function that ends the process.

    Raises:
        PebalError: the source cannot be read, or a parameter is invalid.
    """

    def __init__(self, finish: Finish) -> None:
        super().__init__("camera_player")
        try:
            declare(self, PARAMETERS)
            name = self.get_parameter("source").value
            if not name:
                raise PebalError(
                    "The parameter source is empty. Set it to a video, a recording, a folder of images or a camera "
                    "index."
                )
            self._source = FrameSource(name, self.get_parameter("topic").value)
            self._manifest = self._open_manifest(self.get_parameter("manifest").value)
        except PebalError:
            self.destroy_node()
            raise
        self._finish = finish
        self._loop, self._count = self.get_parameter("loop").value, self.get_parameter("count").value
        self._frame_id = self.get_parameter("frame_id").value
        self._period = 1 / (self.get_parameter("rate").value or self._source.rate)
        qos = keep_last(self.get_parameter("reliability").value, KEPT)
        self._images = create_publisher(self, Image, "image", qos)
        self._infos = create_publisher(self, CameraInfo, "camera_info", qos)
        self._stopping = threading.Event()
        self._decoded: queue.Queue[Decoded] = queue.Queue(DECODED_AHEAD)
        self._decoding = threading.Thread(target=self._decode, name="decoding")
        self._publishing = threading.Thread(target=self._play, name="publishing")

    def start(self, executor: Executor) -> None:
        self._decoding.start()
        self._publishing.start()

    def stop(self) -> None:
        self._stopping.set()
        self._publishing.join()
        self._decoding.join()
        if self._manifest is not None:
            self._manifest.close()

    @staticmethod
    def _open_manifest(name: str) -> TextIO | None:
        if not name:
            return None
        try:
            manifest = Path(name).open("w", encoding="utf-8", newline="")  # noqa: SIM115 closed by stop
        except OSError as error:
            raise PebalError(f"The manifest {name} cannot be written: {error.strerror}.") from error
        manifest.write("stamp_ns,name\n")
        return manifest

    # ---- the decoding thread ----

    def _decode(self) -> None:
        end: Decoded = None
        try:
            for frame in self._frames():
                # A webcam's image gets the time of its reading; a recorded frame gets the time of its publication.
                stamp = self.get_clock().now().to_msg() if self._source.is_camera else None
                if not self._hand_over((frame, stamp)):
                    return
        except PebalError as error:
            end = error
        self._hand_over(end)

    def _frames(self) -> Iterator[Frame]:
        number = 0
        while True:
            try:
                for frame in self._source:
                    yield frame
                    number += 1
                    if number == self._count:
                        return
            except CutShortError as error:
                self.get_logger().warning(str(error), once=True)
            if not self._loop:
                return

    def _hand_over(self, item: Decoded) -> bool:
        while not self._stopping.is_set():
            try:
                self._decoded.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    # ---- the publishing thread ----

    def _play(self) -> None:
        published = 0
        self._wait_for_subscribers()
        due = time.monotonic() + self.get_parameter("start_delay").value
        while not self._stopping.is_set():
            try:
                item = self._decoded.get(timeout=0.1)
            except queue.Empty:
                continue
            if item is None or isinstance(item, PebalError):
                # The last messages must have arrived before the publisher is destroyed.
                self._images.wait_for_all_acked(Duration(seconds=2))
                self.get_logger().info(f"Published {published} frames of {self._source.source}.")
                self._finish(str(item) if item else None)
                return
            frame, stamp = item
            if stamp is None and self._stopping.wait(max(due - time.monotonic(), 0)):
                return
            due = max(due + self._period, time.monotonic())  # continues without a burst after a stall
            header = Header(stamp=stamp or self.get_clock().now().to_msg(), frame_id=self._frame_id)
            published += self._publish(frame, header)

    def _wait_for_subscribers(self) -> None:
        wanted = self.get_parameter("wait_for_subscribers").value
        if self._listening_nodes() < wanted:
            self.get_logger().info(f"Waiting for {wanted} subscribers on {self._images.topic_name} …")
        while self._listening_nodes() < wanted and not self._stopping.wait(0.02):
            pass

    def _listening_nodes(self) -> int:
        """Number of subscribing nodes, not of subscriptions; without a publisher, anomaly_node has two of these."""
        subscriptions = self.get_subscriptions_info_by_topic(self._images.topic_name)
        nodes = {(subscription.node_namespace, subscription.node_name) for subscription in subscriptions}
        return min(len(nodes), self._images.get_subscription_count())

    def _publish(self, frame: Frame, header: Header) -> bool:
        """Publish a frame; returns whether the middleware accepted it."""
        height, width = frame.image.shape[:2]
        # Zeros in K mean that the camera is not calibrated; only the image size is known.
        try_publish(self._infos, CameraInfo(header=header, height=height, width=width))
        refused = try_publish(self._images, to_message(frame.image, "rgb8", header))
        if refused:
            self.get_logger().warning(f"Frame {frame.name} was not sent, because the middleware refused it: {refused}.")
            return False
        if self._manifest is not None:
            stamp = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
            csv.writer(self._manifest).writerow((stamp, frame.name))
        return True


def main() -> None:
    """Entry point of the executable `camera_player`."""
    process.main(CameraPlayer)


if __name__ == "__main__":
    main()
