"""What the pictures of a frame depend on besides the frame."""

from __future__ import annotations

from dataclasses import dataclass

from ..model_file import ModelInfo

OVERLAY_ALPHA = 0.8


@dataclass(frozen=True)
class PictureSettings:
    """Settings of the pictures, with everything resolved that a model file can say."""

    threshold: float | None
    """Nats; None: the model stores none and none was given, so there is neither mask nor objects."""
    score_min: float
    """Nats shown as score 0."""
    score_max: float
    """Nats shown as score 255."""
    overlay_alpha: float
    """Opacity of the hottest places of the overlay."""

    @classmethod
    def of_model(cls, info: ModelInfo, threshold: float | None = None) -> PictureSettings:
        """What the node takes where no parameter is given; `threshold` in nats, None: the model's."""
        low, high = info.energy_range
        return cls(info.threshold if threshold is None else threshold, low, high, OVERLAY_ALPHA)
