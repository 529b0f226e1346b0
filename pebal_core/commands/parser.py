"""How the words of a command and its configuration are read: as data that names no code."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
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


def make_parser(program: str, description: str) -> Parser:
    """An empty parser; configurations that it reads import nothing and make nothing because a value names it."""
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=LISTED_TYPES, instantiate_subclass_spec_in_any=False
    )
    set_loader("yaml", load_data, exceptions=(yaml.YAMLError,))
    return Parser(prog=program, description=description)


def parse(parser: Parser, words: Sequence[str]) -> Namespace:
    """The options; what cannot be read as a configuration is refused like any other."""
    try:
        return parser.parse_args(words)
    except (OSError, ValueError, RecursionError, ArgumentTypeError) as error:
        parser.error(f"{error!s:.200}")
