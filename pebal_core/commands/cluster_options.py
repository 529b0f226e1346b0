"""Options shared by the commands that can run on several processes or machines."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from ..fleet.cluster import HERE, Cluster
from ..ranges import Whole


def add_cluster_arguments(parser: ArgumentParser) -> None:
    """Add the options for a Ray cluster.

    Examples:
        >>> parser = ArgumentParser()
        >>> add_cluster_arguments(parser)
        >>> parser.parse_args(["--ray"]).ray
        'local'
    """
    parser.add_argument(
        "--ray",
        type=str,
        nargs="?",
        const=HERE,
        metavar="ADDRESS",
        help="distribute the work over a Ray cluster; without an address, over processes on this machine",
    )
    parser.add_argument("--cores", type=Whole(1, 1024), default=1, help="CPU cores of each --ray worker without a GPU")


def chosen_cluster(args: Namespace) -> Cluster | None:
    """The cluster that the options name, or None if the work is done in this process.

    Examples:
        >>> parser = ArgumentParser()
        >>> add_cluster_arguments(parser)
        >>> chosen_cluster(parser.parse_args(["--ray", "--cores", "2"]))
        Cluster(address='local', cores=2)
        >>> chosen_cluster(parser.parse_args([])) is None
        True
    """
    return Cluster(args.ray, args.cores) if args.ray else None
