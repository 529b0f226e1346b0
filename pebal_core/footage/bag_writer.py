"""Writes MCAP recordings without ROS, which ``ros2 bag play``, Foxglove and Rerun can open."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PebalError
from ..outputs import Message

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

SUFFIX = ".mcap"
VISION_MSGS = {
    "Point2D": "float64 x\nfloat64 y\n",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n",
    "ObjectHypothesis": "string class_id\nfloat64 score\n",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n",
    "Detection2D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
    "vision_msgs/BoundingBox2D bbox\nstring id\n",
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections\n",
}
"""Definitions of the vision_msgs 4 messages that are written; rosbags includes only the packages of ROS itself."""


class BagWriter:
    """Writes messages of `pebal_core.outputs` to an MCAP file, which appears when the block ends and is complete.

    If an exception ends the block, the messages written so far are kept, unless the writing itself failed.

    Raises:
        PebalError: the suffix is not .mcap, rosbags is not installed, or the file cannot be written.

    Examples:
        >>> import tempfile
        >>> from pebal_core.footage.bags import open_reader
        >>> from pebal_core.outputs.messages import number
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with BagWriter(Path(folder) / "result.mcap") as bag:
        ...         bag.write("/front/peak_energy", number(-2.5), log_ns=1_000_000_000)
        ...     [(one.topic, one.msgcount) for one in open_reader(bag.path).connections]
        [('/front/peak_energy', 1)]
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != SUFFIX:
            raise PebalError(f"The recording {path} must end in {SUFFIX}, the only supported format.")
        try:
            from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
        except ModuleNotFoundError as error:
            raise PebalError(
                f"Writing the recording {path} needs the package rosbags. Run: pip install rosbags."
            ) from error
        self.path = path
        # rosbags writes a folder; the file inside is a complete recording.
        self._folder = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._writer = Writer(self._folder, version=9, storage_plugin=StoragePlugin.MCAP)
        # All viewers can read compressed chunks, unlike the other kinds of compression.
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._connections: dict[str, Connection] = {}
        self._failed = False

    def __enter__(self) -> BagWriter:
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            self._writer.open()
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def add_topic(self, topic: str, type_name: str) -> None:
        """Declare a topic, so that the recording contains it even without messages."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, type_name, typestore=typestore())

    def write(self, topic: str, message: Message, log_ns: int) -> None:
        """Add a message.

        Args:
            topic: name of the topic.
            message: the message.
            log_ns: time of recording, in nanoseconds since the epoch.

        Raises:
            PebalError: the disk is full.
        """
        self.add_topic(topic, message.type)
        data = _serialize(message)
        try:
            self._writer.write(self._connections[topic], log_ns, data)
        except BaseException as error:  # including a KeyboardInterrupt, which may leave half a message
            self._failed = True
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._failed:
                self._writer.abort()
            else:
                self._writer.close()
                (self._folder / f"{self._folder.name}{SUFFIX}").replace(self.path)
        except OSError as failure:
            if not self._failed:
                raise self._unwritable(failure) from failure
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _unwritable(self, error: OSError) -> PebalError:
        return PebalError(
            f"The recording {self.path} could not be written: {error.strerror}; free space or choose another place."
        )


def _serialize(message: Message) -> memoryview:
    """Serialize a message as the middleware does (CDR, little-endian)."""
    return typestore().serialize_cdr(_filled(message.type, message), message.type)


@functools.cache
def typestore() -> Any:
    """The message types of rosbags and of `VISION_MSGS`.

    Examples:
        >>> point = typestore().types["vision_msgs/msg/Point2D"](x=1.0, y=2.0)
        >>> len(typestore().serialize_cdr(point, "vision_msgs/msg/Point2D"))  # a header of 4 bytes and two numbers
        20
    """
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    for name, definition in VISION_MSGS.items():
        store.register(get_types_from_msg(definition, f"vision_msgs/msg/{name}"))
    return store


def _filled(type_name: str, message: Message | None) -> Any:
    """Make a rosbags message, whose types have no defaults, with every missing field set to zero, empty or false."""
    given = {} if message is None else message.fields
    store = typestore()
    values = {}
    for name, kind in store.fielddefs[type_name][1]:
        values[name] = _value(kind, given.get(name), _default(type_name, name))
    return store.types[type_name](**values)


def _default(type_name: str, name: str) -> Any:
    """The default of a field if it is not zero; quaternions default to the identity."""
    return 1.0 if (type_name, name) == ("geometry_msgs/msg/Quaternion", "w") else None


def _value(kind: tuple[Any, Any], given: Any, default: Any = None) -> Any:
    """Convert a field's value to the type that rosbags expects, a NumPy array for numbers and a list for the rest."""
    from rosbags.interfaces import Nodetype

    shape, detail = kind
    if shape == Nodetype.NAME:
        return _filled(detail, given)
    if shape == Nodetype.BASE:
        if given is not None:
            return given
        return default if default is not None else "" if detail[0] == "string" else False if detail[0] == "bool" else 0
    (inner, item), length = detail
    if shape == Nodetype.SEQUENCE:
        length = 0
    if inner == Nodetype.NAME:
        items = given if given is not None else [None] * length
        return [_filled(item, one) for one in items]
    if item[0] == "string":
        return list(given) if given is not None else [""] * length
    if isinstance(given, memoryview):
        return np.frombuffer(given, np.dtype(item[0]))
    return np.zeros(length, np.dtype(item[0])) if given is None else np.asarray(given, np.dtype(item[0]))
