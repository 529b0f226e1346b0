"""The options that several commands share."""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser, Namespace

from ..detector import ENGINES, PRECISIONS, AnomalyDetector
from ..integrity import SIDES
from ..ranges import Whole


def add_topic_argument(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--topic", type=str, default="", help="of a recording, the image topic by name or type; default: the only one"
    )


def add_model_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=str, default="starter", help="model file, or name of a shipped model")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="auto: the faster of those that fit")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:N, or tensorrt (onnxruntime)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument(
        "--input-size",
        type=Whole(0, SIDES[1]),
        nargs=2,
        metavar=("H", "W"),
        help="size at which the network runs; default: as the model says, 0 0: the image's own",
    )


def load_detector(args: Namespace) -> AnomalyDetector:
    size = tuple(args.input_size) if args.input_size else None
    detector = AnomalyDetector.load(args.model, args.engine, args.device, args.precision, input_size=size)
    if detector.reason:
        print(detector.reason, file=sys.stderr)
    return detector
