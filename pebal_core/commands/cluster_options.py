"""The options of the commands that run on more than one process or machine."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from ..fleet.cluster import HERE, Cluster
from ..ranges import Whole


def add_cluster_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--ray",
        type=str,
        nargs="?",
        const=HERE,
        metavar="ADDRESS",
        help="share the work over the workers of a Ray cluster; without an address, over those of this machine",
    )
    parser.add_argument("--cores", type=Whole(1, 1024), default=1, help="of each worker of --ray that has no GPU")


def chosen_cluster(args: Namespace) -> Cluster | None:
    """None: the work is done in this process."""
    return Cluster(args.ray, args.cores) if args.ray else None
