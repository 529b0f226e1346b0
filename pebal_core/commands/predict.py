"""``pebal predict SOURCE --out DIR``: labels, energy and overlays of images, folders and videos.

Writes ``labels/NAME.png`` (trainIds), ``energy/NAME.npy`` (float32 nats) and ``overlay/NAME.jpg`` for every frame,
and ``overlay.mp4`` where the source is a video.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..drift import DriftMonitor
from ..errors import PebalError
from ..render import VideoWriter, overlay, score_map
from ..sources import FrameSource
from .model_options import add_model_arguments, load_detector


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=str, help="video, folder of images, image, or camera index")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--frames", type=int, default=0, help="stop after this many; 0: all")
    add_model_arguments(parser)


def run(args: Namespace) -> None:
    source = FrameSource(args.source)
    detector = load_detector(args)
    low, high = detector.info.energy_range
    for kind in ("labels", "energy", "overlay"):
        _make_folder(args.out / kind)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    monitor = DriftMonitor(detector.info) if detector.info.profile else None
    drifted_at = 0
    video = VideoWriter(args.out / "overlay.mp4", source.rate) if source.is_video else None
    with Progress(*columns) as progress:
        total = min(args.frames, source.count or args.frames) if args.frames else source.count
        task = progress.add_task(f"{detector.engine_name} on {detector.device_name}", total=total)
        for number, frame in enumerate(source, start=1):
            result = detector(frame.image)
            if monitor is not None and monitor.update(result.energy, frame.image).drifted and not drifted_at:
                drifted_at = number
            picture = overlay(frame.image, score_map(result.energy, low, high))
            _write_image(args.out / "labels" / f"{frame.name}.png", result.labels)
            np.save(args.out / "energy" / f"{frame.name}.npy", result.energy)
            _write_image(args.out / "overlay" / f"{frame.name}.jpg", picture[..., ::-1])
            if video is not None:
                video.write(picture)
            progress.advance(task)
            if number == args.frames:
                break
    if video is not None:
        video.close()
    if monitor is not None and drifted_at:
        print(f"From frame {drifted_at} on: {monitor.state.text}")
    print(f"Results of {number} frames are in {args.out}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PebalError(f"The folder {folder} cannot be made: {error.strerror}; choose another --out.") from error


def _write_image(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise PebalError(f"{path} could not be written; free space or choose another --out.")
