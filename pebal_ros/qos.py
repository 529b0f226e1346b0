"""The quality of service of images: keep the last, reliable or best effort; and what to do where it cannot be had."""

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
    """KEEP_LAST, by default of one: a queue of images is latency and nothing else."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=QoSReliabilityPolicy.RELIABLE if reliability == RELIABLE else QoSReliabilityPolicy.BEST_EFFORT,
    )


def create_publisher(node: Node, message_type: type, topic: str, qos: QoSProfile) -> Publisher[Any]:
    """A publisher whose history, depth and reliability the parameters `qos_overrides.TOPIC.publisher.…` override.

    Raises:
        PebalError: an override is not acceptable.
    """
    options = QoSOverridingOptions.with_default_policies()
    try:  # rclpy writes the overrides into the profile it is given
        return node.create_publisher(message_type, topic, copy.copy(qos), qos_overriding_options=options)
    except (RuntimeError, InvalidParameterTypeException) as error:
        where = f"qos_overrides.{node.resolve_topic_name(topic)}.publisher"
        raise PebalError(f"A parameter of {where} is not acceptable: {error}.") from error


def reliability_name(profile: QoSProfile) -> str:
    """RELIABLE or BEST_EFFORT, of a profile found in the graph."""
    return BEST_EFFORT if profile.reliability == QoSReliabilityPolicy.BEST_EFFORT else RELIABLE


def unmet_request(offered: QoSProfile, asked: QoSProfile) -> str:
    """What a subscription asks for beyond what a volatile publisher offers, with the remedy; "" where they match."""
    if asked.reliability == QoSReliabilityPolicy.RELIABLE and reliability_name(offered) == BEST_EFFORT:
        return f"reliable messages (output_reliability is {BEST_EFFORT})"
    if asked.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL:
        return "messages from before it came (durability transient local; images are volatile)"
    return ""


def try_publish(publisher: Publisher[Any], message: Any) -> str:
    """Publish; returns the middleware's reason where it refuses the message, else "".

    It refuses what it cannot take within its blocking time because a reliable reader holds it up, and what its
    transport or its history has no room for.
    """
    try:
        publisher.publish(message)
    except RuntimeError as error:  # rclpy's RCLError among them; Fast DDS's own exceptions arrive as a bare one
        return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    return ""
