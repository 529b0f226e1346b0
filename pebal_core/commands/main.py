"""``pebal COMMAND …``: the entry point of every offline command (``ros2 run pebal_core COMMAND`` calls the same)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import PebalError
from ..installation import explained_imports

COMMANDS = {
    "predict": "labels, energy and overlays of images, folders, videos and recordings",
    "triage": "the moments of many recordings and videos that are worth looking at",
    "doctor": "whether this installation is fit, and what to do where it is not",
    "info": "what a model file says of itself",
    "export": "a model as ONNX, compared with PyTorch before it is written",
    "convert": "a third-party checkpoint into a model file",
    "pretrain": "train a segmentation network from labelled images",
    "prepare-coco": "outlier masks from COCO's annotations, for training",
    "paste-outliers": "write the validation scenes with pasted objects of a training as images and labels",
    "paste-sequences": "write labelled sequences in which an object comes nearer, from clips of drives",
    "train": "PEBAL fine-tuning of a segmentation network",
    "suggest-margins": "energy histograms of a network, and the margins that follow from them",
    "ablate": "train and compare the variants of the objective",
    "adapt": "a model for one camera, from its footage alone",
    "calibrate": "choose the alarm threshold that keeps a promise about false alarms",
    "benchmark": "every figure of the field on whole data sets, beside the published ones",
    "pack": "submission files for Fishyscapes and SegmentMeIfYouCan, checked",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a `PebalError` ends it with its one sentence and status 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print("usage: pebal COMMAND [options]      pebal COMMAND --help      pebal --version\n")
        for name, purpose in COMMANDS.items():
            print(f"  {name:<17}{purpose}")
        return 0 if words else 2
    name = words[0]
    if name == "--version":
        print(f"pebal_ros {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"pebal: there is no command '{name}'; choose one of: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        with explained_imports():
            from .parser import make_parser, parse

            command = importlib.import_module(f".{name.replace('-', '_')}", __package__)
        parser = make_parser(f"pebal {name}", COMMANDS[name])
        command.add_arguments(parser)
        return command.run(parser.instantiate(parse(parser, words[1:]))) or 0
    except PebalError as error:
        print(f"pebal {name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of whatever place a path leads to
        place = f"'{error.filename!s:.100}'" if error.filename else "A file"
        reason = error.strerror or str(error)
        print(f"pebal {name}: {place} cannot be used: {reason}; choose another place or free space.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"pebal {name}: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
