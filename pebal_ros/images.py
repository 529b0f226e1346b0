"""Image messages of numpy arrays. Reading them is `pebal_core.footage.ros_images`, which recordings use as well.

No function here needs a running node.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

JPEG_QUALITY = 90
PNG_LEVEL = 1  # zlib's fastest: label maps shrink enough, and the camera does not wait


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
