"""The registry of outputs, and the results of a frame from which they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .. import render
from ..detector import Result
from . import messages
from .messages import Message
from .settings import PictureSettings
from .sighting import Sighting


class Products:
    """All results for one image, each of which is computed on first use.

    Args:
        image: the camera image, H×W×3 uint8 RGB.
        result: labels and energy of the detector.
        settings: settings of the images.
        palette: RGB per class.
        sight: function that finds the objects; it is called at most once, and never without a threshold.

    Examples:
        >>> result = Result(np.zeros((1, 2), np.uint8), np.array([[-10, -2]], np.float32))
        >>> settings = PictureSettings(threshold=-4.0, score_min=-12.0, score_max=0.0, overlay_alpha=0.8)
        >>> image, nothing = np.zeros((1, 2, 3), np.uint8), Sighting([], [], [], None, "base_footprint")
        >>> products = Products(image, result, settings, [[128, 64, 128]], lambda: nothing)
        >>> products.score.tolist(), products.mask.tolist()
        ([[42, 212]], [[0, 255]])
    """

    def __init__(
        self,
        image: np.ndarray,
        result: Result,
        settings: PictureSettings,
        palette: Sequence[Sequence[int]],
        sight: Callable[[], Sighting],
    ) -> None:
        self._image, self._result, self._settings, self._palette = image, result, settings, palette
        self._sight = sight

    @property
    def labels(self) -> np.ndarray:
        """H×W uint8, the predicted classes."""
        return self._result.labels

    @property
    def energy(self) -> np.ndarray:
        """H×W float32 in nats."""
        return self._result.energy

    @cached_property
    def score(self) -> np.ndarray:
        """H×W uint8, the energy scaled to the limits of the score."""
        return render.score_map(self.energy, self._settings.score_min, self._settings.score_max)

    @cached_property
    def mask(self) -> np.ndarray:
        """H×W uint8, 255 where the energy reaches the threshold, else 0."""
        assert self._settings.threshold is not None, "without a threshold nobody asks for the mask"
        return (self.energy >= self._settings.threshold).view(np.uint8) * np.uint8(255)

    @cached_property
    def overlay(self) -> np.ndarray:
        """H×W×3 uint8 RGB, the camera image with a heat map and the objects."""
        picture = render.overlay(self._image, self.score, self._settings.overlay_alpha)
        return picture if self._settings.threshold is None else render.draw_objects(picture, self.sighting.objects)

    @cached_property
    def label_colors(self) -> np.ndarray:
        """H×W×3 uint8 RGB, the labels in the palette's colours."""
        return render.label_colors(self.labels, self._palette)

    @cached_property
    def sighting(self) -> Sighting:
        """The objects of the frame."""
        return self._sight()


@dataclass(frozen=True)
class Output:
    """An output and its encoding as a message."""

    type: str
    """Type of its message."""
    encode: Callable[[Products, Message], Message]
    """Function that makes the message; the second argument is the header of the camera image."""
    compress: Callable[[Products, Message], Message] | None = None
    """Function that makes the message of the compressed topic; None if there is no such topic."""
    needs_threshold: bool = False
    """Whether the output exists only with a threshold."""


def _image(name: str, encoding: str, codec: str = "", needs_threshold: bool = False) -> Output:
    """Make an output of pixels; label ids are never compressed as JPEG, which would blend them."""
    return Output(
        messages.IMAGE,
        lambda products, header: messages.image(getattr(products, name), encoding, header),
        (lambda products, header: messages.compressed(getattr(products, name), codec, header)) if codec else None,
        needs_threshold,
    )


OUTPUTS: dict[str, Output] = {
    "labels": _image("labels", "mono8", "png"),
    "energy": _image("energy", "32FC1"),
    "score": _image("score", "mono8", "png"),
    "mask": _image("mask", "mono8", "png", needs_threshold=True),
    "overlay": _image("overlay", "rgb8", "jpeg"),
    "label_colors": _image("label_colors", "rgb8", "jpeg"),
    "objects": Output(messages.DETECTIONS, lambda p, h: messages.detections(p.sighting, h), needs_threshold=True),
    "obstacles": Output(messages.CLOUD, lambda p, h: messages.obstacles(p.sighting, h), needs_threshold=True),
    "markers": Output(messages.MARKERS, lambda p, h: messages.markers(p.sighting, h), needs_threshold=True),
}
"""All outputs, by their names in the node's parameter `outputs`."""

SERIES: dict[str, Output] = {
    "peak_energy": Output("std_msgs/msg/Float32", lambda p, _: messages.number(float(p.energy.max()))),
    "alarm_share": Output(
        "std_msgs/msg/Float32", lambda p, _: messages.number(float((p.mask != 0).mean())), needs_threshold=True
    ),
    "confirmed_objects": Output(
        "std_msgs/msg/Float32", lambda p, _: messages.number(len(p.sighting.confirmed)), needs_threshold=True
    ),
}
"""Numbers per frame for plots of a recording, which are the highest energy in nats, the share of pixels at or above the
threshold, and the number of confirmed objects."""


def encode(key: str, products: Products, header: Message) -> Message:
    """Make the message of an output ``NAME``, of its compressed form ``NAME/compressed``, or of a series.

    Examples:
        >>> result = Result(np.zeros((1, 2), np.uint8), np.array([[-10, -2]], np.float32))
        >>> settings = PictureSettings(threshold=-4.0, score_min=-12.0, score_max=0.0, overlay_alpha=0.8)
        >>> image, nothing = np.zeros((1, 2, 3), np.uint8), Sighting([], [], [], None, "base_footprint")
        >>> products = Products(image, result, settings, [[128, 64, 128]], lambda: nothing)
        >>> encode("peak_energy", products, messages.header(0, "camera")).fields
        {'data': -2.0}
    """
    name, _, twin = key.partition("/")
    output = OUTPUTS[name] if name in OUTPUTS else SERIES[name]
    make = output.compress if twin else output.encode
    assert make is not None, "only what has a compressed twin is asked for one"
    return make(products, header)
