"""Frames of clean drives, on which the shipped starter was taught to be calm (see config/train_starter.yaml).

    python scripts/road_frames.py DATA/roads

One frame a second of the clips beside the demo's own, which is left out: Udacity's drives, MIT licence.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
from demo_footage import CLIP, download_clips

from pebal_core.errors import PebalError


def write_frames(clip: Path, folder: Path) -> int:
    """Every frame that begins a second, as JPEG; returns their number."""
    video = cv2.VideoCapture(str(clip))
    every, number, written = round(video.get(cv2.CAP_PROP_FPS)), 0, 0
    if not every:
        raise PebalError(f"OpenCV cannot read the clip {clip.name}, because it was built without FFmpeg.")
    while video.grab():
        if number % every == 0:
            cv2.imwrite(str(folder / f"{clip.stem}_{number:05d}.jpg"), video.retrieve()[1])
            written += 1
        number += 1
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the frames go")
    folder = parser.parse_args().folder
    try:
        write_all(folder)
    except (PebalError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


def write_all(folder: Path) -> None:
    """Download the clips and write their frames to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(download_clips(Path(scratch))) as archive:
        names = [name for name in archive.namelist() if name.startswith(str(Path(CLIP).parent)) and name != CLIP]
        count = sum(write_frames(Path(archive.extract(name, scratch)), folder) for name in sorted(names))
    print(f"{folder}: {count} frames of {len(names)} clips.")


if __name__ == "__main__":
    main()
