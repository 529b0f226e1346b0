"""Malformed messages: skipped, counted, reported by topic and reason, and the node goes on."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from pebal_core.errors import PebalError
from pebal_core.footage.ros_images import ENCODINGS, from_compressed, to_rgb
from pebal_ros.messages import to_compressed

from .harness import Inbox, Rig, TestCamera, picture, values

IMAGE = "/rig/image"
FOREIGN = ("", "32FC1", "8UC4", "16SC1", "64FC3", "yuv444", "jpeg", "RGB 8", "\u00e9\0")
"""Encodings that a driver may send, but that the node does not read."""
PACKED = {codec: bytes(to_compressed(picture(36, 50), codec, Header()).data) for codec in ("jpeg", "png")}


def image_message(random: Random) -> Image:
    """A good message: any encoding, an even size up to 24×24, padded rows."""
    encoding = random.choice(list(ENCODINGS))
    form, height, width = ENCODINGS[encoding], 2 * random.randint(1, 12), 2 * random.randint(1, 12)
    row = width * form.channels * np.dtype(form.sample).itemsize
    message = Image(encoding=encoding, height=height, width=width, step=row + 2 * random.randint(0, 4))
    message.is_bigendian = random.randint(0, 1)
    message.data.frombytes(bytes((height + height * form.half_planes // 2) * message.step))
    return message


def damaged_message(random: Random) -> Image:
    """A message that was good before one thing about it became wrong."""
    message = image_message(random)
    damage = random.choice(["truncated", "too long", "empty", "taller", "wider", "step", "encoding", "huge"])
    if damage == "truncated":
        del message.data[random.randint(0, len(message.data) - 1) :]
    elif damage == "too long":
        message.data.frombytes(bytes(random.randint(1, 99)))
    elif damage == "empty":
        setattr(message, random.choice(["height", "width"]), 0)
    elif damage == "taller":
        message.height += 2 * random.randint(1, 9)
    elif damage == "wider":
        message.width += 2 * message.step
    elif damage == "step":
        message.step += random.choice([-1, 1]) * random.randint(1, message.step)
    elif damage == "encoding":
        message.encoding = random.choice(FOREIGN)
    else:
        setattr(message, random.choice(["height", "width", "step"]), 2**32 - random.randint(1, 4))
    return message


def damaged_bytes(random: Random, data: bytes) -> bytes:
    """A compressed image of which a part is missing, doubled or overwritten."""
    start = random.randint(0, len(data) - 1)
    end = random.randint(start, min(start + 40, len(data)))
    middle = random.choice([b"", data[start:end] * 2, bytes([random.randint(0, 255)]) * (end - start)])
    return data[:start] + middle + data[end:]


def is_one_sentence(error: PebalError) -> bool:
    return str(error).endswith(".") and "\n" not in str(error)


@settings(max_examples=1000, deadline=None, database=None)
@given(random=st.randoms(use_true_random=False))
def test_every_good_message_is_read(random: Random) -> None:
    message = image_message(random)
    pixels = to_rgb(message)
    assert pixels.dtype == np.uint8 and pixels.shape == (message.height, message.width, 3)


@settings(max_examples=7000, deadline=None, database=None)
@given(random=st.randoms(use_true_random=False))
def test_every_damaged_message_is_refused_in_one_sentence(random: Random) -> None:
    with pytest.raises(PebalError) as caught:
        to_rgb(damaged_message(random))
    assert is_one_sentence(caught.value)


@settings(max_examples=1000, deadline=None, database=None)
@given(codec=st.sampled_from(sorted(PACKED)), share=st.floats(0, 1, exclude_max=True))
def test_every_truncated_compressed_image_is_refused(codec: str, share: float) -> None:
    data = PACKED[codec][: int(share * len(PACKED[codec]))]
    with pytest.raises(PebalError) as caught:
        from_compressed(CompressedImage(format=codec, data=data))
    assert is_one_sentence(caught.value)


@settings(max_examples=2000, deadline=None, database=None)
@given(codec=st.sampled_from(sorted(PACKED)), random=st.randoms(use_true_random=False))
def test_a_damaged_compressed_image_is_an_image_or_refused(codec: str, random: Random) -> None:
    """A decoder cannot tell every wrong byte from a right one."""
    try:
        pixels = from_compressed(CompressedImage(format=codec, data=damaged_bytes(random, PACKED[codec])))
    except PebalError as error:
        assert is_one_sentence(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def test_hundreds_of_damaged_frames_among_good_ones(rig: Rig, camera: TestCamera, labels: Inbox) -> None:
    labels.wait_for(camera.send(picture()))
    before, random = rig.client.counts(IMAGE), Random(0)
    for number in range(400):
        message = damaged_message(random)
        message.header = rig.client.header()
        camera.send_message(message)
        time.sleep(0.004)
        if number % 100 == 99:
            labels.wait_for(camera.send(picture()))
    after = rig.client.counts(IMAGE)
    change = {name: after[name] - before[name] for name in after}
    assert change["answered"] == 4 and change["bad"] > 100, change
    assert change["bad"] + change["dropped"] + change["lost before the node"] == 400, change
    assert rig.process.running


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"height": 97}, "46080 bytes of data came with a 160×97 rgb8 image"),
        ({"data": []}, "0 bytes of data came with"),
        ({"step": 479}, "the step is 479 bytes, but a row of 160 pixels of rgb8 takes 480"),
        ({"encoding": "rgb12"}, "the encoding 'rgb12' is not supported"),
        ({"width": 0}, "the image is empty"),
        ({"height": 8, "data": bytes(8 * 480)}, "An image must be at least 16 pixels on both sides"),
    ],
)
def test_a_bad_frame_is_skipped_counted_and_named(
    rig: Rig, camera: TestCamera, labels: Inbox, changes: dict[str, Any], reason: str
) -> None:
    labels.wait_for(camera.send(picture()))
    before = rig.client.counts(IMAGE)
    bad = camera.send(picture(), **changes)
    status = rig.client.status(IMAGE, lambda s: s.level == DiagnosticStatus.ERROR and reason in s.message)
    assert status.message.startswith("A frame on /rig/image was skipped: ")
    assert reason in values(status)["last error"]
    good = camera.send(picture())
    labels.wait_for(good)
    after = rig.client.counts(IMAGE)
    assert after["bad"] == before["bad"] + 1 and after["answered"] == before["answered"] + 1
    assert bad not in labels.stamps() and rig.process.running
