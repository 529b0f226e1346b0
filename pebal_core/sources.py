"""Frames from a video, a folder of images, one image or a webcam."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .data.scenes import IMAGE_SUFFIXES, list_images, read_image
from .errors import CutShortError, PebalError
from .model_file import user_path

COUNTING = (".mp4", ".m4v", ".mov", ".avi")
"""Containers that store their number of frames; that of others follows from duration and rate, within one percent."""
FOLDER_RATE = 10.0
"""Hz at which a folder of images is taken to have been recorded."""


@dataclass(frozen=True)
class Frame:
    """One frame and what to call it."""

    name: str
    image: np.ndarray
    """H×W×3 uint8 RGB."""


class FrameSource:
    """Iterate to get `Frame`s; opened and checked on construction.

    Args:
        source: path of a video, a folder of images or one image, or the index of a camera (``0``).

    Raises:
        PebalError: missing, unreadable or empty; while iterating, an image that cannot be read.
        CutShortError: after the last frame that could be read, if that is not the last one.
    """

    rate: float
    """Frames per second as recorded."""
    count: int | None
    """Number of frames as the container states it; None for a camera."""

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self._files: list[Path] = []
        path = user_path(source)
        self.is_camera = self.source.isdecimal() and len(self.source) <= 4 and not path.exists()
        if self.is_camera:
            self.rate, self.count = self._probe(int(self.source), "The camera"), None
        elif path.is_dir():
            self._files = list_images(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            self._files = [path]
        elif path.is_file():
            self.source = str(path)
            self.rate = self._probe(self.source, "The video")
        else:
            raise PebalError(f"The source {source} does not exist: give a video, a folder of images or a camera index.")
        if self._files:
            self._refuse_twins()
            read_image(self._files[0])
            self.rate, self.count = FOLDER_RATE, len(self._files)

    @property
    def is_video(self) -> bool:
        """Whether the frames are a sequence of one size (video or camera) rather than separate images."""
        return not self._files

    def _probe(self, source: str | int, kind: str) -> float:
        """Rate of a capture that yields at least one frame."""
        capture = cv2.VideoCapture(source)
        try:
            if not capture.isOpened() or not capture.grab():
                reason = "cannot be opened" if not capture.isOpened() else "holds no readable frame"
                raise PebalError(f"{kind} {source} {reason}; check the file or the device.")
            self.count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) or None
            rate = capture.get(cv2.CAP_PROP_FPS)
            return rate if 0 < rate <= 1000 else 30.0
        finally:
            capture.release()

    def __iter__(self) -> Iterator[Frame]:
        if self._files:
            for path in self._files:
                yield Frame(path.stem, read_image(path))
            return
        capture = cv2.VideoCapture(int(self.source) if self.is_camera else self.source)
        try:
            number = 0
            while True:
                captured, image = capture.read()
                if not captured:
                    return self._check_end(number)
                yield Frame(f"{number:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
                number += 1
        finally:
            capture.release()

    def _refuse_twins(self) -> None:
        """Frames are called by their files' names without suffixes: of two of one name, one would hide the other."""
        first: dict[str, Path] = {}
        for path in self._files:
            if first.setdefault(path.stem, path) != path:
                raise PebalError(f"{first[path.stem]} and {path} have one name; rename one of them.")

    def _check_end(self, read: int) -> None:
        """Compare the frames that were read with what the container promises."""
        if self.is_camera:
            raise CutShortError(f"The camera {self.source} gave no more after {read} frames; check the device.")
        count = self.count or 0
        tolerated = 0 if Path(self.source).suffix.lower() in COUNTING else 1 + count // 100
        if read < count - tolerated:
            raise CutShortError(
                f"The video {self.source} promises {count} frames, but only {read} can be read: it is truncated or "
                f"damaged; copy it again."
            )
