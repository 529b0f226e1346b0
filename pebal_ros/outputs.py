"""What the node publishes for one camera: each output computed once, and only if somebody listens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header
from visualization_msgs.msg import MarkerArray

from pebal_core import render
from pebal_core.detector import Result
from pebal_core.footage.ros_images import RgbImage

from . import object_messages
from .images import to_compressed, to_message
from .object_messages import Sighting, detections, markers, obstacles
from .parameters import Settings
from .qos import try_publish, unmet_request


class Products:
    """Everything that can be made of one image and its result, each made when first asked for.

    Args:
        image: H×W×3 RGB as the camera sent it.
        result: labels and energy of the detector.
        palette: RGB per class.
        sight: finds the objects; called at most once, and never without a threshold.
    """

    def __init__(
        self,
        image: RgbImage,
        result: Result,
        settings: Settings,
        palette: Sequence[Sequence[int]],
        sight: Callable[[], Sighting],
    ) -> None:
        self._image, self._result, self._settings, self._palette = image, result, settings, palette
        self._sight = sight

    @property
    def labels(self) -> np.ndarray:
        return self._result.labels

    @property
    def energy(self) -> np.ndarray:
        return self._result.energy

    @cached_property
    def score(self) -> np.ndarray:
        return render.score_map(self.energy, self._settings.score_min, self._settings.score_max)

    @cached_property
    def mask(self) -> np.ndarray:
        assert self._settings.threshold is not None, "without a threshold nobody asks for the mask"
        return (self.energy >= self._settings.threshold).view(np.uint8) * np.uint8(255)

    @cached_property
    def overlay(self) -> RgbImage:
        picture = render.overlay(self._image, self.score, self._settings.overlay_alpha)
        return picture if self._settings.threshold is None else render.draw_objects(picture, self.sighting.objects)

    @cached_property
    def label_colors(self) -> RgbImage:
        return render.label_colors(self.labels, self._palette)

    @cached_property
    def sighting(self) -> Sighting:
        return self._sight()


@dataclass(frozen=True)
class Output:
    """How an output is made and how it travels."""

    message_type: type[Any] | None
    """None: its package is not installed."""
    encode: Callable[[Products, Header], Any]
    """Makes the message."""
    compress: Callable[[Products, Header], CompressedImage] | None = None
    """Makes the message of its compressed twin; None: there is none."""
    needs_threshold: bool = False


def _image(name: str, encoding: str, codec: str = "", needs_threshold: bool = False) -> Output:
    """An output of pixels; label ids never travel as JPEG, which would blend them."""
    return Output(
        Image,
        lambda products, header: to_message(getattr(products, name), encoding, header),
        (lambda products, header: to_compressed(getattr(products, name), codec, header)) if codec else None,
        needs_threshold,
    )


OUTPUTS: dict[str, Output] = {
    "labels": _image("labels", "mono8", "png"),
    "energy": _image("energy", "32FC1"),
    "score": _image("score", "mono8", "png"),
    "mask": _image("mask", "mono8", "png", needs_threshold=True),
    "overlay": _image("overlay", "rgb8", "jpeg"),
    "label_colors": _image("label_colors", "rgb8", "jpeg"),
    "objects": Output(
        object_messages.DETECTIONS, lambda p, header: detections(p.sighting, header), needs_threshold=True
    ),
    "obstacles": Output(PointCloud2, lambda p, header: obstacles(p.sighting, header), needs_threshold=True),
    "markers": Output(MarkerArray, lambda p, header: markers(p.sighting, header), needs_threshold=True),
}
"""Every output by its name in the parameter `outputs`."""


class CameraOutputs:
    """The publishers of one camera.

    Args:
        prefix: "" or the camera's name and a slash.
        names: the outputs that are offered.
        qos: offered on all of them.
    """

    def __init__(self, node: Node, prefix: str, names: Sequence[str], qos: QoSProfile) -> None:
        self._node, self._qos = node, qos
        self._publishers: dict[str, Publisher[Any]] = {}
        for name in names:
            output = OUTPUTS[name]
            if output.message_type is None:
                node.get_logger().info(f"{name} is not published: there is no vision_msgs.", once=True)
                continue
            # Like image_transport: the suffix follows the name after remapping.
            topic = node.resolve_topic_name(prefix + name)
            self._publishers[name] = node.create_publisher(output.message_type, topic, qos)
            if output.compress is not None:
                self._publishers[f"{name}/compressed"] = node.create_publisher(
                    CompressedImage, f"{topic}/compressed", qos
                )
        self._camera_info = node.create_publisher(CameraInfo, f"{prefix}camera_info_out", qos)

    def destroy(self) -> None:
        for publisher in (*self._publishers.values(), self._camera_info):
            self._node.destroy_publisher(publisher)

    def heard(self, name: str) -> bool:
        """Whether somebody subscribes to this output, raw or compressed."""
        return any(
            publisher.get_subscription_count() > 0
            for key, publisher in self._publishers.items()
            if key.partition("/")[0] == name
        )

    def wanted(self, settings: Settings) -> list[str]:
        """Outputs that somebody subscribes to and that can be made."""
        return [
            name
            for name, publisher in self._publishers.items()
            if publisher.get_subscription_count() > 0
            and (settings.threshold is not None or not OUTPUTS[name.partition("/")[0]].needs_threshold)
        ]

    def complaint(self) -> str:
        """A sentence on a subscriber that no message can reach, or on another node that publishes the same; else ""."""
        for publisher in (*self._publishers.values(), self._camera_info):
            if self._node.count_publishers(publisher.topic_name) > 1:
                return f"{publisher.topic_name} is published by another node as well: give each a namespace of its own."
            for other in self._node.get_subscriptions_info_by_topic(publisher.topic_name):
                asked = unmet_request(self._qos, other.qos_profile)
                if asked:
                    who = f"{other.node_namespace.rstrip('/')}/{other.node_name}"
                    return f"{who} asks for {asked} on {publisher.topic_name}, so nothing can reach it."
        return ""

    def encode(self, products: Products, wanted: Collection[str], header: Header) -> list[tuple[str, Any]]:
        """Messages of these outputs, with the camera image's stamp and frame."""
        messages = []
        for key in wanted:
            name, _, compressed = key.partition("/")
            make = OUTPUTS[name].compress if compressed else OUTPUTS[name].encode
            assert make is not None, "only what has a compressed twin has a publisher for it"
            messages.append((key, make(products, header)))
        return messages

    def publish(self, messages: Collection[tuple[str, Any]]) -> dict[str, str]:
        """Publish; returns the outputs that the middleware refused, with its reason."""
        reasons = {key: try_publish(self._publishers[key], message) for key, message in messages}
        return {key: reason for key, reason in reasons.items() if reason}

    def publish_camera_info(self, camera_info: CameraInfo, header: Header) -> None:
        """The camera's calibration with the stamp of the frame that was answered."""
        if self._camera_info.get_subscription_count() > 0:
            stamped = copy.copy(camera_info)
            stamped.header = header
            try_publish(self._camera_info, stamped)
