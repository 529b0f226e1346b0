"""Converts the messages of `pebal_core.outputs` to those of rclpy; no function needs a running node."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from pebal_core.outputs import Message, messages


@functools.cache
def message_class(name: str) -> type[Any] | None:
    """The class of a message type such as ``sensor_msgs/msg/Image``; None if its package is not installed."""
    package, _, kind = name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind)
    except (ImportError, AttributeError):
        return None


def to_ros(message: Message) -> Any:
    """Convert a message for publishing; the package of its type must be installed."""
    kind = message_class(message.type)
    assert kind is not None, f"{message.type} is not installed"
    made = kind()
    for name, value in message.fields.items():
        if isinstance(value, memoryview):
            # Filling the array of a new message is fast, whereas an assignment would check every byte.
            getattr(made, name).frombytes(value)
        elif isinstance(value, Message):
            setattr(made, name, to_ros(value))
        elif isinstance(value, list):
            setattr(made, name, [to_ros(item) if isinstance(item, Message) else item for item in value])
        else:
            setattr(made, name, value)
    return made


def plain(header: Header) -> Message:
    """Convert a header of rclpy to one of `pebal_core.outputs`."""
    return messages.header(header.stamp.sec * 1_000_000_000 + header.stamp.nanosec, header.frame_id)


def to_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Make an Image message from an array; see `pebal_core.outputs.messages.image`."""
    return to_ros(messages.image(pixels, encoding, plain(header)))


def to_compressed(pixels: np.ndarray, codec: str, header: Header) -> CompressedImage:
    """Make a CompressedImage message from mono8 or rgb8 pixels; see `pebal_core.outputs.messages.compressed`."""
    return to_ros(messages.compressed(pixels, codec, plain(header)))
