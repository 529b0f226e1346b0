"""``pebal predict SOURCE --out DIR``: labels, energy, objects and overlays of images, folders, videos and recordings.

Writes ``labels/NAME.png`` (trainIds), ``energy/NAME.npy`` (float32 nats), ``objects/NAME.png`` (uint16 object numbers)
and ``overlay/NAME.jpg`` for every frame, ``objects.jsonl`` with a line for every frame, and ``overlay.mp4`` where the
source is a video or a recording. Frames of a recording are named by their number and their stamp in nanoseconds. Frames
of a folder are taken to follow each other, ten in a second.

With ``--out-bag FILE.mcap`` it writes a recording with the topics that the node would publish, for ``ros2 bag play``
and viewers, and no folder unless ``--out`` is given as well.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..drift import DriftMonitor
from ..errors import PebalError
from ..footage import FrameSource
from ..outputs import ObjectReader
from ..ranges import Whole
from .model_options import add_model_arguments, add_topic_argument, load_detector
from .object_options import add_object_arguments, object_options
from .results import CHOICES, DEFAULT_OUTPUTS, BagResults, FolderResults, Results


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=str, help="video, recording, folder of images, image, or camera index")
    add_topic_argument(parser)
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--out-bag", type=Path, help="recording (.mcap) for the results as topics of the node")
    parser.add_argument(
        "--outputs",
        nargs="+",
        choices=CHOICES,
        default=list(DEFAULT_OUTPUTS),
        metavar="NAME",
        help=f"topics of --out-bag, of: {', '.join(CHOICES)}; default: {' '.join(DEFAULT_OUTPUTS)}",
    )
    parser.add_argument("--with-images", action="store_true", help="copy the camera's images to --out-bag as well")
    parser.add_argument("--frames", type=Whole(0, 10**9), default=0, help="stop after this many; 0: all")
    add_model_arguments(parser)
    add_object_arguments(parser)


def run(args: Namespace) -> int:
    if args.out is None and args.out_bag is None:
        raise PebalError("There is no place for the results: give --out FOLDER, --out-bag FILE.mcap, or both.")
    source = FrameSource(args.source, args.topic)
    detector = load_detector(args)
    places: list[Results] = [FolderResults(args.out, source)] if args.out is not None else []
    read = ObjectReader(object_options(args, detector.info), detector.info, source)
    if args.out_bag is not None:
        alarms = read.settings.threshold is not None
        places.append(BagResults(args.out_bag, source, args.outputs, args.with_images, alarms))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    monitor = DriftMonitor(detector.info) if detector.info.profile else None
    drifted_at = 0
    number = 0
    try:
        with Progress(*columns) as progress, ExitStack() as stack:
            for place in places:
                stack.enter_context(place)
            total = min(args.frames, source.count or args.frames) if args.frames else source.count
            task = progress.add_task(f"{detector.engine_name} on {detector.device_name}", total=total)
            for number, frame in enumerate(source, start=1):
                result = detector(frame.image)
                if monitor is not None and monitor.update(result.energy, frame.image).drifted and not drifted_at:
                    drifted_at = number
                products = read(frame, result)
                for place in places:
                    place.write(frame, products)
                progress.advance(task)
                if number == args.frames:
                    break
    finally:  # what there is so far is kept, whatever ends the run
        left_out = f"; {source.skipped} malformed images were skipped" if source.skipped else ""
        where = " and ".join(str(path) for path in (args.out, args.out_bag) if path is not None)
        print(f"Results of {number} frames are in {where}{left_out}.")
        if monitor is not None and drifted_at:
            print(f"From frame {drifted_at} on: {monitor.state.text}")
    return 1 if source.skipped else 0
