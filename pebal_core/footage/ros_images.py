"""Decodes ROS image messages, for the node and for recordings.

A message is any object with the fields of sensor_msgs/Image or sensor_msgs/CompressedImage, created by rclpy or by
rosbags. Error messages do not name the topic, which the caller adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np

from ..errors import PebalError
from ..files import decode_pixels

RgbImage: TypeAlias = np.ndarray
"""H×W×3 uint8, RGB."""


@dataclass(frozen=True)
class _Encoding:
    """Memory layout of an encoding and its conversion to RGB."""

    channels: int
    """Samples per pixel in a row."""
    convert: Callable[[np.ndarray], RgbImage]
    """Function from rows×W×channels (rows×W for one channel) to H×W×3 RGB of the same type."""
    sample: type[np.unsignedinteger] = np.uint8
    half_planes: int = 0
    """Additional rows after the image, in units of half its height; 1 for the chroma plane of NV12."""
    even_width: bool = False
    even_height: bool = False


def _with(code: int) -> Callable[[np.ndarray], RgbImage]:
    return lambda pixels: cv2.cvtColor(pixels, code)


_UYVY = _Encoding(2, _with(cv2.COLOR_YUV2RGB_UYVY), even_width=True)
_YUYV = _Encoding(2, _with(cv2.COLOR_YUV2RGB_YUY2), even_width=True)

_PLAIN: dict[str, _Encoding] = {
    "rgb": _Encoding(3, lambda pixels: pixels),
    "bgr": _Encoding(3, _with(cv2.COLOR_BGR2RGB)),
    "rgba": _Encoding(4, _with(cv2.COLOR_RGBA2RGB)),
    "bgra": _Encoding(4, _with(cv2.COLOR_BGRA2RGB)),
    "mono": _Encoding(1, _with(cv2.COLOR_GRAY2RGB)),
    # ROS names a Bayer pattern after its first four pixels, OpenCV after the second and third pixel of the second row.
    "bayer_rggb": _Encoding(1, _with(cv2.COLOR_BayerBG2RGB)),
    "bayer_bggr": _Encoding(1, _with(cv2.COLOR_BayerRG2RGB)),
    "bayer_gbrg": _Encoding(1, _with(cv2.COLOR_BayerGR2RGB)),
    "bayer_grbg": _Encoding(1, _with(cv2.COLOR_BayerGB2RGB)),
}
"""Encodings that exist with 8 and with 16 bits."""

ENCODINGS: dict[str, _Encoding] = {
    **{f"{name}8": encoding for name, encoding in _PLAIN.items()},
    **{f"{name}16": _Encoding(form.channels, form.convert, np.uint16) for name, form in _PLAIN.items()},
    "yuv422": _UYVY,
    "uyvy": _UYVY,
    "yuv422_yuy2": _YUYV,
    "yuyv": _YUYV,
    "nv12": _Encoding(1, _with(cv2.COLOR_YUV2RGB_NV12), half_planes=1, even_width=True, even_height=True),
    "nv21": _Encoding(1, _with(cv2.COLOR_YUV2RGB_NV21), half_planes=1, even_width=True, even_height=True),
}


def decode(message: Any) -> RgbImage:
    """Decode a raw or compressed image message to H×W×3 uint8 RGB.

    Raises:
        PebalError: the message is malformed.

    Examples:
        >>> from types import SimpleNamespace
        >>> content = cv2.imencode(".png", np.full((1, 1, 3), (255, 0, 0), np.uint8))[1].tobytes()  # OpenCV takes BGR
        >>> decode(SimpleNamespace(format="png", data=content)).tolist()
        [[[0, 0, 255]]]
    """
    return to_rgb(message) if hasattr(message, "encoding") else from_compressed(message)


def to_rgb(message: Any) -> RgbImage:
    """Convert a raw image message to H×W×3 uint8 RGB; for rgb8 the result is a view of the message's buffer.

    Raises:
        PebalError: the size is zero, the encoding is unknown, or the step or data length does not match the size.

    Examples:
        >>> from types import SimpleNamespace
        >>> pixels = bytes([255, 0, 0, 0, 0, 255])
        >>> message = SimpleNamespace(height=1, width=2, encoding="bgr8", is_bigendian=0, step=6, data=pixels)
        >>> to_rgb(message).tolist()
        [[[0, 0, 255], [255, 0, 0]]]
    """
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0:
        raise PebalError(f"the image is empty: {width}×{height} pixels.")
    encoding = ENCODINGS.get(message.encoding.lower())
    if encoding is None:
        names = ", ".join(ENCODINGS)
        raise PebalError(f"the encoding '{message.encoding}' is not supported; publish one of: {names}.")
    if (encoding.even_width and width % 2) or (encoding.even_height and height % 2):
        raise PebalError(f"{width}×{height} is an odd size, which {message.encoding} cannot have.")
    itemsize = np.dtype(encoding.sample).itemsize
    row_bytes = width * encoding.channels * itemsize
    if step < row_bytes or step % itemsize:
        raise PebalError(
            f"the step is {step} bytes, but a row of {width} pixels of {message.encoding} takes {row_bytes}."
        )
    rows = height + height * encoding.half_planes // 2
    if len(message.data) != rows * step:
        raise PebalError(
            f"{len(message.data)} bytes of data came with a {width}×{height} {message.encoding} image "
            f"of step {step}, which takes {rows * step}."
        )
    stored = np.dtype(encoding.sample).newbyteorder(">" if message.is_bigendian else "<")
    samples = np.frombuffer(message.data, stored).reshape(rows, step // itemsize)
    pixels = samples[:, : width * encoding.channels].astype(encoding.sample, copy=False)
    if encoding.channels > 1:  # splitting the last axis is a view, padding or not
        pixels = pixels.reshape(rows, width, encoding.channels)
    rgb = encoding.convert(pixels)
    # Scales the full 16-bit range to 8 bits, like cv_bridge, so a 12-bit camera has to publish shifted values.
    return rgb if itemsize == 1 else cv2.convertScaleAbs(rgb, alpha=255.0 / 65535.0)


def from_compressed(message: Any) -> RgbImage:
    """Decode a JPEG or PNG message to H×W×3 uint8 RGB.

    Raises:
        PebalError: the data are no image or truncated; decoders alone would silently fill the missing part with grey.

    Examples:
        >>> from types import SimpleNamespace
        >>> from_compressed(SimpleNamespace(format="jpeg", data=b"text"))
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: 4 bytes of format 'jpeg' are neither a JPEG nor a PNG image.
    """
    data = memoryview(message.data)
    if bytes(data[:2]) != b"\xff\xd8" and bytes(data[:4]) != b"\x89PNG":
        raise PebalError(f"{len(data)} bytes of format '{message.format}' are neither a JPEG nor a PNG image.")
    pixels = decode_pixels(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise PebalError(f"the compressed image ({len(data)} bytes, '{message.format}') is truncated or corrupt.")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
