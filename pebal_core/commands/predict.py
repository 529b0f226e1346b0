"""``pebal predict SOURCE --out DIR``: labels, energy and overlays of images, folders and videos.

Writes ``labels/NAME.png`` (trainIds), ``energy/NAME.npy`` (float32 nats) and ``overlay/NAME.jpg`` for every frame,
and ``overlay.mp4`` where the source is a video.
"""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..errors import PebalError
from ..model_file import write_atomically
from ..ranges import Whole
from ..render import VideoWriter, overlay, score_map
from ..sources import FrameSource
from .model_options import add_model_arguments, load_detector


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=str, help="video, folder of images, image, or camera index")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--frames", type=Whole(0, 10**9), default=0, help="stop after this many; 0: all")
    add_model_arguments(parser)


def run(args: Namespace) -> None:
    source = FrameSource(args.source)
    detector = load_detector(args)
    low, high = detector.info.energy_range
    for kind in ("labels", "energy", "overlay"):
        _make_folder(args.out / kind)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    video = VideoWriter(args.out / "overlay.mp4", source.rate) if source.is_video else None
    number = 0
    try:
        with Progress(*columns) as progress:
            total = min(args.frames, source.count or args.frames) if args.frames else source.count
            task = progress.add_task(f"{detector.engine_name} on {detector.device_name}", total=total)
            for number, frame in enumerate(source, start=1):
                result = detector(frame.image)
                picture = overlay(frame.image, score_map(result.energy, low, high))
                _write_image(args.out / "labels" / f"{frame.name}.png", result.labels)
                _write_array(args.out / "energy" / f"{frame.name}.npy", result.energy)
                _write_image(args.out / "overlay" / f"{frame.name}.jpg", picture[..., ::-1])
                if video is not None:
                    video.write(picture)
                progress.advance(task)
                if number == args.frames:
                    break
    finally:  # what there is so far is kept, whatever ends the run
        if video is not None:
            video.close()
        print(f"Results of {number} frames are in {args.out}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PebalError(f"The folder {folder} cannot be made: {error.strerror}; choose another --out.") from error


def _write_image(path: Path, image: np.ndarray) -> None:
    written, content = cv2.imencode(path.suffix, image)
    if not written:
        raise PebalError(f"{path} of {image.shape} cannot be encoded; use a smaller image.")
    write_atomically(path, content.tobytes(), durable=False)


def _write_array(path: Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    write_atomically(path, content.getvalue(), durable=False)
