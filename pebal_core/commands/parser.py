"""Parses command lines and configurations as plain data, from which no code is ever imported."""

from __future__ import annotations

import re
import warnings
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

MOST_VALUES = 100_000
"""Most values in a configuration after its aliases are expanded; a few lines of aliases can yield billions."""
DEEPEST = 50
"""Deepest nesting of lists and mappings."""
CODE = {"class_path", "init_args", "dict_kwargs"}
"""Keys by which jsonargparse would instantiate a class that a configuration names."""
LISTED_TYPES = ["pebal_core.training.samples.SceneSource"]
"""Dataclasses that occur in lists in a configuration; jsonargparse looks them up by name, so they must be allowed."""
RENAMED = {
    "rate": "lr",
    "trunk_rate": "backbone_lr",
    "encoder_rate": "encoder_lr",
    "rate_floor": "min_lr",
    "trained": "trainable",
    "false_alarms": "target_fpr",
    "statistics": "freeze_bn",
}
"""Former names of training options, which are still accepted, and their present names."""
_load_yaml = get_loader("yaml")


class _Parser(ArgumentParser):
    """Parser of a command's options that reports an error as one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if named := re.search(r"^.*?(?=Importing '(.*?)' is not allowed)", message, re.DOTALL):
            message = (
                f"{named[0]} '{named[1]}' names code. A configuration contains only data, and nothing is imported."
            )
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def _load_data(text: str) -> Any:
    """Load a configuration, or one of its values, from YAML.

    Raises:
        yaml.YAMLError: the text is no YAML, too large, too deep, or names code.
    """
    try:
        value = _load_yaml(text)
        _count(value, MOST_VALUES, 0)
        if isinstance(value, dict):
            value = dict(_current(key, item) for key, item in value.items())
    except (RecursionError, ValueError) as error:
        raise yaml.YAMLError(str(error)) from error
    return value


def _current(key: Any, value: Any) -> tuple[Any, Any]:
    """Translate a former option name to the present one, with a warning."""
    if key not in RENAMED:
        return key, value
    if key == "statistics":
        value = value == "frozen"
    warnings.warn(
        f"The option {key} has been renamed to {RENAMED[key]}; the old name will be removed.", FutureWarning, 2
    )
    return RENAMED[key], value


def _count(value: Any, left: int, depth: int) -> int:
    """Check a value and return how many more values are allowed after it."""
    if left <= 0 or depth > DEEPEST:
        raise ValueError(f"more than {MOST_VALUES} values, or more than {DEEPEST} within each other")
    if isinstance(value, dict) and (code := sorted(CODE & value.keys())):
        raise ValueError(
            f"the key {code[0]} names code, but a configuration contains only data, and nothing is imported"
        )
    left -= 1
    for item in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        left = _count(item, left, depth + 1)
    return left


def make_parser(program: str, description: str) -> _Parser:
    """Make a parser without options; the configurations that it reads can import and instantiate nothing.

    Examples:
        >>> make_parser("pebal predict", "write labels and energy").prog
        'pebal predict'
    """
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=LISTED_TYPES,
        instantiate_subclass_spec_in_any=False,
        docstring_parse_attribute_docstrings=True,
    )
    set_loader("yaml", _load_data, exceptions=(yaml.YAMLError,))
    return _Parser(prog=program, description=description)


def _current_words(words: Sequence[str], known: set[str]) -> Iterator[str]:
    """Yield the words of a command line, with former option names replaced where the command has only the new name."""
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name in known or RENAMED.get(name) not in known:
            yield word
            continue
        key, current = _current(name, value if equals else next(waiting, ""))
        yield f"--{key}={str(current).lower() if isinstance(current, bool) else current}"


def parse(parser: _Parser, words: Sequence[str]) -> Namespace:
    """Parse the options; any failure exits with status 2 and a one-sentence message.

    Examples:
        >>> parser = make_parser("pebal train", "fine-tune a network")
        >>> _ = parser.add_argument("--lr", type=float)
        >>> parse(parser, ["--lr", "1e-4"]).lr
        0.0001
    """
    known = {action.dest for action in parser._actions}
    try:
        return parser.parse_args(list(_current_words(words, known)))
    except (OSError, ValueError, RecursionError, ArgumentTypeError) as error:
        parser.error(f"{error!s:.200}")
