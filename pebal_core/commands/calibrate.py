"""``pebal calibrate SOURCE --out MODEL``: choose the alarm threshold on scenes without anomalies.

SOURCE is footage of one's own (video, recording, folder or camera) in which nothing is anomalous, or with ``--layout``
the folder of a labelled data set, whose void pixels are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.progress import track

from ..data.scenes import SCENE_SETS, open_scenes
from ..footage import FrameSource
from ..model_file import rewrite_info
from ..ranges import Number, Whole
from ..training.calibrate import calibrate
from .model_options import add_model_arguments, add_topic_argument, load_detector


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=str, help="footage without anomalies, or with --layout a data set's folder")
    add_topic_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="the model file to write")
    parser.add_argument(
        "--false-alarms", type=Number(1e-6, 0.5), default=0.01, help="share of inlier pixels above the threshold"
    )
    parser.add_argument("--frames", type=Whole(1, 10**9), help="use this many frames at most (a camera needs it)")
    parser.add_argument("--layout", choices=sorted(SCENE_SETS), help="the source is a labelled data set")
    parser.add_argument("--split", type=str, default="val", help="of the labelled data set")
    add_model_arguments(parser)


def run(args: Namespace) -> None:
    if args.layout:
        labelled = open_scenes(args.layout, args.source, args.split)
        note, count = labelled.name, len(labelled)
        scenes: Iterator[tuple[np.ndarray, np.ndarray | None]] = (labelled.load(i) for i in range(count))
    else:
        footage = FrameSource(args.source, args.topic)
        note, count = Path(args.source).name, footage.count or args.frames
        scenes = ((frame.image, None) for frame in footage)
    detector = load_detector(args)
    total = min(count, args.frames) if args.frames else count
    calibrate(detector, track(islice(scenes, args.frames), "calibrating", total), args.false_alarms, note)
    rewrite_info(args.model, args.out, detector.info)
    print(f"{args.out}: threshold {detector.info.threshold} nats, {detector.info.threshold_note}.")
