"""``pebal benchmark --model M --dataset NAME=PATH … --out DIR``: every figure of the field, on whole data sets.

Resumes where it was killed. Shared over processes, on one machine or on many that see DIR:

    torchrun --nproc-per-node N [--nnodes M --rdzv-endpoint HOST:PORT] -m pebal_core benchmark …
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..benchmark.protocols import PROTOCOLS
from ..benchmark.run import Request, run_benchmark
from ..labels import VOID
from ..ranges import Number, Whole
from ..scores import SCORES
from .model_options import add_model_arguments


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        action="append",
        required=True,
        type=str,
        metavar="NAME=PATH",
        help="a set known by name (docs/benchmark.md), or any name for a folder with images/ and labels/; repeatable",
    )
    parser.add_argument("--out", type=Path, required=True, help="results folder")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="fishyscapes")
    parser.add_argument(
        "--scores",
        type=str,
        nargs="+",
        help=f"of {', '.join(SCORES)}, each also with _raw or _smoothed; default: all, both ways",
    )
    parser.add_argument("--sml-images", type=Path, help="folder of training images, for the statistics of sml")
    parser.add_argument(
        "--inlier-ids", type=Whole(0, 255), nargs="+", default=[0], help="in the labels of a folder pair"
    )
    parser.add_argument("--anomaly-ids", type=Whole(0, 255), nargs="+", default=[1])
    parser.add_argument("--void-ids", type=Whole(0, 255), nargs="*", default=[VOID])
    parser.add_argument(
        "--patience", type=Number(0.1, 1e6), default=600.0, help="seconds until silent processes count as dead"
    )
    add_model_arguments(parser)


def run(args: Namespace) -> int:
    request = Request(
        model=args.model,
        engine=args.engine,
        device=args.device,
        precision=args.precision,
        input_size=(args.input_size[0], args.input_size[1]) if args.input_size else None,
        datasets=args.dataset,
        out=args.out,
        protocol=args.protocol,
        scores=args.scores,
        sml_images=args.sml_images,
        inlier_ids=args.inlier_ids,
        anomaly_ids=args.anomaly_ids,
        void_ids=args.void_ids,
        patience=args.patience,
    )
    return run_benchmark(request)
