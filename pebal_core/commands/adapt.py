"""``pebal adapt SOURCE… --out DIR`` adapts a model to one camera, using its footage alone.

It writes ``model.safetensors``, ``summary.json``, ``report.html`` and ``ego_mask.png``. An interrupted run continues
when the same command is given again.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..adaptation.run import AdaptConfig, adapt
from ..guarantee import Request
from ..locks import held
from ..ranges import Number, Whole
from .model_options import add_topic_argument


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "sources", nargs="+", help="drives without anomalies: videos, recordings, folders of images or a camera"
    )
    add_topic_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--model", type=str, default="starter", help="model file, or name of a shipped model")
    parser.add_argument("--outliers", type=Path, help="folder written by 'pebal prepare-coco'; default: random shapes")
    parser.add_argument("--ego-mask", type=Path, help="ego mask, white on the vehicle; default: found in the footage")
    parser.add_argument("--samples", type=Whole(1, 10**6), default=300, help="crops of the footage to learn from")
    parser.add_argument("--interval", type=Number(0.01, 3600), default=0.5, help="seconds between sampled frames")
    parser.add_argument("--block", type=Number(1, 3600), default=4.0, help="length of a block of time in seconds")
    parser.add_argument("--frames", type=Whole(10, 10**6), default=300, help="keep this many frames at most")
    parser.add_argument(
        "--alpha", type=Number(1e-6, 0.5), default=0.01, help="expected share of falsely alarmed pixels"
    )


def run(args: Namespace) -> None:
    names = ("sources", "out", "topic", "model", "outliers", "ego_mask", "samples", "interval", "block", "frames")
    with held(args.out):
        summary = adapt(AdaptConfig(**{name: args[name] for name in names}, request=Request(args.alpha)))
    first, after = summary["before"], summary["after_at_equal_recall"]
    print(
        f"{args.out}: false objects per frame {first['false_objects']:.2f} before, {after['false_objects']:.2f} after, "
        f"at equal recall {first['recall']:.2f} of pasted objects. {summary['guarantee']['text']} "
        f"Look at report.html. ({summary['seconds']:.0f} s)"
    )
