"""Ranges of all numbers that users give; a number out of range is refused before anything runs."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import Any

from .errors import PebalError
from .model_info import SIDES

Range = tuple[float, float]
"""Smallest and largest value."""
COUNT: Range = (1, 1_000_000_000)
SHARE: Range = (0, 1)
RATE: Range = (0, 10)
"""Range of learning rates."""
WEIGHT: Range = (0, 1e6)
NATS: Range = (-1000, 1000)
SIDE: Range = SIDES
SEED: Range = (0, 2**32 - 1)


def check_ranges(config: Any, lengths: dict[str, int | tuple[int, ...]] | None = None, **ranges: Range) -> None:
    """Refuse fields of a configuration that are out of range; None and strings are not checked.

    Args:
        config: a dataclass.
        lengths: length of a list, or the lengths that are allowed, by the name of the field.
        ranges: ranges of numbers and of the items of lists, by the name of the field.

    Raises:
        PebalError: a value is out of range; the message names field, range and value.

    Examples:
        >>> @dataclass
        ... class Options:
        ...     steps: int
        >>> check_ranges(Options(steps=0), steps=COUNT)
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: steps must lie between 1 and 1e+09; it is 0.
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        items = value if isinstance(value, list) else [value]
        allowed = (lengths or {}).get(name, ())
        counts = (allowed,) if isinstance(allowed, int) else allowed
        if value is not None and counts and len(items) not in counts:
            raise PebalError(f"{name} takes {' or '.join(map(str, counts))} numbers, not {len(items)}: {value}.")
        for item in items:
            if isinstance(item, (int, float)) and not low <= item <= high:
                raise PebalError(f"{name} must lie between {low:g} and {high:g}; it is {item:g}.")


@dataclass(frozen=True)
class Whole:
    """Type of an option that takes an integer within bounds, for `ArgumentParser.add_argument`.

    Examples:
        >>> Whole(1, 10)("7")
        7
    """

    low: int
    high: int

    def __call__(self, text: Any) -> int:
        return int(_within(text, self, self.low, self.high, whole=True))

    def __repr__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Number:
    """Type of an option that takes a number within bounds.

    Examples:
        >>> Number(0, 1)("0.25")
        0.25
    """

    low: float
    high: float

    def __call__(self, text: Any) -> float:
        return _within(text, self, self.low, self.high, whole=False)

    def __repr__(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


def _within(text: Any, kind: Whole | Number, low: float, high: float, whole: bool) -> float:
    try:
        value = math.nan if isinstance(text, bool) else int(text) if whole and isinstance(text, str) else float(text)
    except (ValueError, TypeError, OverflowError):
        value = math.nan
    if not low <= value <= high or (whole and value != int(value)):
        raise ArgumentTypeError(f"it takes {kind!r}, not {text!s:.40}")
    return value
