"""Masks for pixels that must not alarm, such as the vehicle's own bonnet and the borders left by rectification."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np

from ..errors import PebalError
from ..files import decode_pixels, read_pixels, user_path

LONG_SIDE = 480
"""Longer side in pixels of an encoded mask, which is finer than the network's output and takes a few kilobytes."""

ASPECT_TOLERANCE = 0.01
"""Largest relative difference in aspect ratio between a mask and an image to which it is scaled."""


class IgnoreMask:
    """A mask that is scaled to the size of the images.

    Args:
        mask: H×W bool or uint8, nonzero where nothing may alarm.
        name: name of the mask for messages, such as "The ignore mask bonnet.png".

    Examples:
        >>> mask = IgnoreMask(np.eye(4, dtype=bool), "The mask")
        >>> IgnoreMask.decode(mask.encode()).at(8, 8).shape
        (8, 8)
    """

    def __init__(self, mask: np.ndarray, name: str) -> None:
        self.mask, self.name = np.where(mask, 255, 0).astype(np.uint8), name
        self._scaled: dict[tuple[int, int], np.ndarray] = {}

    @classmethod
    def read(cls, path: str | Path) -> IgnoreMask:
        """Read an image file; every pixel that is not black is ignored.

        Raises:
            PebalError: the file is missing or no image, or it would ignore every pixel.
        """
        content = read_pixels(user_path(path), cv2.IMREAD_GRAYSCALE)
        if content is None:
            raise PebalError(
                f"The ignore mask {path} is missing or is not an image; use a PNG that is black where alarms are "
                "allowed."
            )
        if content.all():
            raise PebalError(
                f"The ignore mask {path} has no black pixel, so nothing would ever alarm. Make it black where alarms "
                "are allowed."
            )
        return cls(content, f"The ignore mask {path}")

    @classmethod
    def decode(cls, text: str) -> IgnoreMask | None:
        """Decode the mask of a model file (`ModelInfo.ego_mask`); None for an empty text.

        Raises:
            PebalError: the text is no PNG in base64.
        """
        if not text:
            return None
        try:
            pixels = decode_pixels(base64.b64decode(text, validate=True), cv2.IMREAD_GRAYSCALE)
        except ValueError:
            pixels = None
        if pixels is None:
            raise PebalError("The ego mask in the model file is damaged; adapt or calibrate the model again.")
        return cls(pixels, "The ego mask in the model file")

    def encode(self) -> str:
        """Encode the mask as PNG in base64, scaled down to `LONG_SIDE`; a pixel is ignored if any part of it is."""
        mask: np.ndarray = self.mask
        factor = LONG_SIDE / max(self.mask.shape)
        if factor < 1:
            size = max(1, round(mask.shape[1] * factor)), max(1, round(mask.shape[0] * factor))
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
        return base64.b64encode(cv2.imencode(".png", np.where(mask, 255, 0).astype(np.uint8))[1].tobytes()).decode()

    @property
    def share(self) -> float:
        """Share of the image that is ignored, in [0, 1]."""
        return float(np.count_nonzero(self.mask)) / self.mask.size

    def at(self, height: int, width: int) -> np.ndarray:
        """Scale the mask to the size of an image, H×W bool.

        Raises:
            PebalError: the image has another aspect ratio, so it comes from another camera.
        """
        if (height, width) not in self._scaled:
            rows, columns = self.mask.shape
            if abs(width * rows / (height * columns) - 1) > ASPECT_TOLERANCE:
                raise PebalError(
                    f"{self.name} is {columns}×{rows} but the images are {width}×{height}, so it belongs to another "
                    "camera. Make one for this camera."
                )
            scaled = cv2.resize(self.mask, (width, height), interpolation=cv2.INTER_NEAREST)
            self._scaled = {(height, width): scaled > 0}
        return self._scaled[height, width]
