"""The one quality of service that images have here: keep the last, reliable or best effort."""

from __future__ import annotations

from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy

RELIABLE = "reliable"
BEST_EFFORT = "best_effort"


def keep_last(reliability: str) -> QoSProfile:
    """KEEP_LAST 1: a queue of images is latency and nothing else."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=QoSReliabilityPolicy.RELIABLE if reliability == RELIABLE else QoSReliabilityPolicy.BEST_EFFORT,
    )


def reliability_name(profile: QoSProfile) -> str:
    """RELIABLE or BEST_EFFORT, of a profile found in the graph."""
    return BEST_EFFORT if profile.reliability == QoSReliabilityPolicy.BEST_EFFORT else RELIABLE
