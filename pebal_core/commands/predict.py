"""``pebal predict SOURCE --out DIR`` writes labels, energy, objects and overlays of images, videos and recordings.

For every frame it writes ``labels/NAME.png`` (trainIds), ``energy/NAME.npy`` (float32 nats), ``objects/NAME.png``
(uint16 object numbers) and ``overlay/NAME.jpg``. ``objects.jsonl`` has a line for every frame. If the source is a video
or a recording, ``overlay.mp4`` is written too. Frames of a recording are named by their number and their time stamp in
nanoseconds. The images of a folder are treated as a sequence at ten frames per second.

With ``--out-bag FILE.mcap`` it writes a recording with the topics that the node would publish, for ``ros2 bag play``
and viewers. A folder is then written only if ``--out`` is given as well.

With ``--ray`` the workers of a Ray cluster run the network. This process reads the frames, tracks the objects and
writes, so that the results equal those of a single process.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..drift import DriftMonitor
from ..engines.selection import model_info
from ..errors import PebalError
from ..fleet.cluster import open_workers
from ..fleet.frames import BatchDetector, answered
from ..footage import FrameSource
from ..locks import held
from ..model_file import resolve_model
from ..outputs import ObjectReader
from ..ranges import Whole
from .cluster_options import add_cluster_arguments, chosen_cluster
from .model_options import (
    add_batch_argument,
    add_model_arguments,
    add_topic_argument,
    load_detector,
    model_choice,
)
from .object_options import add_object_arguments, object_options
from .results import CHOICES, DEFAULT_OUTPUTS, BagResults, FolderResults, ResultWriter


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=str, help="video, recording, folder of images, image, or camera index")
    add_topic_argument(parser)
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--out-bag", type=Path, help="recording (.mcap) to write, with the topics of the node")
    parser.add_argument(
        "--outputs",
        nargs="+",
        choices=CHOICES,
        default=list(DEFAULT_OUTPUTS),
        metavar="NAME",
        help=f"topics to write to --out-bag, out of {', '.join(CHOICES)}; default: {' '.join(DEFAULT_OUTPUTS)}",
    )
    parser.add_argument("--with-images", action="store_true", help="copy the camera's images to --out-bag as well")
    parser.add_argument("--frames", type=Whole(0, 10**9), default=0, help="stop after this many frames; 0 reads all")
    add_batch_argument(parser)
    add_cluster_arguments(parser)
    add_model_arguments(parser)
    add_object_arguments(parser)


def run(args: Namespace) -> int:
    if args.out is None and args.out_bag is None:
        raise PebalError("No output is named. Pass --out FOLDER, --out-bag FILE.mcap, or both.")
    with held(args.out) if args.out is not None else nullcontext():
        return _predict(args)


def _predict(args: Namespace) -> int:
    source = FrameSource(args.source, args.topic)
    cluster, info = chosen_cluster(args), model_info(resolve_model(args.model))
    if cluster is None:
        detector = load_detector(args)
        title, load = f"{detector.engine_name} on {detector.device_name}", lambda: detector
    else:
        title, load = "frames", model_choice(args).everywhere().load
    read = ObjectReader(object_options(args, info), info, source)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    monitor = DriftMonitor(info) if info.profile else None
    drifted_at = 0
    number = 0
    total = min(args.frames, source.count or args.frames) if args.frames else source.count
    most = -(-total // args.batch) if total else sys.maxsize
    with open_workers(cluster, partial(BatchDetector, load), most) as workers:
        places = _places(args, source, read.settings.threshold is not None)
        try:
            with Progress(*columns) as progress, ExitStack() as stack:
                for place in places:
                    stack.enter_context(place)
                task = progress.add_task(title, total=total)
                frames = islice(source, args.frames or None)
                for frame, result in answered(frames, workers, args.batch):
                    number += 1
                    if monitor is not None and monitor.update(result.energy, frame.image).drifted and not drifted_at:
                        drifted_at = number
                    products = read(frame, result)
                    for place in places:
                        place.write(frame, products)
                    progress.advance(task)
        finally:  # results so far are kept however the run ends
            left_out = f"; {source.skipped} malformed images were skipped" if source.skipped else ""
            where = " and ".join(str(path) for path in (args.out, args.out_bag) if path is not None)
            print(f"Results of {number} frames are in {where}{left_out}.")
            if monitor is not None and drifted_at:
                print(f"From frame {drifted_at} on: {monitor.state.text}")
    return 1 if source.skipped else 0


def _places(args: Namespace, source: FrameSource, alarms: bool) -> list[ResultWriter]:
    places: list[ResultWriter] = [FolderResults(args.out, source)] if args.out is not None else []
    if args.out_bag is not None:
        places.append(BagResults(args.out_bag, source, args.outputs, args.with_images, alarms))
    return places
