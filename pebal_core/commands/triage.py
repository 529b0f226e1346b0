"""``pebal triage SOURCES… --top 50 --out DIR``: the moments of many recordings and videos that are worth looking at.

Writes ``index.html`` (a page that needs no other file), ``moments.csv``, ``clips/``, and ``frames/`` with the camera's
images, ready for labelling or training. Moments with confirmed objects come first, then the energy decides; what
belongs to one event is one moment, and what looks like a moment that is shown is left out. A run that was killed goes
on where it stopped: what is done of each source lies in ``sources/``. A source that cannot be read is named, the others
are done, and the exit status is 1; so it is where a source ends early, of which what came before counts.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..engines.selection import model_info
from ..fleet.scan import Request
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
    parser.add_argument("--top", type=Whole(1, 100_000), default=50, help="moments to show")
    parser.add_argument("--rate", type=Number(0, 1000), default=0.0, help="frames per second to look at; 0: all")
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
    request = Request(args.top, args.topic, args.rate, args.batch, options)
    return 1 if triage(args.sources, args.out, request, choice, args.top, chosen_cluster(args), args.rerun) else 0
