"""Writes the report of an adaptation as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..files import write_atomically
from ..render import overlay, score_map
from .check import Energies

WIDTH = 480
SHOWN = 6
ROWS = {
    "threshold": "threshold in nats",
    "false_objects": "false objects per frame",
    "alarmed": "alarmed share of the known pixels",
    "recall": "recall of the pasted objects",
    "ap": "AP of the pasted objects",
}
"""Figures of the table and their names."""
STYLE = (
    "body{font-family:sans-serif;max-width:1020px;margin:2em auto}img{width:480px;margin:2px}"
    "td,th{padding:.2em .8em;text-align:right}th:first-child{text-align:left}"
)


def write_report(
    path: Path, summary: dict[str, Any], images: Sequence[np.ndarray], before: Energies, after: Energies,
    threshold: float, ego: np.ndarray | None, suspects: Sequence[np.ndarray],
) -> None:  # fmt: skip
    """Write figures, ego mask, histograms, frames before and after, and the frames with the most false alarms.

    Args:
        path: the HTML file to write.
        summary: the content of summary.json.
        images: check frames, H×W×3 uint8 RGB.
        before: outputs of the first model on them.
        after: outputs of the final model on them.
        threshold: of the final model, in nats.
        ego: H×W bool; None if there is no ego mask.
        suspects: frames that were left out of training, H×W×3 uint8 RGB.

    Examples:
        >>> import tempfile
        >>> image, energy, table = np.zeros((60, 80, 3), np.uint8), np.full((60, 80), -9.0), dict.fromkeys(ROWS, 0.5)
        >>> columns = {"before": table, "after_at_equal_recall": table, "after": table}
        >>> texts = {"guarantee": {"text": "…"}, "ego_mask": "none.", "verdict": ""}
        >>> summary = {"sources": ["drive.mp4"], **texts, **columns}
        >>> run = Energies(clean=[energy], mixed=[energy], targets=[])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(path := Path(folder) / "report.html", summary, [image], run, run, -4.0, None, [])
        ...     "<h1>Adaptation to drive.mp4</h1>" in path.read_text()
        True
    """
    low, high = float(np.median(after.clean[0])), float(threshold)
    worst = sorted(range(len(images)), key=lambda i: -np.count_nonzero(after.clean[i] >= threshold))[:SHOWN]
    even = np.unique(np.linspace(0, len(images) - 1, SHOWN).astype(int)).tolist()

    def pair(i: int) -> str:
        return _picture(_shown(images[i], before.clean[i], low, high)) + _picture(
            _shown(images[i], after.clean[i], low, high)
        )

    rows = "".join(
        f"<tr><th>{title}</th>"
        + "".join(f"<td>{summary[column][name]:.4g}</td>" for column in ("before", "after_at_equal_recall", "after"))
        + "</tr>"
        for name, title in ROWS.items()
    )
    first = images[0].copy()
    if ego is not None:
        first[ego] = (255, 0, 255)
    body = f"""<h1>Adaptation to {html.escape(", ".join(summary["sources"]))}</h1>
<p>{html.escape(summary["guarantee"]["text"])} {html.escape(summary["verdict"])}</p>
<table><tr><th></th><th>before</th><th>after, at equal recall</th><th>after, at its threshold</th></tr>{rows}</table>
<p>The column at equal recall uses the highest threshold at which the adapted model reaches the recall of the first
model.</p>
<h2>Ego mask</h2><p>{html.escape(summary["ego_mask"])}</p>{_picture(first)}
<h2>Energies of the check frames without pasted objects</h2>{_histogram(before.clean, after.clean)}
<h2>Check frames before and after the adaptation</h2>
<p>The left image of each pair shows the energy of the first model, and the right one that of the final model.</p>
{"<br>".join(map(pair, even))}
<h2>Check frames with the most falsely alarmed pixels after the adaptation</h2>{"<br>".join(map(pair, worst))}"""
    if suspects:
        body += f"""<h2>Frames left out of training</h2>
<p>These frames may show a foreign object, because their strongest energies stand far above those of the other frames.
</p>{"".join(map(_picture, suspects))}"""
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Adaptation</title><style>{STYLE}</style>{body}'
    write_atomically(path, page.encode())


def _shown(image: np.ndarray, energy: np.ndarray, low: float, high: float) -> np.ndarray:
    return overlay(image, score_map(energy, low, low + 1.6 * max(high - low, 0.1)))


def _picture(image: np.ndarray) -> str:
    size = WIDTH, round(WIDTH * image.shape[0] / image.shape[1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)[..., ::-1]
    content = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(content).decode()}">'


def _histogram(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> str:
    """Draw the two histograms as lines in SVG, with a logarithmic vertical axis."""
    bins = np.linspace(-25, 2, 109)
    lines = []
    for energies, color in ((before, "#888"), (after, "#06c")):
        share = sum(np.histogram(e, bins)[0] for e in energies) / sum(e.size for e in energies)
        heights = 200 - 33 * (np.log10(np.maximum(share, 1e-6)) + 6)
        points = " ".join(f"{40 + 8 * i},{y:.0f}" for i, y in enumerate(heights))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}"/>')
    marks = "".join(f'<text x="{40 + 8 * 4 * (e + 25)}" y="220" font-size="11">{e}</text>' for e in range(-25, 3, 5))
    legend = '<text x="50" y="15" fill="#888">before</text><text x="110" y="15" fill="#06c">after</text>'
    axes = (
        "The horizontal axis shows the energy in nats. The vertical axis shows the share of the pixels on a "
        "logarithmic scale, on which one decade is 33 pixels high."
    )
    return f'<svg width="940" height="230">{"".join(lines)}{marks}{legend}</svg><p>{axes}</p>'
