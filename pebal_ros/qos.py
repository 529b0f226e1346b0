"""The quality of service of images: keep the last, reliable or best effort."""

from __future__ import annotations

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
