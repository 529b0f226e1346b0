"""Publishes `label_info` and `mask_info`, which name the ids in `labels` and `mask`, for example for Nav2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy

from pebal_core.labels import VOID

from .qos import RELIABLE, keep_last

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not part of every installation, and older versions have no LabelInfo
    LabelInfo = None

MASK_CLASSES = [(0, "known"), (255, "anomaly")]
"""The two values of `mask` and their names."""


class LabelInfoPublishers:
    """Publishes the names of ids once per camera on latched topics, which late subscribers receive as well.

    If vision_msgs with LabelInfo (4.1 or later) is not installed, nothing is published, and the log says so.

    Args:
        node: the node.
        prefixes: prefixes of the cameras' topics.
        class_names: names of the classes in the order of their ids.
    """

    def __init__(self, node: Node, prefixes: Sequence[str], class_names: Sequence[str]) -> None:
        self._node = node
        self._publishers: list[Publisher[Any]] = []
        if LabelInfo is None:
            node.get_logger().info(
                "label_info and mask_info are not published, because vision_msgs 4.1 or later is not installed.",
                once=True,
            )
            return
        latched = keep_last(RELIABLE)
        latched.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
        classes = [*enumerate(class_names), (VOID, "unlabelled")]
        for topic, names in (("label_info", classes), ("mask_info", MASK_CLASSES)):
            message = LabelInfo(class_map=[VisionClass(class_id=number, class_name=name) for number, name in names])
            message.header.stamp = node.get_clock().now().to_msg()
            for prefix in prefixes:
                publisher = node.create_publisher(LabelInfo, f"{prefix}{topic}", latched)
                publisher.publish(message)
                self._publishers.append(publisher)

    def destroy(self) -> None:
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
        self._publishers = []
