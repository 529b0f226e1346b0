"""Options that several commands share."""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser, Namespace

from ..detector import ENGINES, PRECISIONS, AnomalyDetector
from ..fleet.scan import ModelChoice
from ..model_info import SIDES
from ..ranges import Whole


def add_topic_argument(parser: ArgumentParser) -> None:
    """Add the option for the image topic of a recording.

    Examples:
        >>> parser = ArgumentParser()
        >>> add_topic_argument(parser)
        >>> parser.parse_args(["--topic", "/front/image_raw"]).topic
        '/front/image_raw'
    """
    parser.add_argument(
        "--topic", type=str, default="", help="name or type of the image topic in recordings; default: the only one"
    )


def add_model_arguments(parser: ArgumentParser) -> None:
    """Add the options for the model, its engine, device, precision and input size.

    Examples:
        >>> parser = ArgumentParser()
        >>> add_model_arguments(parser)
        >>> parser.parse_args(["--input-size", "512", "1024"]).input_size
        [512, 1024]
    """
    parser.add_argument("--model", type=str, default="starter", help="model file, or name of a shipped model")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="auto picks the fastest usable engine")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:N, or tensorrt (onnxruntime)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument(
        "--input-size",
        type=Whole(0, SIDES[1]),
        nargs="+",
        metavar="SIDE",
        help="height and width at which the network runs, or only the longer side, to which larger images are scaled "
        "down; default: the model's input size; 0 0 keeps the size of the image",
    )


def add_batch_argument(parser: ArgumentParser) -> None:
    """Add the option for the size of a batch.

    Examples:
        >>> parser = ArgumentParser()
        >>> add_batch_argument(parser)
        >>> parser.parse_args(["--batch", "8"]).batch
        8
    """
    parser.add_argument("--batch", type=Whole(1, 1024), default=1, help="frames that go through the network at once")


def model_choice(args: Namespace) -> ModelChoice:
    """The model that the options of `add_model_arguments` choose.

    Examples:
        >>> parser = ArgumentParser()
        >>> add_model_arguments(parser)
        >>> model_choice(parser.parse_args(["--device", "cpu"]))
        ModelChoice(model='starter', engine='auto', device='cpu', precision='auto', input_size=None)
    """
    size = tuple(args.input_size) if args.input_size else None
    return ModelChoice(args.model, args.engine, args.device, args.precision, size)


def load_detector(args: Namespace) -> AnomalyDetector:
    """Load the chosen model; prints the reason why its engine was picked, if there is one.

    Examples:
        >>> parser = ArgumentParser()
        >>> add_model_arguments(parser)
        >>> load_detector(parser.parse_args(["--engine", "torch", "--device", "cpu"])).device_name
        'cpu'
    """
    detector = model_choice(args).load()
    if detector.reason:
        print(detector.reason, file=sys.stderr)
    return detector
