"""``pebal predict SOURCE --out DIR``: labels, energy, objects and overlays of images, folders, videos and recordings.

Writes ``labels/NAME.png`` (trainIds), ``energy/NAME.npy`` (float32 nats), ``objects/NAME.png`` (uint16 object numbers)
and ``overlay/NAME.jpg`` for every frame, ``objects.jsonl`` with a line for every frame, and ``overlay.mp4`` where the
source is a video or a recording. Frames of a recording are named by their number and their stamp in nanoseconds. Frames
of a folder are taken to follow each other, ten in a second.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..errors import PebalError
from ..footage import FrameSource
from ..render import VideoWriter, draw_objects, overlay, score_map
from .model_options import add_model_arguments, add_topic_argument, load_detector
from .object_options import ObjectReader, add_object_arguments, number_map


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=str, help="video, recording, folder of images, image, or camera index")
    add_topic_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--frames", type=int, default=0, help="stop after this many; 0: all")
    add_model_arguments(parser)
    add_object_arguments(parser)


def run(args: Namespace) -> int:
    source = FrameSource(args.source, args.topic)
    detector = load_detector(args)
    low, high = detector.info.energy_range
    read_objects = ObjectReader(args, detector.info)
    for kind in ("labels", "energy", "objects", "overlay"):
        _make_folder(args.out / kind)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    video = VideoWriter(args.out / "overlay.mp4", source.rate) if source.is_video else None
    with Progress(*columns) as progress, (args.out / "objects.jsonl").open("w") as lines:
        total = min(args.frames, source.count or args.frames) if args.frames else source.count
        task = progress.add_task(f"{detector.engine_name} on {detector.device_name}", total=total)
        for number, frame in enumerate(source, start=1):
            result = detector(frame.image)
            objects = read_objects(result, frame.seconds)
            picture = draw_objects(overlay(frame.image, score_map(result.energy, low, high)), objects)
            line = {
                "name": frame.name,
                "time": round(frame.seconds, 6),
                "objects": [found.as_json() for found in objects],
            }
            lines.write(json.dumps(line) + "\n")
            _write_image(args.out / "labels" / f"{frame.name}.png", result.labels)
            _write_image(args.out / "objects" / f"{frame.name}.png", number_map(objects, *result.energy.shape))
            np.save(args.out / "energy" / f"{frame.name}.npy", result.energy)
            _write_image(args.out / "overlay" / f"{frame.name}.jpg", picture[..., ::-1])
            if video is not None:
                video.write(picture)
            progress.advance(task)
            if number == args.frames:
                break
    if video is not None:
        video.close()
    left_out = f"; {source.skipped} malformed images were skipped" if source.skipped else ""
    print(f"Results of {number} frames are in {args.out}{left_out}.")
    return 1 if source.skipped else 0


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PebalError(f"The folder {folder} cannot be made: {error.strerror}; choose another --out.") from error


def _write_image(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise PebalError(f"{path} could not be written; free space or choose another --out.")
