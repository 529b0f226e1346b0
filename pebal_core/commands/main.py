"""``pebal COMMAND …`` is the entry point of every offline command; ``ros2 run pebal_core COMMAND`` does the same."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import PebalError
from ..installation import explained_imports

COMMANDS = {
    "predict": "write labels, energy and overlays of images, folders, videos and recordings",
    "triage": "find the moments in many recordings and videos that are worth looking at",
    "doctor": "check this installation and suggest remedies",
    "info": "show the description of a model file",
    "export": "export a model to ONNX and compare it with PyTorch",
    "convert": "convert a third-party checkpoint to a model file",
    "pretrain": "train a segmentation network from labelled images",
    "prepare-coco": "make outlier masks for training from COCO's annotations",
    "paste-outliers": "write a training's validation scenes with pasted objects as images and labels",
    "paste-sequences": "write labelled sequences in which an object comes nearer, from clips of drives",
    "train": "fine-tune a segmentation network with PEBAL",
    "suggest-margins": "show energy histograms of a network and suggest margins for training",
    "ablate": "train and compare the variants of the objective",
    "adapt": "adapt a model to one camera, using its footage alone",
    "calibrate": "choose an alarm threshold that bounds the rate of false alarms",
    "benchmark": "compute the usual metrics on whole data sets, beside the published figures",
    "pack": "write and check submission files for Fishyscapes and SegmentMeIfYouCan",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; for a `PebalError`, print its message and return 1.

    Examples:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        pebal_ros ...
        0
    """
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
    except OSError as error:  # a path of the user leads to a place that cannot be used
        place = f"'{error.filename!s:.100}'" if error.filename else "A file"
        reason = error.strerror or str(error)
        print(f"pebal {name}: {place} cannot be used: {reason}; choose another place or free space.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"pebal {name}: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
