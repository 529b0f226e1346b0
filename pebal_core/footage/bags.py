"""Reads ROS recordings (bags) without ROS, through the package rosbags: rosbag2 as MCAP or SQLite, and ROS 1.

Only the messages of one topic are decoded, one at a time, so the memory does not grow with the recording.
"""

from __future__ import annotations

import functools
import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CutShortError, PebalError
from .ros_images import decode

if TYPE_CHECKING:
    from rosbags.interfaces import Connection
    from rosbags.rosbag1 import Reader as Reader1
    from rosbags.rosbag2 import Reader as Reader2

IMAGES = RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
SUFFIXES = (".mcap", ".db3", ".bag")
METADATA = "metadata.yaml"
REMEDIES = {".bag": "rosbag reindex", ".mcap": "mcap recover"}
PROBED = 12
"""Number of messages from whose stamps the frame rate is estimated."""
REPORTED = 5
"""Number of malformed images that are reported individually."""

logger = logging.getLogger(__name__)


def is_recording(path: Path) -> bool:
    """Whether a path is a bag; files are recognised by their suffix, folders by their content.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     drive, video = Path(folder) / "drive.mcap", Path(folder) / "drive.mp4"
        ...     drive.touch()
        ...     video.touch()
        ...     is_recording(drive), is_recording(video)
        (True, False)
    """
    if path.is_dir():
        return (path / METADATA).is_file() or any(_storage_files(path))
    return path.is_file() and path.suffix.lower() in SUFFIXES


def _storage_files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES)


class BagImages:
    """The images of one topic of a recording, in the order in which they were recorded.

    Iteration yields ``number, (message, log_ns, image)``, which are the number of the message on its topic, the
    message, its recording time in nanoseconds, and its pixels H×W×3 uint8 RGB. A malformed image is skipped, counted in
    `skipped` and logged, as in the node; its number is not used again.

    Args:
        path: rosbag2 folder, .mcap, .db3 or ROS 1 .bag file.
        topic: name or type of the topic; empty for the only image topic. ``image/compressed`` and ``image`` count as
            the same camera, for which the raw topic is used.

    Raises:
        PebalError: the recording is damaged, unfinished or empty, or has no such image topic.

    Examples:
        >>> import tempfile
        >>> from pebal_core.footage.bag_writer import BagWriter
        >>> from pebal_core.outputs.messages import header, image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with BagWriter(Path(folder) / "drive.mcap") as bag:
        ...         bag.write("/front/image_raw", image(np.zeros((48, 64, 3), np.uint8), "rgb8", header(7, "front")), 7)
        ...     images = BagImages(bag.path)
        ...     images.prefix, [pixels.shape for _, (_, _, pixels) in images]
        ('/front/', [(48, 64, 3)])
    """

    def __init__(self, path: Path, topic: str = "") -> None:
        self.path = path
        self.skipped = 0
        with self._open() as reader:
            self.topic = _choose_topic(reader.connections, topic, path)
            self.count = sum(one.msgcount for one in _on(reader, self.topic, IMAGES))
            if not self.count:
                raise PebalError(f"The topic {self.topic} of the recording {path} contains no image.")
            probed = [
                (_stamp(message) or log_ns, log_ns)
                for message, log_ns in islice(self._messages(reader), PROBED)
                if not isinstance(message, PebalError)
            ]
        self.rate = _rate([stamp for stamp, _ in probed])
        self.first = probed[0] if probed else (0, 0)
        """Time stamp and recording time of the first image, in nanoseconds."""

    def __iter__(self) -> Iterator[tuple[int, tuple[Any, int, np.ndarray]]]:
        self.skipped = 0
        number = -1
        with self._open() as reader:
            for number, (message, log_ns) in enumerate(self._messages(reader)):
                image = self._decode(number, message)
                if image is not None:
                    yield number, (message, log_ns, image)
        if number + 1 < self.count:
            raise CutShortError(
                f"The recording {self.path} declares {self.count} images on {self.topic}, but only {number + 1} could "
                f"be read. {_remedy(self.path)}"
            )
        if self.skipped > REPORTED:
            logger.warning("%s: %d images on %s were skipped in all.", self.path, self.skipped, self.topic)
        if self.skipped == self.count:
            raise PebalError(f"None of the {self.count} images on {self.topic} of {self.path} could be decoded.")

    def between(self, begin_ns: int, end_ns: int) -> Iterator[tuple[int, tuple[Any, int, np.ndarray]]]:
        """Yield the images recorded in an interval; numbers start at zero, and malformed images are skipped."""
        with self._open() as reader:
            for number, (message, log_ns) in enumerate(self._messages(reader, start=begin_ns, stop=end_ns)):
                image = self._decode(number, message)
                if image is not None:
                    yield number, (message, log_ns, image)

    def _decode(self, number: int, message: Any | PebalError) -> np.ndarray | None:
        """Decode the pixels of a message; None for a malformed image, which is counted and logged."""
        try:
            if isinstance(message, PebalError):
                raise message
            return decode(message)
        except PebalError as error:
            self.skipped += 1
            if self.skipped <= REPORTED:
                logger.warning("%s: image %d on %s was skipped: %s", self.path, number, self.topic, error)
            return None

    def camera_info(self) -> Any:
        """The first CameraInfo message of this camera.

        Raises:
            PebalError: there is no CameraInfo beside the images.
        """
        topic = f"{self.prefix}camera_info"
        with self._open() as reader:
            for message, _ in self._messages(reader, topic, (CAMERA_INFO,)):
                if not isinstance(message, PebalError):
                    return message
        raise PebalError(
            f"The recording {self.path} has no calibration on {topic}. Pass a calibration file of its camera."
        )

    @property
    def prefix(self) -> str:
        """Common prefix of the names of this camera's topics, such as ``/front/``."""
        return f"{self.topic.removesuffix('/compressed').rpartition('/')[0]}/"

    def _messages(
        self,
        reader: Reader1 | Reader2,
        topic: str = "",
        types: Sequence[str] = IMAGES,
        start: int | None = None,
        stop: int | None = None,
    ) -> Iterator[tuple[Any | PebalError, int]]:
        """Yield the messages of a topic (by default the images) with their recording times.

        A message that cannot be parsed is replaced by a PebalError with the reason.
        """
        chosen = _on(reader, topic or self.topic, types)
        if not chosen:
            return  # for an empty list, rosbags would yield the messages of all connections
        ros1 = self.path.suffix.lower() == ".bag"
        store = _typestore(ros1)
        parse = store.deserialize_ros1 if ros1 else store.deserialize_cdr
        messages = iter(reader.messages(chosen, start, stop))
        while True:
            try:
                connection, log_ns, data = next(messages)
            except StopIteration:
                return
            except Exception as error:  # rosbags passes on the exceptions of SQLite, zstd, lz4 and struct
                raise _unreadable(self.path, error) from error
            try:
                message = parse(data, connection.msgtype)
            except Exception as error:  # including IndexError and ValueError for a truncated payload
                message = PebalError(
                    f"its {len(data)} bytes are not a valid {connection.msgtype} ({_first_line(error)})."
                )
            yield message, log_ns

    @contextmanager
    def _open(self) -> Iterator[Reader1 | Reader2]:
        reader = open_reader(self.path)
        try:
            yield reader
        finally:
            reader.close()


def _on(reader: Reader1 | Reader2, topic: str, types: Sequence[str]) -> list[Connection]:
    return [one for one in reader.connections if one.topic == topic and one.msgtype in types]


def open_reader(path: Path) -> Reader1 | Reader2:
    """Open a recording with rosbags.

    Raises:
        PebalError: rosbags is not installed, or the recording cannot be read; the message names the remedy.

    Examples:
        >>> import tempfile
        >>> from pebal_core.footage.bag_writer import BagWriter
        >>> from pebal_core.outputs.messages import number
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with BagWriter(Path(folder) / "drive.mcap") as bag:
        ...         bag.write("/speed", number(9.5), log_ns=1_000_000_000)
        ...     reader = open_reader(bag.path)
        ...     [one.topic for one in reader.connections]
        ...     reader.close()
        ['/speed']
    """
    try:
        from rosbags.rosbag1 import Reader as Reader1
        from rosbags.rosbag2 import Reader as Reader2
    except ModuleNotFoundError as error:
        raise PebalError(
            f"Reading the recording {path} needs the package rosbags. Run: pip install rosbags."
        ) from error
    if path.is_dir() and not (path / METADATA).is_file():
        names = ", ".join(file.name for file in islice(_storage_files(path), 4))
        raise PebalError(
            f"The folder {path} contains recordings ({names} …) but no {METADATA}. Name one of the files, or create "
            f"{METADATA} with 'ros2 bag reindex {path}'."
        )
    for log in sorted(path.glob("*.db3-wal") if path.is_dir() else path.parent.glob(f"{path.name}-wal")):
        if log.stat().st_size:
            raise PebalError(
                f"The recording {path} was not closed properly, and {log.name} still contains messages. Move them "
                "into the file with "
                f"'sqlite3 {log.with_name(log.name.removesuffix('-wal'))} \"PRAGMA wal_checkpoint(TRUNCATE)\"'."
            )
    try:
        reader = Reader1(path) if path.suffix.lower() == ".bag" else Reader2(path)
        reader.open()
    except Exception as error:  # ReaderError, and exceptions of struct, SQLite and YAML for damaged files
        raise _unreadable(path, error) from error
    return reader


def _choose_topic(connections: Sequence[Connection], asked: str, path: Path) -> str:
    """Find the image topic by name or type, or the only one.

    Args:
        connections: the connections of the recording.
        asked: name or type of the topic; empty for the only one.
        path: the recording, for messages.

    Raises:
        PebalError: there is no such topic, it carries no images, or there are several candidates.
    """
    types: dict[str, set[str]] = {}
    for one in connections:
        types.setdefault(one.topic, set()).add(one.msgtype)
    images = sorted(name for name, carried in types.items() if carried <= {RAW, COMPRESSED})
    listed = ", ".join(f"{name} ({'/'.join(kind.split('/')[-1] for kind in sorted(types[name]))})" for name in images)
    there = f"its image topics are: {listed}." if images else "it has no image topic."
    if asked in types:
        if asked not in images:
            kinds = " and ".join(sorted(types[asked]))
            what = "changes its type" if len(types[asked]) > 1 else "carries no images"
            raise PebalError(f"The topic {asked} of the recording {path} {what} ({kinds}); {there}")
        return asked
    by_type = {kind: [name for name in images if kind in types[name]] for kind in (RAW, COMPRESSED)}
    for kind, names in by_type.items():
        if asked in (kind, kind.replace("/msg/", "/"), kind.rpartition("/")[2]):
            candidates = names
            break
    else:
        if asked:
            raise PebalError(f"The recording {path} has no topic {asked}; {there}")
        candidates = [name for name in images if not name.endswith("/compressedDepth")]
        if len({name.removesuffix("/compressed") for name in candidates}) == 1:
            candidates = candidates[:1]  # the raw one sorts before its compressed twin
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        kind = f" of type {asked}" if asked else ""
        raise PebalError(f"The recording {path} has no image topic{kind}; {_others(types)}.")
    raise PebalError(f"The recording {path} has several image topics; choose one as the topic: {listed}.")


def _others(types: dict[str, set[str]]) -> str:
    names = ", ".join(f"{name} ({'/'.join(sorted(carried))})" for name, carried in sorted(types.items()))
    return f"its topics are: {names}" if names else "it contains no topics"


@functools.cache
def _typestore(ros1: bool) -> Any:
    """Message types of ROS 1 or 2; Image and CompressedImage have the same fields in every distribution of each."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)


def _stamp(message: Any) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def _rate(stamps: Sequence[int]) -> float:
    """Rate in hertz from the median interval of time stamps in nanoseconds; 10 if the stamps do not increase."""
    gaps = [later - earlier for earlier, later in pairwise(stamps) if later > earlier]
    rate = 1e9 / statistics.median(gaps) if gaps else 10.0
    return min(max(rate, 0.01), 1000.0)


def _unreadable(path: Path, error: Exception) -> PebalError:
    return PebalError(f"The recording {path} cannot be read ({_first_line(error)}). {_remedy(path)}")


def _remedy(path: Path) -> str:
    files = _storage_files(path) if path.is_dir() else [path]
    suffixes = {file.suffix.lower() for file in files}
    command = next((text for suffix, text in REMEDIES.items() if suffix in suffixes), "ros2 bag reindex")
    return f"Copy it again, or repair it with '{command}'."


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
