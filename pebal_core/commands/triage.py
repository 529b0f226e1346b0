"""``pebal triage SOURCES… --top 50 --out DIR`` finds the moments in recordings and videos that are worth looking at.

It writes ``index.html`` (a self-contained page), ``moments.csv``, ``clips/``, and ``frames/`` with the camera's images,
ready for labelling or training. Moments with confirmed objects come first; within each group, moments are ranked by
energy. All frames of one event are one moment, and a moment that looks like one already shown is left out. A run that
was killed continues where it stopped, from the progress of each source in ``sources/``. A source that cannot be read is
reported, the others are processed, and the exit status is 1. The same holds for a source that ends early; its frames up
to that point count.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..engines.selection import model_info
from ..fleet.scan import ScanRequest
from ..fleet.triage import triage
from ..model_file import resolve_model
from ..ranges import Number, Whole
from .cluster_options import add_cluster_arguments, chosen_cluster
from .model_options import add_batch_argument, add_model_arguments, add_topic_argument, model_choice
from .object_options import add_object_arguments, object_options


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "sources", type=str, nargs="+", help="recordings, videos, folders of images, or folders of any of these"
    )
    add_topic_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--top", type=Whole(1, 100_000), default=50, help="number of moments to show")
    parser.add_argument("--rate", type=Number(0, 1000), default=0.0, help="frames per second to process; 0: all")
    add_batch_argument(parser)
    parser.add_argument(
        "--rerun", type=Path, metavar="FILE.rrd", help="write moments and alarm series for Rerun as well"
    )
    add_cluster_arguments(parser)
    add_model_arguments(parser)
    add_object_arguments(parser)


def run(args: Namespace) -> int:
    choice = model_choice(args)
    options = object_options(args, model_info(resolve_model(args.model)))
    request = ScanRequest(args.top, args.topic, args.rate, args.batch, options)
    return 1 if triage(args.sources, args.out, request, choice, args.top, chosen_cluster(args), args.rerun) else 0
