"""Reads frames from a video, a recording, a folder of images, one image or a webcam."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data.scenes import IMAGE_SUFFIXES, list_images, read_image
from ..errors import CutShortError, PebalError
from ..files import user_path
from ..objects import CameraModel
from .bags import BagImages, is_recording

SLACK = 2.0
"""Largest drift in seconds between time stamps and recording times within a recording."""
COUNTING = (".mp4", ".m4v", ".mov", ".avi")
"""Containers that store their number of frames; for others it follows from duration and rate, within one percent."""
FOLDER_RATE = 10.0
"""Frame rate in hertz that is assumed for a folder of images."""


@dataclass(frozen=True)
class Recorded:
    """The message from which a frame was decoded."""

    message: Any
    """The sensor_msgs Image or CompressedImage message."""
    topic: str
    log_ns: int
    """Recording time in nanoseconds since the epoch."""

    @property
    def stamp_ns(self) -> int:
        """Time stamp of the camera in nanoseconds; 0 if the camera sets none."""
        stamp = self.message.header.stamp
        return stamp.sec * 1_000_000_000 + stamp.nanosec


@dataclass(frozen=True)
class Frame:
    """One frame with its name and time."""

    name: str
    """Unique name within the source, which can serve as a file name."""
    image: np.ndarray
    """H×W×3 uint8 RGB."""
    seconds: float
    """Time since the first frame; for videos, folders and webcams it follows from the frame rate."""
    recorded: Recorded | None = None
    """The message, if the frame comes from a recording."""


class FrameSource:
    """A source of frames, which is opened and checked on construction; iteration yields `Frame`s.

    Args:
        source: path of a video, a recording (rosbag2 folder, .mcap, .db3 or ROS 1 .bag), a folder of images or one
            image, or the index of a camera (``0``).
        topic: name or type of the image topic in a recording; empty for the only one.

    Raises:
        PebalError: the source is missing, unreadable or empty, or the recording has no such topic; during iteration, an
            image cannot be read.
        CutShortError: the source ends early; it is raised after the last readable frame.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in range(2):
        ...         _ = cv2.imwrite(f"{folder}/{number}.png", np.zeros((48, 64, 3), np.uint8))
        ...     [(frame.name, frame.seconds, frame.image.shape) for frame in FrameSource(folder)]
        [('0', 0.0, (48, 64, 3)), ('1', 0.1, (48, 64, 3))]
    """

    rate: float
    """Frames per second as recorded."""
    count: int | None
    """Number of frames according to the container; None for a camera."""

    def __init__(self, source: str | Path, topic: str = "") -> None:
        self.source = str(source)
        self._files: list[Path] = []
        self._bag: BagImages | None = None
        path = user_path(source)
        self.is_camera = self.source.isdecimal() and len(self.source) <= 4 and not path.exists()
        if topic and not is_recording(path):
            raise PebalError(f"The topic {topic} was requested, but {source} is not a recording. Leave the topic out.")
        if self.is_camera:
            self.rate, self.count = _probe(int(self.source), "The camera")[0], None
        elif is_recording(path):
            self._bag = BagImages(path, topic)
            self.rate, self.count = self._bag.rate, self._bag.count
        elif path.is_dir():
            self._files = list_images(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            self._files = [path]
        elif path.is_file():
            self.source = str(path)
            self.rate, self.count = _probe(self.source, "The video")
        else:
            raise PebalError(
                f"The source {source} does not exist. Name a video, a recording, a folder of images or a camera index."
            )
        if self._files:
            self._refuse_twins()
            read_image(self._files[0])
            self.rate, self.count = FOLDER_RATE, len(self._files)

    @property
    def is_video(self) -> bool:
        """Whether the frames are a sequence (video, recording or camera) rather than separate images."""
        return not self._files

    @property
    def topics(self) -> list[str]:
        """The chosen image topic of a recording; empty for other sources."""
        return [self._bag.topic] if self._bag is not None else []

    @property
    def prefix(self) -> str:
        """Prefix of this camera's ROS topics, taken from the image topic of a recording; ``/`` for other sources."""
        return self._bag.prefix if self._bag is not None else "/"

    @property
    def skipped(self) -> int:
        """Number of malformed images that the last iteration skipped; the first of them were logged individually."""
        return self._bag.skipped if self._bag is not None else 0

    def calibration(self) -> CameraModel:
        """The camera's calibration, as recorded beside its images.

        Raises:
            PebalError: the source is no recording, or it holds no calibration.
        """
        if self._bag is None:
            raise PebalError(
                f"{self.source} is not a recording and contains no calibration. Pass a calibration file of its camera."
            )
        info = self._bag.camera_info()
        # ROS 1 spells both field names in capitals.
        matrix, distortion = (
            np.array(getattr(info, name if hasattr(info, name) else name.upper())) for name in ("k", "d")
        )
        return CameraModel(info.width, info.height, matrix.reshape(3, 3), distortion, info.distortion_model)

    def __iter__(self) -> Iterator[Frame]:
        if self._bag is not None:
            return self._recorded(self._bag, self._bag)
        return self._listed(0) if self._files else self._captured(0)

    def between(self, begin: float, end: float) -> Iterator[Frame]:
        """Yield the frames between two times in seconds since the first frame; earlier frames are not decoded."""
        number = max(0, math.ceil(begin * self.rate - 1e-6))
        if self._bag is not None:
            logged = self._bag.first[1]
            earliest, latest = (logged + round(second * 1e9) for second in (begin - SLACK, end + SLACK))
            frames = self._recorded(self._bag, self._bag.between(max(earliest, 0), latest))
        else:
            frames = self._listed(number) if self._files else self._captured(number)
        for frame in frames:
            if begin <= frame.seconds <= end:
                yield frame
            elif frame.seconds > end and self._bag is None:
                return

    def _recorded(self, bag: BagImages, images: Iterable[tuple[int, tuple[Any, int, np.ndarray]]]) -> Iterator[Frame]:
        for number, (message, log_ns, image) in images:
            recorded = Recorded(message, bag.topic, log_ns)
            taken = recorded.stamp_ns or log_ns
            yield Frame(f"{number:06d}_{taken}", image, (taken - bag.first[0]) * 1e-9, recorded)

    def _listed(self, first: int) -> Iterator[Frame]:
        for number, path in enumerate(self._files[first:], start=first):
            yield Frame(path.stem, read_image(path), number / self.rate)

    def _captured(self, first: int) -> Iterator[Frame]:
        capture = cv2.VideoCapture(int(self.source) if self.is_camera else self.source)
        try:
            number = first
            if first:
                capture.set(cv2.CAP_PROP_POS_FRAMES, first)
            while True:
                captured, image = capture.read()
                if not captured:
                    return self._check_end(number)
                yield Frame(f"{number:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB), number / self.rate)
                number += 1
        finally:
            capture.release()

    def _refuse_twins(self) -> None:
        """Refuse two images whose names differ only in the suffix, because frames are named without it."""
        first: dict[str, Path] = {}
        for path in self._files:
            if first.setdefault(path.stem, path) != path:
                raise PebalError(f"{first[path.stem]} and {path} have the same name; rename one of them.")

    def _check_end(self, read: int) -> None:
        """Compare the number of frames that were read with the number that the container announces."""
        if self.is_camera:
            raise CutShortError(f"The camera {self.source} delivered no more frames after {read}; check the device.")
        count = self.count or 0
        tolerated = 0 if Path(self.source).suffix.lower() in COUNTING else 1 + count // 100
        if read < count - tolerated:
            raise CutShortError(
                f"The video {self.source} declares {count} frames, but only {read} can be read, so it is truncated or "
                "damaged. Copy it again."
            )


def _probe(source: str | int, kind: str) -> tuple[float, int | None]:
    """Rate and stated number of frames of a capture that yields at least one."""
    capture = cv2.VideoCapture(source)
    try:
        if not capture.isOpened() or not capture.grab():
            reason = "cannot be opened" if not capture.isOpened() else "contains no readable frame"
            raise PebalError(f"{kind} {source} {reason}; check the file or the device.")
        rate = capture.get(cv2.CAP_PROP_FPS)
        return rate if 0 < rate <= 1000 else 30.0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) or None
    finally:
        capture.release()
