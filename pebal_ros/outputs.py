"""The publishers of one camera; each output is computed once, and only if it has a subscriber."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage
from std_msgs.msg import Header

from pebal_core.outputs import OUTPUTS, Products, encode

from .messages import message_class, plain, to_ros
from .parameters import Settings
from .qos import create_publisher, try_publish, unmet_request


class CameraOutputs:
    """The publishers of one camera.

    Args:
        node: the node.
        prefix: "" or the camera's name and a slash.
        names: the outputs that are offered.
        qos: quality of service that is offered on all of them.
    """

    def __init__(self, node: Node, prefix: str, names: Sequence[str], qos: QoSProfile) -> None:
        self._node = node
        self._publishers: dict[str, Publisher[Any]] = {}
        for name in names:
            output = OUTPUTS[name]
            kind = message_class(output.type)
            if kind is None:
                node.get_logger().info(f"{name} is not published, because vision_msgs is not installed.", once=True)
                continue
            # As in image_transport, the suffix follows the name after remapping.
            topic = node.resolve_topic_name(prefix + name)
            self._publishers[name] = create_publisher(node, kind, topic, qos)
            if output.compress is not None:
                self._publishers[f"{name}/compressed"] = create_publisher(
                    node, CompressedImage, f"{topic}/compressed", qos
                )
        self._camera_info = create_publisher(node, CameraInfo, f"{prefix}camera_info_out", qos)

    def destroy(self) -> None:
        for publisher in (*self._publishers.values(), self._camera_info):
            self._node.destroy_publisher(publisher)

    def heard(self, name: str) -> bool:
        """Whether this output, raw or compressed, has a subscriber."""
        return any(
            publisher.get_subscription_count() > 0
            for key, publisher in self._publishers.items()
            if key.partition("/")[0] == name
        )

    def wanted(self, settings: Settings) -> list[str]:
        """Outputs that have a subscriber and can be computed with these settings."""
        return [
            name
            for name, publisher in self._publishers.items()
            if publisher.get_subscription_count() > 0
            and (settings.threshold is not None or not OUTPUTS[name.partition("/")[0]].needs_threshold)
        ]

    def complaint(self) -> str:
        """A sentence on a subscriber that messages cannot reach, or on another node with the same topics; else ""."""
        for publisher in (*self._publishers.values(), self._camera_info):
            if self._node.count_publishers(publisher.topic_name) > 1:
                return (
                    f"{publisher.topic_name} is also published by another node. Start each node in its own namespace."
                )
            for other in self._node.get_subscriptions_info_by_topic(publisher.topic_name):
                asked = unmet_request(publisher.qos_profile, other.qos_profile)
                if asked:
                    who = f"{other.node_namespace.rstrip('/')}/{other.node_name}"
                    return f"{who} asks for {asked} on {publisher.topic_name}, so it receives nothing."
        return ""

    def encode(self, products: Products, wanted: Collection[str], header: Header) -> list[tuple[str, Any]]:
        """Make the messages of these outputs, with the header of the camera image."""
        stamped = plain(header)
        return [(key, to_ros(encode(key, products, stamped))) for key in wanted]

    def publish(self, messages: Collection[tuple[str, Any]]) -> dict[str, str]:
        """Publish messages; returns the outputs that the middleware refused, with its reasons."""
        reasons = {key: try_publish(self._publishers[key], message) for key, message in messages}
        return {key: reason for key, reason in reasons.items() if reason}

    def publish_camera_info(self, camera_info: CameraInfo, header: Header) -> None:
        """Publish the camera's calibration with the header of the processed frame."""
        if self._camera_info.get_subscription_count() > 0:
            stamped = copy.copy(camera_info)
            stamped.header = header
            try_publish(self._camera_info, stamped)
