"""Quality of service of image topics, which keep the last messages and are reliable or best effort."""

from __future__ import annotations

import copy
from typing import Any

from rclpy.exceptions import InvalidParameterTypeException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

from pebal_core.errors import PebalError

RELIABLE = "reliable"
BEST_EFFORT = "best_effort"


def keep_last(reliability: str, depth: int = 1) -> QoSProfile:
    """A KEEP_LAST profile with a depth of one by default, because a queue of images only adds latency."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=QoSReliabilityPolicy.RELIABLE if reliability == RELIABLE else QoSReliabilityPolicy.BEST_EFFORT,
    )


def create_publisher(node: Node, message_type: type, topic: str, qos: QoSProfile) -> Publisher[Any]:
    """Create a publisher whose history, depth and reliability `qos_overrides.TOPIC.publisher.…` can override.

    Raises:
        PebalError: an override is invalid.
    """
    options = QoSOverridingOptions.with_default_policies()
    try:  # rclpy writes the overrides into the given profile, hence the copy
        return node.create_publisher(message_type, topic, copy.copy(qos), qos_overriding_options=options)
    except (RuntimeError, InvalidParameterTypeException) as error:
        where = f"qos_overrides.{node.resolve_topic_name(topic)}.publisher"
        raise PebalError(f"A parameter of {where} is invalid: {error}.") from error


def reliability_name(profile: QoSProfile) -> str:
    """The reliability, RELIABLE or BEST_EFFORT, of a profile found in the ROS graph."""
    return BEST_EFFORT if profile.reliability == QoSReliabilityPolicy.BEST_EFFORT else RELIABLE


def unmet_request(offered: QoSProfile, asked: QoSProfile) -> str:
    """The request of a subscription that a volatile publisher does not meet, with the cause; "" if they match."""
    if asked.reliability == QoSReliabilityPolicy.RELIABLE and reliability_name(offered) == BEST_EFFORT:
        return f"reliable messages (output_reliability is {BEST_EFFORT})"
    if asked.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL:
        return "messages that were sent before it subscribed (durability transient local; images are volatile)"
    return ""


def try_publish(publisher: Publisher[Any], message: Any) -> str:
    """Publish a message; returns the middleware's reason if it refuses the message, else "".

    The middleware refuses a message if a slow reliable reader blocks it for too long, or if its transport or its
    history has no room for the message.
    """
    try:
        publisher.publish(message)
    except RuntimeError as error:  # rclpy's RCLError is one; exceptions of Fast DDS arrive as plain RuntimeError
        return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    return ""
