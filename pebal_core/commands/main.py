"""``pebal COMMAND …``: the entry point of every offline command (``ros2 run pebal_core COMMAND`` calls the same)."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

from ..errors import PebalError

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
    "calibrate": "choose the alarm threshold on scenes without anomalies",
    "benchmark": "every figure of the field on whole data sets, beside the published ones",
    "pack": "submission files for Fishyscapes and SegmentMeIfYouCan, checked",
}


MOST_VALUES = 100_000
"""Of a configuration with its aliases expanded, which a few lines can multiply without end."""
DEEPEST = 50
"""Lists and mappings within each other."""
CODE = {"class_path", "init_args", "dict_kwargs"}
"""Keys by which jsonargparse would make an object of a class that a configuration names."""
LISTED_TYPES = ["pebal_core.training.samples.SceneSource"]
"""Dataclasses of which a configuration holds lists: jsonargparse looks them up by name, though no value names them."""
_load_yaml = get_loader("yaml")


class Parser(ArgumentParser):
    """Options of a command; what is wrong with them is one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if named := re.search(r"^.*?(?=Importing '(.*?)' is not allowed)", message, re.DOTALL):
            message = f"{named[0]} '{named[1]}' names code, and a configuration is data: nothing is imported."
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def load_data(text: str) -> Any:
    """A configuration or one of its values, in YAML."""
    try:
        value = _load_yaml(text)
        _count(value, MOST_VALUES, 0)
    except (RecursionError, ValueError) as error:
        raise yaml.YAMLError(str(error)) from error
    return value


def _count(value: Any, left: int, depth: int) -> int:
    """How many values more there may be after these."""
    if left <= 0 or depth > DEEPEST:
        raise ValueError(f"more than {MOST_VALUES} values, or more than {DEEPEST} within each other")
    if isinstance(value, dict) and (code := sorted(CODE & value.keys())):
        raise ValueError(f"the key {code[0]} names code, and a configuration is data: nothing is imported")
    left -= 1
    for item in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        left = _count(item, left, depth + 1)
    return left


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a `PebalError` ends it with its one sentence and status 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print("usage: pebal COMMAND [options]      pebal COMMAND --help\n")
        for name, purpose in COMMANDS.items():
            print(f"  {name:<17}{purpose}")
        return 0 if words else 2
    name = words[0]
    if name not in COMMANDS:
        print(f"pebal: there is no command '{name}'; choose one of: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    command = importlib.import_module(f".{name.replace('-', '_')}", __package__)
    # Configurations are data: nothing is imported or made because a value names it.
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=LISTED_TYPES, instantiate_subclass_spec_in_any=False
    )
    set_loader("yaml", load_data, exceptions=(yaml.YAMLError,))
    parser = Parser(prog=f"pebal {name}", description=COMMANDS[name])
    command.add_arguments(parser)
    try:
        return command.run(parser.instantiate(_parse(parser, words[1:]))) or 0
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


def _parse(parser: Parser, words: Sequence[str]) -> Namespace:
    """The options; what cannot be read as a configuration is refused like any other."""
    try:
        return parser.parse_args(words)
    except (OSError, ValueError, RecursionError) as error:
        parser.error(f"{error!s:.200}")


if __name__ == "__main__":
    sys.exit(main())
