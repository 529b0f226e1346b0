"""Files that are whole: written under another name first, and images that were cut short recognised."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from .errors import PebalError

MOST_PIXELS = 8192 * 8192
"""Of an image: a few kilobytes can be an image that takes all memory."""


@contextlib.contextmanager
def being_written(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary name beside the target; what is written there becomes the target at the end.

    Args:
        durable: wait until the disk has it, so that it outlasts a loss of power too.

    Raises:
        PebalError: the folder cannot be written or the disk is full.

    Whatever else is raised, Ctrl-C among it, passes, and leaves neither name behind.
    """
    # With the name of the host, because workers of several machines may write into one folder, and without the
    # target's suffix, so that nothing takes what a killed process left for an image.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise PebalError(
            f"{path} could not be written: {error.strerror or error}; free space or choose another place."
        ) from error


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file whole or not at all, as `being_written` does."""
    with being_written(path, durable) as temporary:
        temporary.write_bytes(content)


def read_pixels(path: Path, flags: int) -> np.ndarray | None:
    """Pixels of an image file as OpenCV's `flags` ask for them; None: it is missing, cut short or no image.

    Raises:
        PebalError: it has more than `MOST_PIXELS`.
    """
    try:
        pixels = decode_pixels(path.read_bytes(), flags)
    except OSError:
        return None
    if pixels is not None and pixels.shape[0] * pixels.shape[1] > MOST_PIXELS:
        raise PebalError(f"{path} is {pixels.shape[1]}×{pixels.shape[0]}; images have {MOST_PIXELS:,} pixels at most.")
    return pixels


def decode_pixels(content: bytes | memoryview, flags: int) -> np.ndarray | None:
    """OpenCV's decoding, but None for a JPEG or PNG that is cut short: OpenCV would make up the missing part."""
    if not is_whole(content):
        return None
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:  # at sizes beyond all sense
        return None


def is_whole(content: bytes | memoryview) -> bool:
    """Whether an encoded image has an end: the mark of a JPEG, the last chunk of a PNG, a byte of any other.

    OpenCV takes as much memory for a chunk of a PNG as it says that it is long, up to gigabytes for a few bytes.
    """
    if bytes(content[:2]) == b"\xff\xd8":
        return b"\xff\xd9" in bytes(content[-4096:])
    if bytes(content[:4]) != b"\x89PNG":
        return len(content) > 0
    position = 8
    while position + 12 <= len(content):
        length, kind = int.from_bytes(content[position : position + 4], "big"), content[position + 4 : position + 8]
        position += 12 + length
        if kind == b"IEND":
            return position <= len(content)
    return False


def user_path(name: str | Path) -> Path:
    """A path as a user writes it, with ``~``.

    Raises:
        PebalError: no file system can have it, or it leads through a folder that cannot be looked into.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise PebalError(f"'{name!s:.100}' cannot be used as a path: {reason}.") from error
    return path
