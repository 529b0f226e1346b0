"""What the evaluations of the field do differently."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """Which figures stand for a model. All FPR95 definitions and all scores are reported under each."""

    fpr95: str
    """A key of `pebal_core.metrics.pooled.FPR95_DEFINITIONS`."""
    smoothed: bool | None
    """Whether the main score, the energy, passes the 7×7 Gaussian; None: as the model publishes it."""
    components: bool
    """Component metrics on every anomaly set; otherwise on RoadAnomaly21 and RoadObstacle21, which define them."""
    sliding: bool
    """mIoU by sliding windows too."""

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
"""Sets whose components have the size limits of SegmentMeIfYouCan's obstacles; the others those of its anomalies."""
