"""Counts of float32 scores on disk, the storage behind `ScoreCounts`.

Scores are mapped to unsigned 32-bit keys of the same order. For each class separately they are filed by *page*, which
is the upper 16 bits of the key. A page is stored in the smaller of two forms, either the list of the lower 16 bits of
its pixels' keys or, for many pixels, a table of 65,536 counts. Pages that are written together form a *sorted run*.
"""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, cast

import numpy as np

from pebal_core.errors import PebalError

PAGE = 1 << 16
"""Number of keys in a page, and also of pages per class; inliers have page numbers from 0, outliers from PAGE on."""

_STRETCH = 1 << 18  # number of pixels that are sorted at once
_IN_MEMORY = 4 << 20  # bytes of a file that are kept in memory before it is written to disk

Array = np.ndarray
Buffer = bytes | memoryview


def score_keys(scores: Array) -> Array:
    """Map float32 scores without NaN to uint32 keys of the same order; -0.0 and 0.0 have the same key.

    >>> score_keys(np.array([-np.inf, -1, 0, 2], np.float32)).tolist()
    [8388607, 1082130431, 2147483648, 3221225472]
    """
    bits = (scores + np.float32(0)).view(np.uint32)
    # A set sign bit reverses the order of the other 31 bits, so all bits are flipped; else only the sign bit is set.
    flipped = bits.view(np.int32) >> 31
    flipped |= np.int32(-(1 << 31))
    bits ^= flipped.view(np.uint32)
    return bits


def key_scores(keys: Array) -> Array:
    """Map keys back to scores, as the inverse of `score_keys`.

    Examples:
        >>> key_scores(score_keys(np.array([-1.5, 0, 2], np.float32))).tolist()
        [-1.5, 0.0, 2.0]
    """
    return np.where(keys >> 31, keys ^ np.uint32(1 << 31), ~keys).view(np.float32)


@dataclass
class SortedRun:
    """Pages of both classes in ascending order, stored consecutively in a file from `start` on."""

    file: IO[bytes]
    start: int
    pages: Array  # int32 page numbers
    pixels: Array  # int64, number of pixels in each page
    widths: Array  # uint8, 0 for a list of lower 16 bits (uint16), else the bytes of each of the 65,536 counts

    def __post_init__(self) -> None:
        sizes = np.where(self.widths == 0, 2 * self.pixels, PAGE * self.widths.astype(np.int64))
        self._ends = np.concatenate([[0], np.cumsum(sizes)])

    def count(self, first: int, end: int) -> int:
        """Number of pixels in the pages first ≤ page < end."""
        i, j = np.searchsorted(self.pages, (first, end))
        return int(self.pixels[i:j].sum())

    def keys(self, first: int, end: int) -> Array:
        """uint32 keys of all pixels in the pages first ≤ page < end of one class, page by page."""
        i, j = np.searchsorted(self.pages, (first, end))
        upper = self.pages[i:j].astype(np.uint32) << 16  # the shift drops the class from the 32 bits
        if not self.widths[i:j].any():
            return np.repeat(upper, self.pixels[i:j]) | self._read(i, j, 0)
        pages = []
        for at, page in zip(range(i, j), upper, strict=True):
            width = int(self.widths[at])
            content = self._read(at, at + 1, width)
            pages.append(page | (np.repeat(np.arange(PAGE, dtype=np.uint32), content) if width else content))
        return np.concatenate(pages)

    def table(self, page: int) -> Array:
        """Number of pixels at each of the 65,536 keys of a page."""
        i, j = np.searchsorted(self.pages, (page, page + 1))
        width = int(self.widths[i]) if i < j else 0
        content = self._read(i, j, width)
        return content.astype(np.int64) if width else np.bincount(content, minlength=PAGE)

    def payload(self, chunk: int = 1 << 20) -> Iterator[bytes]:
        """Yield all pages as stored in the file, in pieces of at most `chunk` bytes."""
        size = int(self._ends[-1])
        for at in range(0, size, chunk):
            self.file.seek(self.start + at)
            yield self.file.read(min(chunk, size - at))

    def _read(self, i: int, j: int, width: int) -> Array:
        self.file.seek(self.start + int(self._ends[i]))
        return np.frombuffer(self.file.read(int(self._ends[j] - self._ends[i])), f"u{width or 2}")


class Level:
    """The runs of one generation, in one temporary file."""

    def __init__(self) -> None:
        self.runs: list[SortedRun] = []
        self.file = cast(IO[bytes], tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY))  # noqa: SIM115
        weakref.finalize(self, self.file.close)

    def append(
        self,
        payload: Iterable[Buffer],
        pages: Sequence[int] | Array,
        pixels: Sequence[int] | Array,
        widths: Sequence[int] | Array,
    ) -> None:
        """Add a run; `widths` may be filled while `payload` is iterated."""
        start = self.file.seek(0, os.SEEK_END)
        try:
            for content in payload:
                self.file.seek(0, os.SEEK_END)  # a merge may read from this file between two writes
                self.file.write(content)
            self.file.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise PebalError(
                f"The folder for temporary files, {tempfile.gettempdir()}, is full. Set TMPDIR to another one (exact "
                "pixel metrics need up to 2 bytes for each pixel and score)."
            ) from error
        index = np.array(pages, np.int32), np.array(pixels, np.int64), np.array(widths, np.uint8)
        self.runs.append(SortedRun(self.file, start, *index))

    def clear(self) -> None:
        """Remove all runs and empty the file."""
        self.runs.clear()
        self.file.seek(0)
        self.file.truncate()


def distinct(ascending: Array) -> tuple[Array, Array]:
    """Distinct values of a sorted array and the count of each (numpy.unique would sort again).

    >>> values, counts = distinct(np.array([2, 2, 5]))
    >>> values.tolist(), counts.tolist()
    ([2, 5], [2, 1])
    """
    starts = np.flatnonzero(ascending[1:] != ascending[:-1]) + 1
    starts = np.concatenate([np.zeros(min(len(ascending), 1), np.int64), starts])
    return ascending[starts], np.diff(starts, append=len(ascending))


def stretches(totals: Array) -> list[tuple[int, int]]:
    """Split pages into ascending ranges (first, end), each a single page or small enough to sort at once.

    `totals` holds the number of pixels in each page. The first and the last page of a range are not empty.

    >>> stretches(np.array([0, 5, 0, 7]))
    [(1, 4)]
    """
    ranges: list[tuple[int, int]] = []
    room = 0
    for page in np.flatnonzero(totals).tolist():
        pixels = int(totals[page])
        if pixels <= room:
            ranges[-1] = ranges[-1][0], page + 1
        else:
            ranges.append((page, page + 1))
            room = _STRETCH
        room -= pixels
    return ranges


def tally(runs: list[SortedRun], first: int, end: int) -> tuple[Array, Array]:
    """Distinct keys (uint32, ascending) in a range of pages of one class, and the number of pixels at each.

    Examples:
        >>> level = Level()
        >>> level.append([np.array([7, 9, 9], np.uint16).data], pages=[2], pixels=[3], widths=[0])
        >>> keys, pixels = tally(level.runs, 2, 3)
        >>> [hex(key) for key in keys], pixels.tolist()
        (['0x20007', '0x20009'], [1, 2])
    """
    if end - first == 1 and sum(run.count(first, end) for run in runs) > _STRETCH:
        table = np.zeros(PAGE, np.int64)
        for run in runs:
            table += run.table(first)
        lower = np.flatnonzero(table)
        return lower.astype(np.uint32) | np.uint32(first % PAGE << 16), table[lower]
    keys = np.concatenate([np.empty(0, np.uint32), *(run.keys(first, end) for run in runs)])
    keys.sort()
    return distinct(keys)


def merge_runs(runs: list[SortedRun], into: Level) -> None:
    """Merge several runs into one, with each page in its smaller form.

    Examples:
        >>> level, merged = Level(), Level()
        >>> for lower in ([7, 9], [9]):
        ...     level.append([np.array(lower, np.uint16).data], pages=[2], pixels=[len(lower)], widths=[0])
        >>> merge_runs(level.runs, merged)
        >>> len(merged.runs), (merged.runs[0].keys(2, 3) & 0xFFFF).tolist()
        (1, [7, 9, 9])
    """
    totals = np.zeros(2 * PAGE, np.int64)
    for run in runs:
        totals[run.pages] += run.pixels
    pages = np.flatnonzero(totals)
    widths: list[int] = []

    def payload() -> Iterator[Buffer]:
        for class_start in (0, PAGE):
            for first, end in stretches(totals[class_start : class_start + PAGE]):
                keys, number = tally(runs, class_start + first, class_start + end)
                page_starts = np.flatnonzero(np.diff(keys >> 16, prepend=PAGE))
                for here in map(slice, page_starts, [*page_starts[1:], len(keys)]):
                    width, content = _smaller_form(keys[here].astype(np.uint16), number[here])
                    widths.append(width)
                    yield content.data

    into.append(payload(), pages, totals[pages], widths)


def _smaller_form(lower: Array, number: Array) -> tuple[int, Array]:
    """Width and content of a page, from the lower 16 bits of its distinct keys and the number of pixels at each."""
    width = np.min_scalar_type(int(number.max())).itemsize
    if 2 * int(number.sum()) <= PAGE * width:
        return 0, np.repeat(lower, number)
    table = np.zeros(PAGE, f"u{width}")
    table[lower] = number
    return width, table
