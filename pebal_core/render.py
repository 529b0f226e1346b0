"""Renders energies, labels and objects as images and videos."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from .errors import PebalError
from .objects import RoadObject

CONFIRMED_COLOR, CANDIDATE_COLOR = (0, 255, 255), (160, 160, 160)
"""RGB of the outlines of confirmed objects and of objects that are not confirmed yet."""


def score_map(energy: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map energies H×W in nats linearly to H×W uint8, with ``low`` and below as 0 and ``high`` and above as 255.

    Examples:
        >>> score_map(np.array([[-20.0, -12.0, 0.0]]), -15.0, 0.0).tolist()
        [[0, 51, 255]]
    """
    return cv2.convertScaleAbs(np.clip(energy, low, high) - low, alpha=255 / (high - low))


def overlay(image: np.ndarray, score: np.ndarray, alpha: float = 0.8) -> np.ndarray:
    """Blend a camera image (H×W×3 RGB) with a heat map of the score (H×W uint8).

    The opacity of the heat map rises with the score, up to ``alpha``. Where nothing is anomalous, the image is
    unchanged.

    Examples:
        >>> grey = np.full((1, 2, 3), 100, np.uint8)
        >>> overlay(grey, np.array([[0, 255]], np.uint8)).tolist()  # the second pixel is anomalous
        [[[100, 100, 100], [224, 224, 224]]]
    """
    opacity = _opacity(alpha)
    picture = np.array(image)
    x, y, width, height = cv2.boundingRect((score >= np.argmax(opacity > 0)).view(np.uint8))
    if width:
        heat = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_HOT).reshape(-1, 3)[:, ::-1]
        kept, added = np.repeat(255 - opacity[:, None], 3, axis=1), np.round(heat * (opacity[:, None] / 255))
        part = picture[y : y + height, x : x + width]
        scores = cv2.merge([score[y : y + height, x : x + width]] * 3)
        cv2.multiply(part, cv2.LUT(scores, kept[None]), dst=part, scale=1 / 255)
        cv2.add(part, cv2.LUT(scores, added.astype(np.uint8)[None]), dst=part)
    return picture


def draw_objects(picture: np.ndarray, objects: Sequence[RoadObject]) -> np.ndarray:
    """Draw the outlines of all objects, and number and distance of the confirmed ones, into an image H×W×3 RGB.

    Examples:
        >>> from pebal_core.objects import ObjectRules, find_objects
        >>> energy, road = np.full((60, 80), -10, np.float32), np.zeros((60, 80), np.uint8)
        >>> energy[30:45, 20:40] = -2
        >>> objects = find_objects(energy, road, ObjectRules(threshold=-4, grow=-5)).objects
        >>> picture = draw_objects(np.zeros((60, 80, 3), np.uint8), objects)
        >>> picture[30, 20].tolist()  # on the outline of an object that is not confirmed yet
        [160, 160, 160]
    """
    picture = np.ascontiguousarray(picture)
    thickness = max(1, round(picture.shape[1] / 640))
    size = max(0.4, picture.shape[1] / 1600)
    for found in objects:
        color = CONFIRMED_COLOR if found.confirmed else CANDIDATE_COLOR
        cv2.drawContours(picture, [found.contour], -1, color, thickness if found.confirmed else 1)
        if found.confirmed:
            x, y = found.box[0], max(found.box[1] - 4, round(24 * size))
            for stroke, ink in ((3 * thickness, (0, 0, 0)), (thickness, color)):
                cv2.putText(picture, found.caption, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, ink, stroke, cv2.LINE_AA)
    return picture


def _opacity(alpha: float) -> np.ndarray:
    """Opacity (0–255) by score, which is zero below a quarter of the range and then rises linearly."""
    share = np.clip((np.arange(256) / 255 - 0.25) / 0.5, 0, 1)
    return (255 * alpha * share).astype(np.uint8)


def label_colors(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Map labels H×W uint8 to colours H×W×3 uint8 RGB; ids outside the palette are black.

    Examples:
        >>> label_colors(np.array([[0, 1, 255]], np.uint8), [[128, 64, 128], [244, 35, 232]]).tolist()
        [[[128, 64, 128], [244, 35, 232], [0, 0, 0]]]
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table[labels]


class VideoWriter:
    """Writes a video of RGB frames, whose size follows from the first; the complete file appears when it is closed.

    Args:
        path: the file to write.
        rate: frames per second.
        codec: ``mp4v`` for .mp4, or ``VP80`` for .webm.

    Raises:
        PebalError: the file cannot be written, or a frame differs in size from the first.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     video = VideoWriter(Path(folder) / "grey.mp4", rate=10)
        ...     for _ in range(5):
        ...         video.write(np.full((48, 64, 3), 128, np.uint8))
        ...     video.close()
        ...     cv2.VideoCapture(str(video.path)).get(cv2.CAP_PROP_FRAME_COUNT)
        5.0
    """

    def __init__(self, path: Path, rate: float, codec: str = "mp4v") -> None:
        self.path, self.rate, self.codec = path, rate, codec
        self.shape: tuple[int, ...] = ()
        """Shape of the first frame; empty before it is written."""
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._count = 0

    def write(self, image: np.ndarray) -> None:
        """Add a frame, H×W×3 uint8 RGB."""
        if self._writer is None:
            self.shape, size = image.shape, (image.shape[1], image.shape[0])
            with _silent():  # OpenCV prints a warning about the container's name for VP80
                self._writer = cv2.VideoWriter(str(self._part), cv2.VideoWriter.fourcc(*self.codec), self.rate, size)
            if not self._writer.isOpened():
                raise PebalError(f"The video {self.path} cannot be written; choose another folder.")
        if image.shape != self.shape:
            raise PebalError(f"The frames of {self.path} change size from {self.shape} to {image.shape}.")
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self._count += 1

    def close(self) -> None:
        """Finish the video and move it to its path; does nothing without frames."""
        if self._writer is None:
            return
        self._writer.release()
        if self._readable() != self._count:  # OpenCV does not report a full disk
            self._part.unlink(missing_ok=True)
            raise PebalError(f"The video {self.path} could not be written; free space or choose another place.")
        self._part.replace(self.path)

    def _readable(self) -> int:
        """Number of readable frames in the file; an .mp4 stores it at its end, and for a .webm they are counted."""
        with _silent():
            capture = cv2.VideoCapture(str(self._part))
            found = 0
            if self.codec == "mp4v":
                found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
            else:
                while capture.grab():
                    found += 1
            capture.release()
        return found


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress everything that libraries write to the standard error."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
