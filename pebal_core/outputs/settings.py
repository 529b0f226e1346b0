"""Settings of the images that are made of a frame."""

from __future__ import annotations

from dataclasses import dataclass

from ..model_info import ModelInfo

OVERLAY_ALPHA = 0.8


@dataclass(frozen=True)
class PictureSettings:
    """Settings of the images, after the defaults of the model file are applied.

    Examples:
        >>> PictureSettings.of_model(ModelInfo("deeplabv3plus", threshold=-4.0, energy_range=[-12.0, 0.0]))
        PictureSettings(threshold=-4.0, score_min=-12.0, score_max=0.0, overlay_alpha=0.8)
    """

    threshold: float | None
    """Alarm threshold in nats; None if there is none, so that there are neither mask nor objects."""
    score_min: float
    """Energy in nats that is displayed as score 0."""
    score_max: float
    """Energy in nats that is displayed as score 255."""
    overlay_alpha: float
    """Opacity of the overlay where the score is highest."""

    @classmethod
    def of_model(cls, info: ModelInfo, threshold: float | None = None) -> PictureSettings:
        """The node's default settings for a model; `threshold` is in nats, and None takes the model's."""
        low, high = info.energy_range
        return cls(info.threshold if threshold is None else threshold, low, high, OVERLAY_ALPHA)
