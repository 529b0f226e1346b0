"""``pebal paste-sequences CLIP … --outliers OUTLIERS --to OUT`` writes labelled sequences with approaching objects.

Every clip gives one sequence without an object and ``--each`` sequences with one. In those, an object of the held-back
categories stands on the road and grows as the camera approaches. The geometry of the road is given in pixels of a frame
that is 960 pixels wide; the defaults fit the demo drives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.progress import track

from ..data.coco import OutlierSet
from ..data.cutouts import cut_out
from ..data.sequences import Approach, Road, write_sequence
from ..errors import PebalError
from ..footage import FrameSource
from ..labels import OUTLIER

SMALLEST = 40
"""Smallest side length in pixels of an object that may be enlarged."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("clips", type=Path, nargs="+", help="videos of drives that show nothing foreign")
    parser.add_argument("--outliers", type=Path, required=True, help="folder written by pebal prepare-coco")
    parser.add_argument("--to", type=Path, required=True, help="folder to write the sequences to")
    parser.add_argument(
        "--categories",
        type=str,
        nargs="+",
        default=["elephant", "dog", "suitcase", "teddy bear", "cat", "chair"],
        help="categories of the objects; choose ones that are not used in training",
    )
    parser.add_argument("--each", type=int, default=2, help="number of sequences with an object per clip")
    parser.add_argument("--frames", type=int, default=60, help="number of frames per sequence")
    parser.add_argument("--every", type=int, default=3, help="take every n-th frame of the clip")
    parser.add_argument("--horizon", type=float, default=Road.horizon, help="row of the horizon")
    parser.add_argument("--centre", type=float, default=Road.centre, help="column of the middle of the lane")
    parser.add_argument("--focal", type=float, default=Road.focal, help="focal length in pixels")
    parser.add_argument("--camera-height", type=float, default=Road.camera_height, help="metres above the road")
    parser.add_argument("--seed", type=int, default=0)


def run(args: Namespace) -> None:
    for name, low in (("each", 0), ("frames", 1), ("every", 1)):
        if getattr(args, name) < low:
            raise PebalError(f"--{name} must be at least {low}; it is {getattr(args, name)}.")
    road = Road(960, args.horizon, args.centre, args.focal, args.camera_height)
    outliers = OutlierSet.open(args.outliers).select(
        lambda instance: instance.category in args.categories and min(instance.box[2:]) >= SMALLEST,
        f"sequences, of {', '.join(args.categories)} with sides of at least {SMALLEST} pixels",
    )
    choices = [(image, instance) for image in outliers.images for instance in image.instances]
    random = np.random.default_rng(args.seed)
    count = 0
    for clip in track(args.clips, "clips"):
        source = FrameSource(clip)
        write_sequence(args.to / f"{clip.stem}_clean", source, None, road, Approach(), args.frames, args.every)
        for number in range(args.each):
            chosen, instance = choices[int(random.integers(len(choices)))]
            image, numbers = chosen.load()
            approach = Approach(
                frames=args.frames,
                object_width=float(random.uniform(0.7, 1.5)),
                lateral=float(random.uniform(-0.8, 0.8)),
            )
            folder = args.to / f"{clip.stem}_{number}_{instance.category.replace(' ', '_')}"
            write_sequence(
                folder,
                source,
                cut_out(image, numbers == instance.number, OUTLIER),
                road,
                approach,
                args.frames,
                args.every,
            )
        count += 1 + args.each
    print(f"{args.to}: {count} sequences of {len(args.clips)} clips.")
