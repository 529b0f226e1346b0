"""``pebal benchmark --model M --dataset NAME=PATH … --out DIR`` computes the usual metrics on whole data sets.

A run that was killed resumes where it stopped. ``--ray`` distributes the images over processes, on one machine or on
several that share DIR.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..benchmark.plan import Request
from ..benchmark.protocols import PROTOCOLS
from ..benchmark.run import run_benchmark
from ..benchmark.sequences import RESULTS, evaluate_sequences, table, write_results
from ..data.sequences import SequenceFrame, open_sequences
from ..errors import PebalError
from ..labels import VOID
from ..objects import ObjectRules, TrackRules
from ..ranges import Whole
from ..scores import SCORES
from .cluster_options import add_cluster_arguments, chosen_cluster
from .model_options import add_model_arguments, load_detector, model_choice


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        type=str,
        metavar="NAME=PATH",
        help="a data set known by name (docs/benchmark.md), or any other name for a folder with images/ and labels/; "
        "repeatable",
    )
    parser.add_argument(
        "--sequences", type=Path, help="folder of labelled sequences, for metrics of tracked objects (without --ray)"
    )
    parser.add_argument("--out", type=Path, required=True, help="results folder")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="fishyscapes")
    parser.add_argument(
        "--scores",
        type=str,
        nargs="+",
        help=f"scores to evaluate, out of {', '.join(SCORES)}, each optionally with _raw or _smoothed; default: all "
        "scores, both ways",
    )
    parser.add_argument("--sml-images", type=Path, help="folder of training images, for the statistics of sml")
    parser.add_argument(
        "--inlier-ids", type=Whole(0, 255), nargs="+", default=[0], help="ids in the labels of a folder pair"
    )
    parser.add_argument(
        "--classes",
        type=str,
        help="name or .yaml file of the labels' class list, in place of the ids (docs/classes.md)",
    )
    parser.add_argument(
        "--ego-mask", action="store_true", help="ignore pixels in the model's ego mask, for images of its own camera"
    )
    parser.add_argument("--anomaly-ids", type=Whole(0, 255), nargs="+", default=[1])
    parser.add_argument("--void-ids", type=Whole(0, 255), nargs="*", default=[VOID])
    add_cluster_arguments(parser)
    add_model_arguments(parser)


def run(args: Namespace) -> int:
    if args.sequences:
        _run_sequences(args)
    if not args.dataset:
        if not args.sequences:
            raise PebalError("There is nothing to do. Name a set with --dataset NAME=PATH, or pass --sequences FOLDER.")
        return 0
    request = Request(
        model=model_choice(args),
        datasets=args.dataset,
        out=args.out,
        protocol=args.protocol,
        scores=args.scores,
        sml_images=args.sml_images,
        inlier_ids=args.inlier_ids,
        anomaly_ids=args.anomaly_ids,
        void_ids=args.void_ids,
        classes=args.classes,
        ego_mask=args.ego_mask,
    )
    return run_benchmark(request, chosen_cluster(args))


def _run_sequences(args: Namespace) -> None:
    sequences = open_sequences(args.sequences)
    detector = load_detector(args)
    rules = ObjectRules.for_model(detector.info)
    with Progress(TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()) as bar:

        def shown(frames: Iterable[SequenceFrame], name: str, count: int) -> Iterable[SequenceFrame]:
            return bar.track(frames, total=count, description=name)

        results = evaluate_sequences(detector, sequences, rules, TrackRules(), progress=shown)
    write_results(args.out / RESULTS, args.model, rules.threshold, results)
    Console().print(table(results))
