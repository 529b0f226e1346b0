"""Counts inlier and outlier pixels at each score, exactly for any number of pixels and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pebal_core.metrics.pages import (
    PAGE,
    Array,
    Buffer,
    Level,
    SortedRun,
    distinct,
    key_scores,
    merge_runs,
    score_keys,
    stretches,
    tally,
)

_RUNS_PER_LEVEL = 32


class OutlierScores(NamedTuple):
    """A range of the distinct scores of outlier pixels, from the highest down; all arrays have the same length."""

    score: Array  # float32
    outliers: Array  # int64, number of outlier pixels with exactly this score
    tp: Array  # int64, number of outlier pixels with at least this score
    fp_above: Array  # int64, number of inlier pixels with a higher score
    fp: Array  # int64, number of inlier pixels with at least this score


class ScoreCounts:
    """Numbers of inlier and outlier pixels at each distinct float32 score.

    Each call of `add` writes a sorted run of pages to a temporary file. When a level has 32 runs, they are merged into
    one run of the next level (a log-structured merge). The memory holds the indices of a few runs and one range of
    pixels. It depends on the size of a single `add`, not on the number of calls. The files stop growing once all pages
    that occur are stored as tables.

    Examples:
        >>> counts = ScoreCounts()
        >>> counts.add(np.array([-9, -8, -2], np.float32), np.array([-3], np.float32))
        >>> counts.at_least(np.array([-8, -2.5])).tolist()  # inliers, outliers
        [[2, 1], [1, 0]]
    """

    def __init__(self) -> None:
        self._levels: list[Level] = []

    def add(self, inlier_scores: Array, outlier_scores: Array) -> None:
        """Count the scores of inlier and outlier pixels, 1-D float32 each; they may be infinite but not NaN."""
        payload, pages, pixels = [], [], []
        for class_start, scores in ((0, inlier_scores), (PAGE, outlier_scores)):
            keys = score_keys(scores)
            keys.sort()
            upper, number = distinct((keys >> 16).astype(np.uint16))
            payload.append(keys.astype(np.uint16).data)  # the lower 16 bits
            pages.append(upper.astype(np.int32) + class_start)
            pixels.append(number)
        widths = np.zeros(sum(map(len, pages)))
        self._append(0, payload, np.concatenate(pages), np.concatenate(pixels), widths)

    def merge(self, other: ScoreCounts) -> None:
        """Add the counts of another instance; order and grouping do not matter."""
        if other is self:
            raise ValueError("cannot merge counts into themselves")
        for generation, level in enumerate(other._levels):
            for run in list(level.runs):
                self._append(generation, run.payload(), run.pages, run.pixels, run.widths)

    def state_dict(self) -> dict[str, Array]:
        """The whole state as four arrays, which take 2 bytes per pixel for one image and less for many images."""
        if len(self._runs()) != 1:
            single = Level()
            merge_runs(self._runs(), single)
            self._levels = [single]
        run = self._runs()[0]
        payload = np.frombuffer(b"".join(run.payload()), np.uint8)
        return {"pages": run.pages, "pixels": run.pixels, "widths": run.widths, "payload": payload}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> ScoreCounts:
        """Restore from the arrays of `state_dict`."""
        counts = cls()
        counts._append(
            0, [np.ascontiguousarray(state["payload"]).data], state["pages"], state["pixels"], state["widths"]
        )
        return counts

    def page_totals(self) -> Array:
        """2×65,536 int64, the number of inlier and outlier pixels in each page of scores, from the lowest up."""
        totals = np.zeros(2 * PAGE, np.int64)
        for run in self._runs():
            totals[run.pages] += run.pixels
        return totals.reshape(2, PAGE)

    def outlier_scores(self) -> Iterator[OutlierScores]:
        """Yield the counts at every distinct score of an outlier pixel, in ranges from the highest down."""
        inliers, outliers = totals = self.page_totals()
        for first, end in reversed(stretches(totals.sum(axis=0))):
            if not outliers[first:end].any():
                continue
            keys, number = (array[::-1] for array in tally(self._runs(), PAGE + first, PAGE + end))
            inlier_keys, below = _below(tally(self._runs(), first, end))
            up_from_here = inliers[first:].sum()
            yield OutlierScores(
                score=key_scores(keys),
                outliers=number,
                tp=outliers[end:].sum() + np.cumsum(number),
                fp_above=up_from_here - below[np.searchsorted(inlier_keys, keys, "right")],
                fp=up_from_here - below[np.searchsorted(inlier_keys, keys, "left")],
            )

    def at_least(self, thresholds: Array) -> Array:
        """Count the pixels with score ≥ threshold; n float32 thresholds give 2×n int64 (inliers, outliers)."""
        keys = score_keys(np.asarray(thresholds, np.float32))
        result = np.zeros((2, len(keys)), np.int64)
        for class_start, totals, counts in zip((0, PAGE), self.page_totals(), result, strict=True):
            ranges = stretches(totals)
            # A threshold between two ranges has the same number of pixels above it as the start of the next range.
            owners = np.searchsorted([end for _, end in ranges], keys >> 16, "right")
            for owner in set(owners.tolist()) - {len(ranges)}:
                first, end = ranges[owner]
                present, below = _below(tally(self._runs(), class_start + first, class_start + end))
                here = owners == owner
                counts[here] = totals[first:].sum() - below[np.searchsorted(present, keys[here])]
        return result

    def finite_range(self) -> tuple[float, float] | None:
        """Lowest and highest finite score; None if there is none."""
        totals = self.page_totals().sum(axis=0)
        totals[score_keys(np.array([-np.inf, np.inf], np.float32)) >> 16] = 0  # infinities have separate pages
        pages = np.flatnonzero(totals)
        if len(pages) == 0:
            return None
        ends = [page + class_start for page in pages[[0, -1]].tolist() for class_start in (0, PAGE)]
        keys = np.concatenate([tally(self._runs(), page, page + 1)[0] for page in ends])
        low, high = key_scores(np.array([keys.min(), keys.max()])).tolist()
        return low, high

    def _runs(self) -> list[SortedRun]:
        return [run for level in self._levels for run in level.runs]

    def _append(
        self,
        generation: int,
        payload: Iterable[Buffer],
        pages: Sequence[int] | Array,
        pixels: Sequence[int] | Array,
        widths: Sequence[int] | Array,
    ) -> None:
        self._level(generation).append(payload, pages, pixels, widths)
        while len(self._level(generation).runs) == _RUNS_PER_LEVEL:
            merge_runs(self._level(generation).runs, self._level(generation + 1))
            self._level(generation).clear()
            generation += 1

    def _level(self, generation: int) -> Level:
        while len(self._levels) <= generation:
            self._levels.append(Level())
        return self._levels[generation]


def _below(tallied: tuple[Array, Array]) -> tuple[Array, Array]:
    """Distinct keys, ascending, and the number of pixels below each, followed by the number of all pixels."""
    keys, number = tallied
    return keys, np.cumsum(np.append(0, number))
