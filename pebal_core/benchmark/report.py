"""Writes the HTML report of a results folder as one file that needs no network and no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..engines import size_text
from ..errors import PebalError
from ..files import read_pixels, write_atomically
from ..metrics.pooled import FPR95_DEFINITIONS
from .charts import LINES, Line, Mark, curve_chart, interval_chart, swatch
from .published import PUBLISHED_MIOU, RECALLED, Published, published_for
from .results import FrameEntry, Interval, Results, Score, load_curve
from .tables import NONE, component_figures, percent, size_range

REPORT = "report.html"
LEADERBOARD_SETS = ("RoadAnomaly21", "RoadObstacle21")
"""Sets whose published figures are of hidden test images."""

_PICTURE_SIDE = 800
_LEAST_RATE = 1 / 16
"""Lowest number of false objects per frame in the drawn curve; the highest is its inverse."""


@dataclass(frozen=True)
class _Picture:
    """An overlay that is embedded in the page."""

    frame: FrameEntry
    uri: str


def write_report(folder: Path) -> Path:
    """Make ``report.html`` from ``results.json``, ``curves/`` and ``frames/`` of a results folder.

    Raises:
        PebalError: results or a listed picture are missing or damaged.

    Examples:
        >>> import tempfile
        >>> from dataclasses import fields
        >>> from pebal_core.benchmark.results import Run
        >>> run = dict.fromkeys((field.name for field in fields(Run)), "") | {"input_size": [512, 1024]}
        >>> run |= {"fpr95_definition": "nearest", "scores": {}, "versions": {}, "seconds": 1.0}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Results(Run(**run)).save(Path(folder))
        ...     write_report(Path(folder)).name
        'report.html'
    """
    environment = Environment(
        loader=PackageLoader("pebal_core.benchmark"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        brackets=_brackets,
        breakable=_breakable,
        size_range=size_range,
        size_text=size_text,
        number=_number,
    )
    results = Results.load(folder)
    page = environment.get_template("report.html").render(
        run=results.run,
        sets=results.sets,
        charts={name: _charts(folder, results, name) for name in results.sets},
        froc={name: _froc_chart(result.scores.get(results.run.main_score)) for name, result in results.sets.items()},
        swatches=[swatch(0), swatch(1)],
        component_figures=component_figures,
        pictures={name: [_picture(folder, f) for f in result.set.frames] for name, result in results.sets.items()},
        published={name: _by_ap(published_for(result.set.set)) for name, result in results.sets.items()},
        published_miou=PUBLISHED_MIOU,
        recalled=RECALLED,
        leaderboard_sets=LEADERBOARD_SETS,
        fpr95_definitions=FPR95_DEFINITIONS,
        dash=NONE,
    )
    path = folder / REPORT
    write_atomically(path, page.encode())
    return path


@dataclass(frozen=True)
class _Charts:
    """The charts of one anomaly set, and the legend of the first two."""

    legend: list[tuple[Markup, str, Score]]
    roc: Markup
    pr: Markup
    intervals: Markup


def _charts(folder: Path, results: Results, name: str) -> _Charts | None:
    """None where no score is defined."""
    drawn = list(_drawn_scores(results, name))
    if not drawn:
        return None
    legend: list[tuple[Markup, str, Score]] = []
    roc, pr = [], []
    for score, figures in drawn:
        curve = load_curve(folder, name, score)
        if curve is None:
            raise PebalError(f"{folder / 'curves'} lacks the curve of {score} on {name}; run the benchmark again.")
        legend.append((swatch(len(legend)), score, figures))
        roc.append(Line(score, curve.fpr, curve.tpr))
        pr.append(Line(score, curve.tpr, curve.precision))
    marks = [Mark(score, figures.ap, figures.ap_interval, True) for score, figures in drawn if figures.ap is not None]
    known = _by_ap(published_for(results.sets[name].set.set))
    marks += [Mark(f"{p.method} [{p.mark('ap')}]", p.ap / 100, None, False) for p in known]
    return _Charts(
        legend,
        roc=curve_chart("false positive rate", "true positive rate", roc, guide=0.95),
        pr=curve_chart("recall", "precision", pr),
        intervals=interval_chart("average precision in %", marks),
    )


def _froc_chart(score: Score | None) -> Markup | None:
    """Recall over false objects per frame from 1/16 to 16 on a logarithmic axis; None where there is no curve."""
    if score is None or score.objects is None or score.objects.froc.score is None:
        return None
    lines, dots = [], []
    for label, objects in (("pixels alone", score.objects), ("after the object rules", score.objects.rules)):
        if objects is None:
            continue
        rate, recall = np.array(objects.froc.false_per_frame), np.array(objects.froc.recall)
        before = recall[rate <= _LEAST_RATE].max(initial=0)
        shown = (rate > _LEAST_RATE) & (rate <= 1 / _LEAST_RATE)
        x = np.concatenate([[0], _rate_place(rate[shown]), [1]])
        y = np.concatenate([[before], recall[shown]])
        lines.append(Line(label, np.repeat(x, 2)[1:-1], np.repeat(y, 2)))  # a step function
        stored = objects.stored
        if stored is not None and stored.recall is not None:
            place = _rate_place(np.clip(stored.false_per_frame, _LEAST_RATE, 1 / _LEAST_RATE))
            dots.append((float(place), stored.recall))
    ticks = ("1/16", "1/8", "1/4", "1/2", "1", "2", "4", "8", "16")
    return curve_chart("false objects per frame", "share of objects found", lines, x_ticks=ticks, dots=dots)


def _rate_place(rate: np.ndarray) -> np.ndarray:
    """Position on the axis: 0 at the lowest drawn rate of false objects, 1 at the highest."""
    return np.log(rate / _LEAST_RATE) / np.log(_LEAST_RATE**-2)


def _drawn_scores(results: Results, name: str) -> Iterator[tuple[str, Score]]:
    """The main score and the other defined scores, one variant of each, with or without the Gaussian."""
    main = results.run.main_score
    names = [main, *(n for n in results.sets[name].scores if n != main and not n.endswith(("_raw", "_smoothed")))]
    scores = results.sets[name].scores
    yield from [(n, scores[n]) for n in names if n in scores and scores[n].ap is not None][:LINES]


def _by_ap(published: list[Published]) -> list[Published]:
    return sorted(published, key=lambda entry: -entry.ap)


def _picture(folder: Path, frame: FrameEntry) -> _Picture:
    path = folder / frame.picture
    image = read_pixels(path, cv2.IMREAD_COLOR)
    if image is None:
        raise PebalError(f"{path} is missing or is not an image, but the results list it; run the benchmark again.")
    scale = min(1.0, _PICTURE_SIDE / max(image.shape[:2]))
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    jpeg: np.ndarray = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return _Picture(frame, "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode())


def _brackets(interval: Interval | None, digits: int = 1) -> str:
    """An interval in per cent; empty where there is none."""
    return "" if interval is None else f"[{100 * interval[0]:.{digits}f}, {100 * interval[1]:.{digits}f}]"


def _number(interval: Interval | None) -> str:
    """An interval of plain numbers; empty where there is none."""
    return "" if interval is None else f"[{interval[0]:.1f}, {interval[1]:.1f}]"


def _breakable(name: str) -> Markup:
    """Allow line breaks after the underscores and slashes of a name."""
    return Markup("").join(Markup("{}<wbr>" if c in "_/" else "{}").format(c) for c in name)
