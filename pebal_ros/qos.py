"""The quality of service of images: keep the last, reliable or best effort; and what to do where it cannot be had."""

from __future__ import annotations

from typing import Any

from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.publisher import Publisher
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy

RELIABLE = "reliable"
BEST_EFFORT = "best_effort"


def keep_last(reliability: str, depth: int = 1) -> QoSProfile:
    """KEEP_LAST, by default of one: a queue of images is latency and nothing else."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=QoSReliabilityPolicy.RELIABLE if reliability == RELIABLE else QoSReliabilityPolicy.BEST_EFFORT,
    )


def reliability_name(profile: QoSProfile) -> str:
    """RELIABLE or BEST_EFFORT, of a profile found in the graph."""
    return BEST_EFFORT if profile.reliability == QoSReliabilityPolicy.BEST_EFFORT else RELIABLE


def try_publish(publisher: Publisher[Any], message: Any) -> bool:
    """Publish; False where the middleware could not take the message in time, because a reliable reader holds it up."""
    try:
        publisher.publish(message)
    except rclpy_implementation.RCLError:
        return False
    return True
