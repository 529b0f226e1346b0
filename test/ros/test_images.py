"""Conversions against OpenCV and against the definition of each encoding."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from pebal_core.errors import PebalError
from pebal_core.footage.ros_images import ENCODINGS, from_compressed, to_rgb
from pebal_ros.messages import to_compressed, to_message

from .harness import picture

HEIGHT, WIDTH = 36, 50  # no multiple of a power of two, but even


def message_of(pixels: np.ndarray, encoding: str, padding: int = 0, height: int | None = None) -> Image:
    """A message built by hand, byte by byte, with `padding` bytes of noise after every row."""
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1).view(np.uint8)
    noise = np.random.default_rng(1).integers(0, 256, (len(rows), padding), np.uint8)
    message = Image(height=height or len(rows), width=pixels.shape[1], encoding=encoding)
    message.step = rows.shape[1] + padding
    message.data.frombytes(np.hstack([rows, noise]).tobytes())
    return message


def encoded(encoding: str, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(what a camera would send, the RGB that OpenCV makes of it)."""
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if encoding.endswith("16"):
        sent, expected = encoded(encoding.replace("16", "8"), rgb)
        return sent.astype(np.uint16) * 257, expected
    if encoding == "rgb8":
        return rgb, rgb
    if encoding == "bgr8":
        return rgb[..., ::-1], rgb
    if encoding in ("rgba8", "bgra8"):
        color = rgb if encoding == "rgba8" else rgb[..., ::-1]
        return np.dstack([color, np.full(gray.shape, 77, np.uint8)]), rgb
    if encoding == "mono8":
        return gray, np.dstack([gray] * 3)
    if encoding.startswith("bayer"):
        pattern = encoding.removeprefix("bayer_")[:4]
        mosaic = np.empty_like(gray)
        for place, letter in enumerate(pattern):
            row, column = divmod(place, 2)
            mosaic[row::2, column::2] = rgb[row::2, column::2, "rgb".index(letter)]
        return mosaic, cv2.demosaicing(mosaic, getattr(cv2, f"COLOR_Bayer{pattern.upper()}2RGB"))
    yuv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    y, chroma = yuv[:HEIGHT], yuv[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
    if encoding == "nv12":
        sent = np.vstack([y, chroma.transpose(1, 2, 0).reshape(HEIGHT // 2, WIDTH)])
        return sent, cv2.cvtColor(sent, cv2.COLOR_YUV2RGB_NV12)
    if encoding == "nv21":
        sent = np.vstack([y, chroma[::-1].transpose(1, 2, 0).reshape(HEIGHT // 2, WIDTH)])
        return sent, cv2.cvtColor(sent, cv2.COLOR_YUV2RGB_NV21)
    pairs = chroma.repeat(2, axis=1).transpose(1, 2, 0).reshape(HEIGHT, WIDTH)  # u v u v …
    if encoding in ("yuv422", "uyvy"):
        sent = np.dstack([pairs, y])
        return sent, cv2.cvtColor(sent, cv2.COLOR_YUV2RGB_UYVY)
    sent = np.dstack([y, pairs])
    return sent, cv2.cvtColor(sent, cv2.COLOR_YUV2RGB_YUYV)


@pytest.mark.parametrize("padding", [0, 14])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_is_what_opencv_makes_of_it(encoding: str, padding: int) -> None:
    rgb = picture(HEIGHT, WIDTH)
    sent, expected = encoded(encoding, rgb)
    result = to_rgb(message_of(sent, encoding, padding, height=HEIGHT))
    assert result.dtype == np.uint8 and result.shape == (HEIGHT, WIDTH, 3)
    tolerance = 1 if encoding.endswith("16") else 0  # 16 bits are interpolated more finely
    np.testing.assert_allclose(result.astype(int), expected, atol=tolerance)
    # and OpenCV's idea of the encoding is ours: the colours are those of the scene
    reference = expected if encoding.startswith("mono") else rgb
    assert np.abs(result.astype(int) - reference).mean() < 15, "the colours are not those of the scene"


@pytest.mark.parametrize("encoding", ["bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8"])
def test_bayer_patterns_are_named_by_their_first_pixels(encoding: str) -> None:
    orange = np.full((8, 8, 3), (250, 120, 10), np.uint8)
    mosaic, _ = encoded(encoding, orange)
    np.testing.assert_array_equal(to_rgb(message_of(mosaic, encoding)), orange)


@pytest.mark.parametrize("padding", [0, 6])
def test_big_endian_mono16(padding: int) -> None:
    wide = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    message = message_of(wide.astype(">u2"), "mono16", padding)
    message.is_bigendian = 1
    np.testing.assert_array_equal(to_rgb(message)[..., 0], np.round(wide / 257).astype(np.uint8))


@pytest.mark.parametrize("padding", [0, 5])
def test_rgb8_is_not_copied(padding: int) -> None:
    message = message_of(picture(HEIGHT, WIDTH), "rgb8", padding)
    assert np.shares_memory(to_rgb(message), np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", [name for name, form in ENCODINGS.items() if form.sample is np.uint8])
def test_no_8_bit_encoding_is_copied_before_it_is_converted(encoding: str, padding: int) -> None:
    sent, _ = encoded(encoding, picture(HEIGHT, WIDTH))
    message = message_of(np.tile(sent, (10, 10) + (1,) * (sent.ndim - 2)), encoding, padding, height=10 * HEIGHT)
    to_rgb(message)  # what OpenCV allocates once is no copy
    tracemalloc.start()
    result = to_rgb(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (0 if encoding == "rgb8" else result.nbytes) + 10_000


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_cv_bridge_agrees(encoding: str) -> None:
    bridge = pytest.importorskip("cv_bridge").CvBridge()
    if encoding in ("uyvy", "yuyv", "nv12") or (encoding.startswith("bayer") and encoding.endswith("16")):
        pytest.skip("not every version of cv_bridge reads it")
    message = message_of(encoded(encoding, picture(HEIGHT, WIDTH))[0], encoding, height=HEIGHT)
    assert np.abs(to_rgb(message).astype(int) - bridge.imgmsg_to_cv2(message, "rgb8")).max() <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0}, "the image is empty"),
        ({"height": 0}, "the image is empty"),
        ({"encoding": "rgb99"}, "'rgb99' is not supported; publish one of: rgb8, bgr8"),
        ({"encoding": ""}, "not supported"),
        ({"step": 3 * WIDTH - 1}, "the step is 149 bytes, but a row of 50 pixels of rgb8 takes 150"),
        ({"step": 0}, "the step is 0 bytes"),
        ({"step": 3 * WIDTH + 1}, "which takes 5436"),
        (
            {"height": HEIGHT + 1},
            "5400 bytes of data came with a 50×37 rgb8 image of step 150, which takes 5550",
        ),
        ({"encoding": "rgba8"}, "takes 200"),
        ({"encoding": "mono16", "step": 151}, "the step is 151 bytes"),
        ({"encoding": "nv12", "width": 49}, "odd size"),
        ({"encoding": "nv12", "height": 35}, "odd size"),
        ({"encoding": "yuyv", "width": 49}, "odd size"),
        ({"height": 2**32 - 1, "width": 2**32 - 1, "step": 2**32 - 1}, "the step is"),
    ],
)
def test_malformed_messages_are_named(changes: dict[str, object], words: str) -> None:
    message = message_of(picture(HEIGHT, WIDTH), "rgb8")
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(PebalError) as caught:
        to_rgb(message)
    assert words in str(caught.value)


@pytest.mark.parametrize("missing", [1, 2700, 5400])
def test_truncated_data(missing: int) -> None:
    message = message_of(picture(HEIGHT, WIDTH), "rgb8")
    del message.data[len(message.data) - missing :]
    with pytest.raises(PebalError, match=f"^{5400 - missing} bytes of data"):
        to_rgb(message)


@pytest.mark.parametrize(("codec", "tolerance"), [("png", 0), ("jpeg", 6)])
def test_compressed_there_and_back(codec: str, tolerance: int) -> None:
    rgb = picture(HEIGHT, WIDTH)
    message = to_compressed(rgb, codec, Header(frame_id="front"))
    assert message.format == f"rgb8; {codec} compressed bgr8" and message.header.frame_id == "front"
    assert np.abs(from_compressed(message).astype(int) - rgb).mean() <= tolerance
    ids = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    gray = to_compressed(ids, codec, Header())
    unpacked = cv2.imdecode(np.frombuffer(gray.data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert unpacked is not None and np.abs(unpacked.astype(int) - ids).mean() <= tolerance


@pytest.mark.parametrize("codec", ["png", "jpeg"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated_compressed_images(codec: str, keep: float) -> None:
    whole = bytes(to_compressed(picture(HEIGHT, WIDTH), codec, Header()).data)
    message = CompressedImage(format=codec, data=whole[: int(keep * len(whole))])
    with pytest.raises(PebalError, match="truncated or corrupt|neither a JPEG nor a PNG"):
        from_compressed(message)


@pytest.mark.parametrize("data", [b"", b"\xff", b"hello, world", b"\xff\xd8\xff\xd9", b"\x89PNG IEND"])
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(PebalError):
        from_compressed(CompressedImage(format="jpeg", data=data))


@pytest.mark.parametrize(
    ("pixels", "encoding", "step"),
    [
        (np.arange(60, dtype=np.uint8).reshape(6, 10), "mono8", 10),
        (np.linspace(-9, 3, 60, dtype=np.float32).reshape(6, 10), "32FC1", 40),
        (np.arange(180, dtype=np.uint8).reshape(6, 10, 3)[:, ::-1], "rgb8", 30),  # not contiguous
    ],
)
def test_writing(pixels: np.ndarray, encoding: str, step: int) -> None:
    message = to_message(pixels, encoding, Header(frame_id="front"))
    assert (message.height, message.width, message.step, message.encoding) == (6, 10, step, encoding)
    assert message.header.frame_id == "front"
    np.testing.assert_array_equal(np.frombuffer(message.data, pixels.dtype).reshape(pixels.shape), pixels)
