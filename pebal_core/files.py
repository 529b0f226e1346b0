"""Writes files atomically, reads images with a check for truncation, and resolves paths that users give."""

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
"""Most pixels of an image; a file of a few kilobytes can decode to an image that fills the memory."""


@contextlib.contextmanager
def being_written(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside the target; the file written there replaces the target at the end.

    Any exception other than OSError, including KeyboardInterrupt, propagates. In all cases of failure the temporary
    file is removed.

    Args:
        path: the target.
        durable: whether to wait until the disk has stored the file, so that it survives a loss of power.

    Raises:
        PebalError: the folder cannot be written or the disk is full.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with being_written(Path(folder) / "report.txt") as temporary:
        ...         _ = temporary.write_text("done")
        ...     os.listdir(folder)
        ['report.txt']
    """
    # The name contains the host, because workers on several machines may write into one folder. It lacks the target's
    # suffix, so that a file left by a killed process is not mistaken for an image.
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
    """Write a file completely or not at all; see `being_written`.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "report.txt"
        ...     write_atomically(path, b"done")
        ...     path.read_bytes()
        b'done'
    """
    with being_written(path, durable) as temporary:
        temporary.write_bytes(content)


def read_pixels(path: Path, flags: int) -> np.ndarray | None:
    """Read the pixels of an image file in the format that OpenCV's `flags` select.

    Returns:
        The pixels; None if the file is missing, truncated or no image.

    Raises:
        PebalError: the image has more than `MOST_PIXELS` pixels.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "grey.png"
        ...     _ = cv2.imwrite(str(path), np.full((2, 3), 7, np.uint8))
        ...     read_pixels(path, cv2.IMREAD_GRAYSCALE)
        array([[7, 7, 7],
               [7, 7, 7]], dtype=uint8)
    """
    try:
        pixels = decode_pixels(path.read_bytes(), flags)
    except OSError:
        return None
    if pixels is not None and pixels.shape[0] * pixels.shape[1] > MOST_PIXELS:
        raise PebalError(
            f"{path} is {pixels.shape[1]}×{pixels.shape[0]}; images may have at most {MOST_PIXELS:,} pixels."
        )
    return pixels


def decode_pixels(content: bytes | memoryview, flags: int) -> np.ndarray | None:
    """Decode an image with OpenCV; None if it is no image or truncated.

    OpenCV alone would fill the missing part of a truncated JPEG or PNG with arbitrary pixels.

    Examples:
        >>> content = cv2.imencode(".png", np.full((2, 3), 7, np.uint8))[1].tobytes()
        >>> decode_pixels(content, cv2.IMREAD_GRAYSCALE).tolist()
        [[7, 7, 7], [7, 7, 7]]
        >>> decode_pixels(content[:-1], cv2.IMREAD_GRAYSCALE) is None
        True
    """
    if not _is_whole(content):
        return None
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:  # raised for absurd sizes
        return None


def _is_whole(content: bytes | memoryview) -> bool:
    """Whether an encoded image is complete.

    A JPEG must contain its end marker and a PNG its last chunk; other formats must not be empty. The check also guards
    against PNG chunks with a wrong length, for which OpenCV would allocate up to gigabytes.

    Examples:
        >>> _is_whole(b"\\xff\\xd8 JPEG without an end"), _is_whole(b"\\xff\\xd8 JPEG \\xff\\xd9")
        (False, True)
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
    """Resolve a path that a user gives, in which ``~`` stands for the home folder.

    Raises:
        PebalError: the path is invalid, or leads through a folder that may not be read.

    Examples:
        >>> user_path("/data/drive.mcap").name
        'drive.mcap'
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise PebalError(f"'{name!s:.100}' cannot be used as a path: {reason}.") from error
    return path
