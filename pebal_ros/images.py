"""sensor_msgs images ↔ numpy arrays; cv_bridge, where it is installed, reads only the encodings that are not here.

Everything the node receives becomes H×W×3 uint8 RGB, everything it publishes leaves through `to_message` or
`to_compressed`. No function here needs a running node. Errors do not name the topic: the caller knows it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from pebal_core.data.scenes import png_is_whole
from pebal_core.errors import PebalError

RgbImage: TypeAlias = np.ndarray
"""H×W×3 uint8, RGB."""

JPEG_QUALITY = 90
PNG_LEVEL = 1  # zlib's fastest: label maps shrink enough, and the camera does not wait


@dataclass(frozen=True)
class Encoding:
    """How the buffer of an encoding is laid out and how it becomes RGB."""

    channels: int
    """Samples per pixel and row."""
    convert: Callable[[np.ndarray], RgbImage]
    """Rows×W×channels (rows×W when there is one) → H×W×3 RGB."""
    sample: type[np.unsignedinteger] = np.uint8
    half_planes: int = 0
    """Rows that follow the image's own, in halves of its height: 1 for the chroma plane of NV12."""
    even_width: bool = False
    even_height: bool = False


def _with(code: int) -> Callable[[np.ndarray], RgbImage]:
    return lambda pixels: cv2.cvtColor(pixels, code)


def _mono16(pixels: np.ndarray) -> RgbImage:
    # The full range of 16 bits onto 8, as cv_bridge does: a 12-bit camera has to publish shifted values.
    return cv2.cvtColor(cv2.convertScaleAbs(pixels, alpha=255.0 / 65535.0), cv2.COLOR_GRAY2RGB)


_UYVY = Encoding(2, _with(cv2.COLOR_YUV2RGB_UYVY), even_width=True)
_YUYV = Encoding(2, _with(cv2.COLOR_YUV2RGB_YUY2), even_width=True)

ENCODINGS: dict[str, Encoding] = {
    "rgb8": Encoding(3, lambda pixels: pixels),
    "bgr8": Encoding(3, _with(cv2.COLOR_BGR2RGB)),
    "rgba8": Encoding(4, _with(cv2.COLOR_RGBA2RGB)),
    "bgra8": Encoding(4, _with(cv2.COLOR_BGRA2RGB)),
    "mono8": Encoding(1, _with(cv2.COLOR_GRAY2RGB)),
    "mono16": Encoding(1, _mono16, sample=np.uint16),
    # ROS names a Bayer pattern by its first four pixels, OpenCV by the second and third of the second row.
    "bayer_rggb8": Encoding(1, _with(cv2.COLOR_BayerBG2RGB)),
    "bayer_bggr8": Encoding(1, _with(cv2.COLOR_BayerRG2RGB)),
    "bayer_gbrg8": Encoding(1, _with(cv2.COLOR_BayerGR2RGB)),
    "bayer_grbg8": Encoding(1, _with(cv2.COLOR_BayerGB2RGB)),
    "yuv422": _UYVY,
    "uyvy": _UYVY,
    "yuv422_yuy2": _YUYV,
    "yuyv": _YUYV,
    "nv12": Encoding(1, _with(cv2.COLOR_YUV2RGB_NV12), half_planes=1, even_width=True, even_height=True),
}


def to_rgb(message: Image) -> RgbImage:
    """RGB pixels of an image message; for rgb8 a view of the message's own buffer.

    Raises:
        PebalError: zero size, unknown encoding, or a step or data length that does not fit the size.
    """
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0:
        raise PebalError(f"the image is empty: {width}×{height} pixels.")
    encoding = ENCODINGS.get(message.encoding.lower())
    if encoding is None:
        return _by_cv_bridge(message)
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
    return encoding.convert(pixels)


@functools.cache
def _cv_bridge() -> Any:
    """A converter, or None where cv_bridge is not installed. Only asked for when nothing else helps: one that was built
    for another NumPy can take the process down with it."""
    try:
        from cv_bridge import CvBridge
    except Exception:  # a broken build fails in many ways
        return None
    return CvBridge()


def _by_cv_bridge(message: Image) -> RgbImage:
    """What only cv_bridge reads: rgb16, bayer_*16 and their kin.

    Raises:
        PebalError: it is not installed, or cannot read the message either.
    """
    bridge, reason = _cv_bridge(), ""
    if bridge is not None:
        try:
            return np.asarray(bridge.imgmsg_to_cv2(message, "rgb8"))
        except Exception as error:  # CvBridgeError, and what NumPy and OpenCV raise at a wrong size
            reason = f" (cv_bridge: {next(iter(str(error).splitlines()), type(error).__name__)})"
    names = ", ".join(ENCODINGS)
    raise PebalError(f"the encoding '{message.encoding}' is not supported{reason}; publish one of: {names}.")


def from_compressed(message: CompressedImage) -> RgbImage:
    """RGB pixels of a JPEG or PNG message.

    Raises:
        PebalError: not an image, or one that ends early (decoders fill the rest with grey and say nothing).
    """
    data = memoryview(message.data)
    tail = bytes(data[-1024:])
    if bytes(data[:2]) == b"\xff\xd8":
        complete = b"\xff\xd9" in tail
    elif bytes(data[:4]) == b"\x89PNG":
        complete = png_is_whole(data)
    else:
        raise PebalError(f"{len(data)} bytes of format '{message.format}' are neither a JPEG nor a PNG image.")
    try:
        pixels = None
        if complete:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise PebalError(f"the compressed image ({len(data)} bytes, '{message.format}') is truncated or corrupt.")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def to_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Image message of an array.

    Args:
        pixels: H×W or H×W×C.
        encoding: the message's encoding; must describe the dtype and channels of `pixels`.
        header: stamp and frame of the camera image.
    """
    height, width = pixels.shape[:2]
    message = Image(header=header, height=height, width=width, encoding=encoding)
    message.step = pixels.nbytes // height
    message.is_bigendian = int(sys.byteorder == "big")
    # A fresh message's array takes raw bytes in no time; assigning `data` checks every byte.
    message.data.frombytes(np.ascontiguousarray(pixels).data.cast("B"))
    return message


def to_compressed(pixels: np.ndarray, codec: str, header: Header) -> CompressedImage:
    """Compressed message of mono8 (H×W) or rgb8 (H×W×3) pixels.

    Args:
        pixels: H×W or H×W×3 RGB, uint8.
        codec: "png" (lossless) or "jpeg".
        header: stamp and frame of the camera image.
    """
    color = pixels.ndim == 3
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if codec == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL]
    stored = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if color else pixels
    _, data = cv2.imencode(f".{codec}", stored, options)
    # The spelling of compressed_image_transport, whose subscribers parse it.
    name = f"rgb8; {codec} compressed bgr8" if color else f"mono8; {codec} compressed "
    message = CompressedImage(header=header, format=name)
    message.data.frombytes(data.data.cast("B"))
    return message
