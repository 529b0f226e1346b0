"""``pebal calibrate SOURCE… --out MODEL`` chooses an alarm threshold that bounds the rate of false alarms.

The sources are your own drives without anomalies (videos, recordings, folders or a camera) or, with ``--layout``, the
folder of a labelled data set, whose void pixels are ignored. If there are too few drives for the guarantee, blocks of
time take their place, and the statement in the model file says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.progress import track

from ..data.scenes import SCENE_SETS, open_scenes
from ..errors import PebalError
from ..footage import FrameSource
from ..guarantee import Request
from ..model_file import rewrite_info
from ..ranges import Number, Whole
from ..risk_control import units_needed
from ..training.calibrate import CalibrationScene, calibrate
from .model_options import add_model_arguments, add_topic_argument, load_detector


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", help="drives without anomalies, or with --layout a data set's folder")
    add_topic_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="the model file to write")
    parser.add_argument(
        "--alpha", type=Number(1e-6, 0.5), default=0.01, help="expected share of falsely alarmed pixels"
    )
    parser.add_argument(
        "--object-alpha", type=Number(1e-6, 0.99), help="chance that a frame shows a false object; default: no bound"
    )
    parser.add_argument("--object-size", type=Whole(1, 10**6), default=100, help="smallest false object in pixels")
    parser.add_argument(
        "--clip", type=Number(1e-6, 1), default=0.05, help="a drive's share of alarms is clipped to this value"
    )
    parser.add_argument(
        "--confidence",
        type=Number(0.5, 0.9999),
        default=0.95,
        help="confidence of the second guarantee; the first one holds on average",
    )
    parser.add_argument(
        "--confident", action="store_true", help="choose a threshold that satisfies the second guarantee too"
    )
    parser.add_argument(
        "--block",
        type=Number(0.1, 3600),
        default=5.0,
        help="seconds of a block of time, for when there are too few drives",
    )
    parser.add_argument(
        "--interval", type=Number(0, 3600), default=0.5, help="seconds between the frames used of a video"
    )
    parser.add_argument("--frames", type=Whole(1, 10**9), help="most frames to use; required for a camera")
    parser.add_argument("--layout", choices=sorted(SCENE_SETS), help="the source is a labelled data set")
    parser.add_argument("--split", type=str, default="val", help="split of the labelled data set")
    add_model_arguments(parser)


def run(args: Namespace) -> None:
    request = Request(
        args.alpha, args.object_alpha, args.object_size, args.clip, args.confidence, confident=args.confident
    )
    needed = max(
        units_needed(alpha, bound, request.confidence if request.confident else None)
        for alpha, bound in request.risks.values()
    )
    scenes, unit, source, count = _labelled(args, needed) if args.layout else _footage(args, needed)
    detector = load_detector(args)
    total = min(count, args.frames) if count and args.frames else count or args.frames
    promised = calibrate(detector, track(islice(scenes, args.frames), "calibrating", total), request, unit, source)
    rewrite_info(args.model, args.out, detector.info)
    print(f"{args.out}: threshold {promised.threshold:.3f} nats. {promised.text}")


def _labelled(args: Namespace, needed: int) -> tuple[Iterator[CalibrationScene], str, str, int | None]:
    """Scenes of a labelled data set; the units are the image folders, or runs of images if there are too few folders.

    Returns:
        The scenes, the name of the unit, the name of the data, and the number of scenes.
    """
    scenes = open_scenes(args.layout, args.sources[0], args.split)
    if len(args.sources) > 1:
        raise PebalError(f"With --layout, pass one folder, not {len(args.sources)}.")
    folders = [image.parent.name for image, _ in scenes.pairs]
    if len(set(folders)) >= needed:
        names, unit = folders, "drives"
    else:
        length = max(1, len(folders) // (2 * needed))
        names, unit = [f"{folder}/{n // length}" for n, folder in enumerate(folders)], f"runs of {length} images"
    items = (CalibrationScene(names[i], *scenes.load(i)) for i in range(len(scenes)))
    return items, unit, scenes.name, len(scenes)


def _footage(args: Namespace, needed: int) -> tuple[Iterator[CalibrationScene], str, str, int | None]:
    """Scenes of footage; the units are the sources, or blocks of time if there are too few sources.

    Returns:
        The scenes, the name of the unit, the name of the data, and the number of scenes if it is known.
    """
    sources = [FrameSource(source, args.topic) for source in args.sources]
    if any(source.is_camera for source in sources) and not args.frames:
        raise PebalError("A camera has no last frame, so pass --frames.")
    drives = len(sources) >= needed
    steps = [max(1, round(args.interval * s.rate)) if s.is_video else 1 for s in sources]

    def scenes() -> Iterator[CalibrationScene]:
        for number, (source, step) in enumerate(zip(sources, steps)):
            for index, frame in enumerate(source):
                if index % step == 0:
                    block = 0 if drives else int(frame.seconds / args.block)
                    yield CalibrationScene(f"{number}/{block}", frame.image)

    counts = [source.count for source in sources]
    total = None if None in counts else sum(-(-(count or 0) // step) for count, step in zip(counts, steps))
    names = ", ".join(Path(source).name for source in args.sources)
    return scenes(), "drives" if drives else f"blocks of {args.block:g} s", names, total
