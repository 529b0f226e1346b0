"""What the node publishes for one camera: each output computed once, and only if somebody listens."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from pebal_core import render
from pebal_core.detector import Result

from .images import RgbImage, to_compressed, to_message
from .parameters import Settings
from .qos import create_publisher, try_publish, unmet_request


class Products:
    """Every picture that can be made of one image and its result, each made when first asked for.

    Args:
        image: H×W×3 RGB as the camera sent it.
        result: labels and energy of the detector.
        palette: RGB per class.
    """

    def __init__(self, image: RgbImage, result: Result, settings: Settings, palette: Sequence[Sequence[int]]) -> None:
        self._image, self._result, self._settings, self._palette = image, result, settings, palette

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
        return render.overlay(self._image, self.score, self._settings.overlay_alpha)

    @cached_property
    def label_colors(self) -> RgbImage:
        return render.label_colors(self.labels, self._palette)


@dataclass(frozen=True)
class Format:
    """How an output travels."""

    encoding: str
    codec: str | None
    """Of its compressed twin; None: there is none. Label ids never travel as JPEG, which would blend them."""


FORMATS: dict[str, Format] = {
    "labels": Format("mono8", "png"),
    "energy": Format("32FC1", None),
    "score": Format("mono8", "png"),
    "mask": Format("mono8", "png"),
    "overlay": Format("rgb8", "jpeg"),
    "label_colors": Format("rgb8", "jpeg"),
}


class CameraOutputs:
    """The publishers of one camera.

    Args:
        prefix: "" or the camera's name and a slash.
        names: the outputs that are offered.
        qos: offered on all of them.
    """

    def __init__(self, node: Node, prefix: str, names: Sequence[str], qos: QoSProfile) -> None:
        self._node = node
        self._publishers: dict[str, Publisher[Any]] = {}
        for name in names:
            # Like image_transport: the suffix follows the name after remapping.
            topic = node.resolve_topic_name(prefix + name)
            self._publishers[name] = create_publisher(node, Image, topic, qos)
            if FORMATS[name].codec:
                self._publishers[f"{name}/compressed"] = create_publisher(
                    node, CompressedImage, f"{topic}/compressed", qos
                )
        self._camera_info = create_publisher(node, CameraInfo, f"{prefix}camera_info_out", qos)

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
            and (settings.threshold is not None or name.partition("/")[0] != "mask")
        ]

    def complaint(self) -> str:
        """A sentence on a subscriber that no message can reach, or on another node that publishes the same; else ""."""
        for publisher in (*self._publishers.values(), self._camera_info):
            if self._node.count_publishers(publisher.topic_name) > 1:
                return f"{publisher.topic_name} is published by another node as well: give each a namespace of its own."
            for other in self._node.get_subscriptions_info_by_topic(publisher.topic_name):
                asked = unmet_request(publisher.qos_profile, other.qos_profile)
                if asked:
                    who = f"{other.node_namespace.rstrip('/')}/{other.node_name}"
                    return f"{who} asks for {asked} on {publisher.topic_name}, so nothing can reach it."
        return ""

    def encode(
        self, products: Products, wanted: Collection[str], header: Header
    ) -> list[tuple[str, Image | CompressedImage]]:
        """Messages of these outputs, with the camera image's stamp and frame."""
        messages: list[tuple[str, Image | CompressedImage]] = []
        for key in wanted:
            name, _, compressed = key.partition("/")
            form = FORMATS[name]
            pixels = getattr(products, name)
            if compressed:
                assert form.codec is not None
                messages.append((key, to_compressed(pixels, form.codec, header)))
            else:
                messages.append((key, to_message(pixels, form.encoding, header)))
        return messages

    def publish(self, messages: Collection[tuple[str, Image | CompressedImage]]) -> dict[str, str]:
        """Publish; returns the outputs that the middleware refused, with its reason."""
        reasons = {key: try_publish(self._publishers[key], message) for key, message in messages}
        return {key: reason for key, reason in reasons.items() if reason}

    def publish_camera_info(self, camera_info: CameraInfo, header: Header) -> None:
        """The camera's calibration with the stamp of the frame that was answered."""
        if self._camera_info.get_subscription_count() > 0:
            stamped = copy.copy(camera_info)
            stamped.header = header
            try_publish(self._camera_info, stamped)
