"""How the words of a command and its configuration are read: as data that names no code."""

from __future__ import annotations

import re
import warnings
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

MOST_VALUES = 100_000
"""Of a configuration with its aliases expanded, which a few lines can multiply without end."""
DEEPEST = 50
"""Lists and mappings within each other."""
CODE = {"class_path", "init_args", "dict_kwargs"}
"""Keys by which jsonargparse would make an object of a class that a configuration names."""
LISTED_TYPES = ["pebal_core.training.samples.SceneSource"]
"""Dataclasses of which a configuration holds lists: jsonargparse looks them up by name, though no value names them."""
RENAMED = {
    "rate": "lr",
    "trunk_rate": "backbone_lr",
    "encoder_rate": "encoder_lr",
    "rate_floor": "min_lr",
    "trained": "trainable",
    "false_alarms": "target_fpr",
    "statistics": "freeze_bn",
}
"""Options of trainings under their former names, which are still understood."""
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
        if isinstance(value, dict):
            value = dict(_current(key, item) for key, item in value.items())
    except (RecursionError, ValueError) as error:
        raise yaml.YAMLError(str(error)) from error
    return value


def _current(key: Any, value: Any) -> tuple[Any, Any]:
    """An option under its name of today; its former name is answered with a warning."""
    if key not in RENAMED:
        return key, value
    if key == "statistics":
        value = value == "frozen"
    warnings.warn(f"The option {key} is called {RENAMED[key]} now; the former name will go.", FutureWarning, 2)
    return RENAMED[key], value


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


def make_parser(program: str, description: str) -> Parser:
    """An empty parser; configurations that it reads import nothing and make nothing because a value names it."""
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=LISTED_TYPES, instantiate_subclass_spec_in_any=False
    )
    set_loader("yaml", load_data, exceptions=(yaml.YAMLError,))
    return Parser(prog=program, description=description)


def _current_words(words: Sequence[str], known: set[str]) -> Iterator[str]:
    """The words of a command line, with the names of today where the command has them and not the former ones."""
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name in known or RENAMED.get(name) not in known:
            yield word
            continue
        key, current = _current(name, value if equals else next(waiting, ""))
        yield f"--{key}={str(current).lower() if isinstance(current, bool) else current}"


def parse(parser: Parser, words: Sequence[str]) -> Namespace:
    """The options; what cannot be read as a configuration is refused like any other."""
    known = {action.dest for action in parser._actions}
    try:
        return parser.parse_args(list(_current_words(words, known)))
    except (OSError, ValueError, RecursionError, ArgumentTypeError) as error:
        parser.error(f"{error!s:.200}")
