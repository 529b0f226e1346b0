"""The part of the image that may not alarm: the vehicle's own bonnet, and the borders that rectification leaves."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..errors import PebalError

ASPECT_TOLERANCE = 0.01
"""Relative difference of the sides' ratio up to which a mask is scaled to an image."""


class IgnoreMask:
    """A mask that follows the size of the images.

    Args:
        mask: H×W uint8, nonzero where nothing may alarm.
        name: of its file, for messages.
    """

    def __init__(self, mask: np.ndarray, name: str) -> None:
        self.mask, self.name = mask, name
        self._scaled: dict[tuple[int, int], np.ndarray] = {}

    @classmethod
    def read(cls, path: str | Path) -> IgnoreMask:
        """Read an image file; every pixel that is not black is ignored.

        Raises:
            PebalError: no such file, or no image.
        """
        content = cv2.imread(str(Path(path).expanduser()), cv2.IMREAD_GRAYSCALE)
        if content is None:
            raise PebalError(f"The ignore mask {path} is missing or no image; give a PNG that is black where to look.")
        return cls(content, str(path))

    def at(self, height: int, width: int) -> np.ndarray:
        """The mask at the size of an image, H×W bool.

        Raises:
            PebalError: the image has other proportions, so it comes from another camera.
        """
        if (height, width) not in self._scaled:
            rows, columns = self.mask.shape
            if abs(width * rows / (height * columns) - 1) > ASPECT_TOLERANCE:
                raise PebalError(
                    f"The ignore mask {self.name} is {columns}×{rows} but the images are {width}×{height}: it belongs "
                    "to another camera. Make one for this camera."
                )
            scaled = cv2.resize(self.mask, (width, height), interpolation=cv2.INTER_NEAREST)
            self._scaled = {(height, width): scaled > 0}
        return self._scaled[height, width]
