"""Charts of the report as inline SVG; colours, dashes and fonts are classes of ``templates/report.css``.

The classes make the charts follow the page's light or dark theme. matplotlib's SVG cannot, as its colours are inline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 440, 340
LINES = 6
"""Number of lines that can be told apart by colour and dashes."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 48
_ROW = 36
_TENTHS = ("0.0", "0.2", "0.4", "0.6", "0.8", "1.0")


@dataclass(frozen=True)
class Line:
    """A curve; x and y in 0…1."""

    label: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Mark:
    """A figure with its interval, as fractions. Published figures have no interval and are drawn hollow."""

    label: str
    value: float
    interval: tuple[float, float] | None
    ours: bool


def curve_chart(
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    guide: float | None = None,
    x_ticks: Sequence[str] = _TENTHS,
    dots: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Curves in a square from 0 to 1. The first curve lies on top.

    Args:
        guide: height at which a horizontal line is drawn.
        x_ticks: labels at equal distances along the x axis.
        dots: x, y of a point on each of the first curves, in their colours.

    Examples:
        >>> rate = np.array([0, 0.1, 1])
        >>> chart = curve_chart("FPR", "TPR", [Line("energy", rate, np.sqrt(rate))], guide=0.95)
        >>> chart.count("<title>energy</title>"), chart.count('class="guide"')
        (1, 1)
    """
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    parts = [_open(HEIGHT, f"{y_label} over {x_label}")]
    for place, text in zip(np.linspace(0, 1, len(x_ticks)), x_ticks):
        x = _LEFT + place * width
        parts += [
            Markup('<path class="grid" d="M{:.1f} {}v{}"/>').format(x, _TOP, height),
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                x, HEIGHT - _BOTTOM + 17, text
            ),
        ]
    for tick in np.linspace(0, 1, 6):
        y = _TOP + (1 - tick) * height
        parts += [
            Markup('<path class="grid" d="M{} {:.1f}h{}"/>').format(_LEFT, y, width),
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{:.1f}</text>').format(
                _LEFT - 7, y + 4, tick
            ),
        ]
    if guide is not None:
        y = _TOP + (1 - guide) * height
        parts.append(Markup('<path class="guide" d="M{} {:.1f}h{}"/>').format(_LEFT, y, width))
    for number, line in reversed(list(enumerate(lines[:LINES]))):
        points = np.stack([_LEFT + line.x * width, _TOP + (1 - line.y) * height], axis=1)
        path = Markup('<path class="line c{}" d="M{}"><title>{}</title></path>')
        parts.append(path.format(number, _polyline(points), line.label))
    for number, (x, y) in enumerate(dots):
        parts.append(
            Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(
                number, _LEFT + x * width, _TOP + (1 - y) * height
            )
        )
    parts += [
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            _LEFT + width / 2, HEIGHT - 8, x_label
        ),
        Markup('<text class="axis" transform="translate(15 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            _TOP + height / 2, y_label
        ),
    ]
    return Markup("").join([*parts, Markup("</svg>")])


def interval_chart(label: str, marks: Sequence[Mark]) -> Markup:
    """One row for each figure: its name, and below it a mark on a common axis from 0.

    Examples:
        >>> marks = [Mark("energy", 0.6, (0.5, 0.7), ours=True), Mark("published", 0.4, None, ours=False)]
        >>> chart = interval_chart("average precision in %", marks)
        >>> chart.count('class="whisker"'), chart.count("<circle")
        (1, 2)
    """
    highest = max([mark.value for mark in marks] + [mark.interval[1] for mark in marks if mark.interval])
    end = next(end for end in (0.05, 0.1, 0.2, 0.5, 1.0) if highest <= end)
    width, bottom = WIDTH - 2 * _RIGHT, _ROW * len(marks)

    def place(value: float) -> float:
        return _RIGHT + value / end * width

    parts = [_open(bottom + 46, label)]
    for tick in np.linspace(0, end, 6):
        parts += [
            Markup('<path class="grid" d="M{:.1f} 0V{}"/>').format(place(tick), bottom),
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{:g}</text>').format(
                place(tick), bottom + 17, _anchor(tick, end), round(100 * tick, 6)
            ),
        ]
    for number, mark in enumerate(marks):
        top = number * _ROW
        y, kind = top + 26, "ours" if mark.ours else "theirs"
        if number:
            parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(_RIGHT, top, WIDTH - _RIGHT))
        parts += [
            Markup('<text class="name {}" x="{}" y="{}">{}</text>').format(kind, _RIGHT + 4, top + 15, mark.label),
            Markup('<text class="name {}" x="{}" y="{}" text-anchor="end">{:.2f}</text>').format(
                kind, WIDTH - _RIGHT, top + 15, 100 * mark.value
            ),
        ]
        if mark.interval:
            low, high = (place(value) for value in mark.interval)
            parts.append(
                Markup('<path class="whisker" d="M{:.1f} {y}H{:.1f}M{:.1f} {}v8M{:.1f} {}v8"/>').format(
                    low, high, low, y - 4, high, y - 4, y=y
                )
            )
        parts.append(Markup('<circle class="{}" cx="{:.1f}" cy="{}" r="4.5"/>').format(kind, place(mark.value), y))
    text = Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>')
    parts.append(text.format(WIDTH / 2, bottom + 39, label))
    return Markup("").join([*parts, Markup("</svg>")])


def swatch(number: int) -> Markup:
    """The stroke of a line, for a legend.

    Examples:
        >>> print(swatch(0))
        <svg class="swatch" viewBox="0 0 34 10" aria-hidden="true"><path class="line c0" d="M1 5H33"/></svg>
    """
    stroke = Markup('<path class="line c{}" d="M1 5H33"/>').format(number)
    return Markup('<svg class="swatch" viewBox="0 0 34 10" aria-hidden="true">{}</svg>').format(stroke)


def _open(height: int, label: str) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, height, label)


def _polyline(points: np.ndarray) -> str:
    """Round coordinates to a tenth of a unit and drop repetitions."""
    rounded = np.round(points, 1)
    kept = np.ones(len(rounded), bool)
    kept[1:] = (np.diff(rounded, axis=0) != 0).any(axis=1)
    return "L".join(f"{x:g} {y:g}" for x, y in rounded[kept])


def _anchor(tick: float, end: float) -> str:
    """Where a label is anchored, so that the outermost ones do not stick out."""
    return "start" if tick == 0 else "end" if tick == end else "middle"
