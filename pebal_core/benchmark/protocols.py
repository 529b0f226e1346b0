"""The evaluation protocols of the field and their differences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """How the main figures are computed. Each protocol reports all FPR95 definitions and all scores.

    Examples:
        >>> protocol = PROTOCOLS["pebal"]
        >>> protocol.fpr95, protocol.main_score(smoothing=True), protocol.main_score(smoothing=False)
        ('nearest', 'energy', 'energy_smoothed')
    """

    fpr95: str
    """A key of `pebal_core.metrics.pooled.FPR95_DEFINITIONS`."""
    smoothed: bool | None
    """Whether the main score, the energy, passes the 7×7 Gaussian; None means as the model publishes it."""
    components: bool
    """Whether every anomaly set gets component metrics, or only RoadAnomaly21 and RoadObstacle21, which define them."""
    sliding: bool
    """Whether mIoU is also measured with sliding windows."""

    def main_score(self, smoothing: bool) -> str:
        """Name of the main score for a model with this smoothing."""
        if self.smoothed in (None, smoothing):
            return "energy"
        return "energy_smoothed" if self.smoothed else "energy_raw"


PROTOCOLS: dict[str, Protocol] = {
    "pebal": Protocol("nearest", smoothed=True, components=False, sliding=True),
    "fishyscapes": Protocol("first_at_least", smoothed=None, components=False, sliding=False),
    "smiyc": Protocol("first_at_least", smoothed=None, components=True, sliding=False),
}
"""By name."""

SMALL_OBJECTS = ("FishyscapesLostAndFound", "LostAndFound", "RoadObstacle21")
"""Sets to which the size limits of SegmentMeIfYouCan's obstacle track apply; its anomaly track's apply to others."""
