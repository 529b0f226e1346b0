"""The HTML report: every figure is on the page, and the page stands alone."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from pebal_core.benchmark.published import RECALLED, published_for
from pebal_core.benchmark.report import write_report
from pebal_core.benchmark.results import (
    ClassAlarms,
    Components,
    FrameEntry,
    Froc,
    Objects,
    Results,
    Run,
    Score,
    Segmentation,
    SetInfo,
    SetResult,
    SizeRecall,
    Stored,
    curve_path,
    save_curve,
)
from pebal_core.benchmark.tables import markdown
from pebal_core.errors import PebalError
from pebal_core.metrics.pooled import PooledMetrics

VOID_ELEMENTS = {"meta", "br", "wbr", "img", "path", "circle"}
SCORES = {"energy": 1.4, "energy_raw": 1.2, "msp": 0.8, "entropy": 0.6}
"""Score → distance of outliers from inliers."""


class Page(HTMLParser):
    """Text, attributes and nesting of an HTML page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.attributes, self.errors = "", list[tuple[str, str, str]](), list[str]()
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.errors += [f"<{tag}> is never closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID_ELEMENTS:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID_ELEMENTS:
            return
        if not self._open or self._open.pop() != tag:
            self.errors.append(f"</{tag}> at {self.getpos()} closes something else")

    def handle_data(self, data: str) -> None:
        self.text += data


def measured(folder: Path, dataset: str) -> dict[str, Score]:
    """Real figures and curves of random scores."""
    rng = np.random.default_rng(len(dataset))
    target = (rng.random((100, 200)) < 0.05).astype(np.uint8)
    scores = {}
    for name, distance in SCORES.items():
        metrics = PooledMetrics()
        metrics.update((rng.normal(size=target.shape) + distance * target).astype(np.float32), target, name="frame")
        result = metrics.compute()
        assert result.curve and result.ap
        save_curve(folder, dataset, name, result.curve)
        interval = (result.ap - 0.0123, result.ap + 0.0234)
        difference = None if name == "energy" else (-0.0345, -0.0012)
        figures = {key: value for key, value in result.to_dict().items() if key != "fpr95_threshold"}
        scores[name] = Score(**figures, ap_interval=interval, ap_difference_interval=difference)
    return scores


def found_objects(score: float, false: float) -> Objects:
    """Objects of which 70 % are found, with a curve of two steps."""
    rates = ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    stored = Stored(
        -2.5, 0.7, (0.6, 0.8), false, (false - 1, false + 1),
        [SizeRecall(50, 200, 3, 0.1357), SizeRecall(200, None, 4, 1.0)],
        {"road": ClassAlarms(0.0246, 0.97)},
    )  # fmt: skip
    return Objects(
        7, Froc(score, (score - 0.1, score + 0.1), [-1.0, -2.0], [0.25, 4.0], [0.5, 0.9]),
        dict.fromkeys(rates, 0.5678), dict.fromkeys(rates, None), stored,
    )  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """A small results folder with a set of every kind."""
    (tmp_path / "frames" / "static").mkdir(parents=True)
    rng = np.random.default_rng(0)
    frames = []
    for kind, figure in (("worst", 0.0517), ("best", 0.9381)):
        picture = f"frames/static/{kind}.jpg"
        cv2.imwrite(str(tmp_path / picture), rng.integers(0, 256, (90, 1200, 3), np.uint8))
        frames.append(FrameEntry(f"{kind} & <frame>.png", kind, figure, picture))
    stages = {"read": 12.34, "preprocess": 2.51, "network": 456.7, "scores": 33.3, "metrics": 78.9}
    info = SetInfo(
        "FishyscapesStatic", "/data/static", 30, {"/data/bad.png": "is cut short"}, stages, 1.714, 905.3, frames
    )
    track = replace(info, set="RoadAnomaly21", path="/data/track", images=10, failed={}, frames=[])
    components = Components(0.3141, 0.2718, 0.1618, [0.1] * 11, 42, 77, -5.4321, 500, 100)
    on_track = {name: replace(score, components=components) for name, score in measured(tmp_path, "track").items()}
    after = replace(found_objects(0.4567, 1.23), components=replace(components, f1=0.2345))
    on_track["energy"] = replace(on_track["energy"], objects=replace(found_objects(0.3456, 4.56), rules=after))
    classes = Segmentation(
        5, 123456, 0.6196, 0.9123, {"road": 0.9512, "pole": None}, 0.0432, 0.6555, {"road": 0.9613, "pole": None}
    )
    one_class = {"energy": Score(3, 500, 0, "not defined: no outlier pixel (1) among the 500 labelled pixels")}
    run = Run(
        model="models/a<b>.safetensors", model_sha256="0123456789abcdef" * 4, network="espnetv2",
        protocol="fishyscapes", fpr95_definition="first_at_least", main_score="energy",
        scores={name: f"what {name} is" for name in SCORES},
        engine="torch", device="cpu", precision="fp32", input_size=[512, 1024], smoothing=True, processes=2,
        command="pebal benchmark --model 'a b'", versions={"torch": "2.14.1"}, started="2026-02-03T04:05:06+00:00",
        seconds=321.4,
        object_rules={"threshold": -2.5, "grow": -4.0},
    )  # fmt: skip
    results = Results(run, {
        "static": SetResult(info, measured(tmp_path, "static")),
        "track": SetResult(track, on_track),
        "streets": SetResult(replace(info, set="Cityscapes", failed={}, frames=[]), {}, classes),
        "empty": SetResult(replace(info, set="images+labels", failed={}, frames=[]), one_class),
    })  # fmt: skip
    results.save(tmp_path)
    return results


def load(folder: Path) -> Page:
    page = Page(write_report(folder).read_text())
    assert page.errors == []
    return page


def test_every_measured_figure_is_on_the_page(results: Results, tmp_path: Path) -> None:
    text = load(tmp_path).text
    wanted = []
    for _, _, score in results.rows():
        wanted += [score.auroc, score.ap, score.fpr95, score.best_f1]
        if score.fpr95_definitions and score is results.sets["static"].scores["energy"]:
            wanted += score.fpr95_definitions.values()
    wanted += [0.3141, 0.2718, 0.1618, 0.6196, 0.9123, 0.9512, 0.0432, 0.6555, 0.9613, 0.0517, 0.9381]
    missing = [value for value in wanted if value is not None and f"{100 * value:.2f}" not in text]
    assert missing == []
    ap = results.sets["track"].scores["msp"].ap
    assert ap and f"[{100 * (ap - 0.0123):.1f}, {100 * (ap + 0.0234):.1f}]" in text
    assert "[-3.45, -0.12]" in text  # of the differences to the main score
    for words in (
        "-5.432", "500", "12.3", "456.7", "1.71", "905", "0123456789abcdef" * 4, "pebal benchmark --model 'a b'",
        "torch 2.14.1", "512×1024", "2026-02-03T04:05:06+00:00", "321 s", "/data/bad.png: is cut short",
        "not defined: no outlier pixel (1) among the 500 labelled pixels", "what entropy is",
    ):  # fmt: skip
        assert words in text, words


def test_published_figures_stand_beside_ours_with_their_marks(results: Results, tmp_path: Path) -> None:
    html = write_report(tmp_path).read_text()
    text = load(tmp_path).text
    assert RECALLED in text and "hidden test images" in text and "82.46" in text
    for entry in published_for("FishyscapesStatic"):
        assert entry.method in text and f"{entry.ap:.2f} [{entry.mark('ap')}]" in text
        assert f"{entry.fpr95:.2f} [{entry.mark('fpr95')}]" in text
    for entry in published_for("RoadAnomaly21"):
        assert all(f"{value:.1f} [V]" in text for value in (entry.ap, entry.fpr95, entry.siou, entry.ppv, entry.f1))
    # In the chart of the same set they are hollow.
    chart = html[html.index("average precision in %") :]
    chart = chart[: chart.index("</svg>")]
    assert chart.count('class="theirs"') == len(published_for("FishyscapesStatic"))
    assert chart.count('<circle class="ours"') == 3  # energy_raw is a variant of energy


def test_the_page_needs_nothing_else(results: Results, tmp_path: Path) -> None:
    page, html = load(tmp_path), (tmp_path / "report.html").read_text()
    loads = [value for tag, name, value in page.attributes if name in ("src", "srcset", "data", "xlink:href")]
    loads += [value for tag, name, value in page.attributes if name == "href" and tag != "a"]
    assert len(loads) == 2 and all(value.startswith("data:image/jpeg;base64,") for value in loads)
    anchors = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert anchors and {value.removeprefix("#") for value in anchors} <= ids
    assert not re.search(r"https?://|@import|url\(|<script", html)
    image = cv2.imdecode(np.frombuffer(base64.b64decode(loads[0].split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None and image.shape == (60, 800, 3)


def test_curves_are_where_the_figures_are(results: Results, tmp_path: Path) -> None:
    """The drawn ROC curve passes through the FPR95 of the table, and encloses the AUROC."""
    html = write_report(tmp_path).read_text()
    chart = html[html.index("true positive rate over false positive rate") :]
    chart = chart[: chart.index("</svg>")]
    found = re.search(r'class="line c0" d="M([^"]+)"><title>energy<', chart)
    assert found
    points = np.array([[float(c) for c in pair.split()] for pair in found[1].split("L")])
    fpr, tpr = (points[:, 0] - 52) / 376, 1 - (points[:, 1] - 12) / 280  # the plot's left, width, top and height
    score = results.sets["static"].scores["energy"]
    assert score.auroc and score.fpr95
    assert np.interp(score.fpr95, fpr, tpr) == pytest.approx(0.95, abs=5e-3)
    assert float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2)) == pytest.approx(score.auroc, abs=5e-3)


def test_objects_are_on_the_page_and_in_the_tables(results: Results, tmp_path: Path) -> None:
    assert Results.load(tmp_path).sets["track"].scores["energy"] == results.sets["track"].scores["energy"]
    text, html = load(tmp_path).text, (tmp_path / "report.html").read_text()
    for value in ("34.56", "45.67", "4.56", "1.23", "13.57", "2.46", "0.97", "23.45", "200 and more"):
        assert value in text and value in markdown(results), value
    assert "56.78" in text and "| 57 | 57 |" in markdown(results)
    chart = html[html.index("share of objects found over false objects per frame") :]
    chart = chart[: chart.index("</svg>")]
    # From 1/16 to 16 on the plot's 376 units: 0.25 lies at a quarter, 4 at three quarters.
    assert 'class="line c0" d="M52 292L146 292L146 152L334 152L334 40L428 40"' in chart
    assert chart.count('class="dot') == 2


def test_names_are_escaped(results: Results, tmp_path: Path) -> None:
    page = load(tmp_path)
    assert "models/a<b>.safetensors" in page.text and "worst & <frame>.png" in page.text
    assert not {tag for tag, _, _ in page.attributes} & {"b", "frame"}


def test_missing_parts_are_named(results: Results, tmp_path: Path) -> None:
    curve_path(tmp_path, "track", "msp").unlink()
    with pytest.raises(PebalError, match="lacks the curve of msp on track"):
        write_report(tmp_path)
    (tmp_path / "frames" / "static" / "best.jpg").write_bytes(b"")
    curve_path(tmp_path, "track", "msp").write_bytes(curve_path(tmp_path, "track", "energy").read_bytes())
    with pytest.raises(PebalError, match=r"best\.jpg is missing or is not an image"):
        write_report(tmp_path)
    (tmp_path / "results.json").unlink()
    with pytest.raises(PebalError, match=r"results\.json does not exist"):
        write_report(tmp_path)


def test_a_benchmark_without_a_set_still_says_what_ran(results: Results, tmp_path: Path) -> None:
    replace(results, sets={}).save(tmp_path)
    assert "pebal benchmark --model 'a b'" in load(tmp_path).text
