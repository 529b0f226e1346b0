"""Formats the figures as Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from ..engines import size_text
from ..metrics.objects import RATES
from .protocols import PROTOCOLS
from .results import STAGES, Components, Interval, Results, Score, SizeRecall, Stored

NONE = "–"


def percent(value: float | None) -> str:
    """Two decimals, as is usual in publications.

    Examples:
        >>> percent(0.12345), percent(None)
        ('12.35', '–')
    """
    return NONE if value is None else f"{100 * value:.2f}"


SCORE_HEAD = ("set", "images", "score", "AUROC", "AP", "FPR95", "best F1", "")


def _score_rows(results: Results, with_intervals: bool) -> list[list[str]]:
    """A row for every score of every set, with the columns of `SCORE_HEAD`."""
    rows = []
    for name, score, figures in results.rows():
        if results.sets[name].segmentation is not None:
            continue  # such a set has no outliers
        values = [_figure(figures, key, with_intervals) for key in ("auroc", "ap", "fpr95")]
        best_f1 = percent(figures.best_f1)
        rows.append([name, str(figures.images), score, *values, best_f1, figures.undefined or ""])
    return rows


OBJECT_HEAD = ("set", "counted", "objects", "found", "false per frame", "FROC score", *(f"at {r:g}" for r in RATES))


def _object_rows(results: Results, with_intervals: bool) -> list[list[str]]:
    """Two rows for every set, with pixels alone and after the object rules, with the columns of `OBJECT_HEAD`."""
    rows = []
    for name, _, figures in results.rows():
        if figures.objects is None:
            continue
        for counted, objects in (("pixels", figures.objects), ("rules", figures.objects.rules)):
            if objects is None:
                continue
            stored, froc = objects.stored, objects.froc
            found = false = NONE
            if stored is not None:
                found = _with_interval(percent(stored.recall), stored.recall_interval, with_intervals, 100)
                false = _with_interval(
                    f"{stored.false_per_frame:.2f}", stored.false_per_frame_interval, with_intervals, 1
                )
            score = _with_interval(percent(froc.score), froc.score_interval, with_intervals, 100)
            recall = [NONE if value is None else f"{100 * value:.0f}" for value in objects.recall_at.values()]
            rows.append([name, counted, str(objects.labelled), found, false, score, *recall])
    return rows


SIZE_HEAD = ("set", "counted", "pixels of the object", "objects", "found")


def _size_rows(results: Results) -> list[list[str]]:
    """Recall by size at the stored threshold, with the columns of `SIZE_HEAD`."""
    return [
        [name, counted, size_range(size), str(size.objects), percent(size.recall)]
        for name, counted, stored in _stored(results)
        for size in stored.by_size
        if size.objects
    ]


def size_range(size: SizeRecall) -> str:
    """A range of sizes in words.

    Examples:
        >>> size_range(SizeRecall(50, 200, objects=3, recall=0.5)), size_range(SizeRecall(5000, None, 1, 1.0))
        ('50 to 199', '5000 and more')
    """
    return f"{size.from_pixels} and more" if size.to_pixels is None else f"{size.from_pixels} to {size.to_pixels - 1}"


ALARM_HEAD = ("set", "counted", "class", "share of its pixels", "false objects per frame")


def _alarm_rows(results: Results) -> list[list[str]]:
    """False alarms by known class at the stored threshold, with the columns of `ALARM_HEAD`."""
    return [
        [name, counted, label, percent(alarms.pixels), f"{alarms.objects_per_frame:.2f}"]
        for name, counted, stored in _stored(results)
        for label, alarms in stored.by_class.items()
    ]


def _stored(results: Results) -> Iterator[tuple[str, str, Stored]]:
    for name, _, figures in results.rows():
        if figures.objects is not None:
            for counted, objects in (("pixels", figures.objects), ("rules", figures.objects.rules)):
                if objects is not None and objects.stored is not None:
                    yield name, counted, objects.stored


CLASS_HEAD = ("set", "images", "mIoU", "mIoU, sliding windows", "accuracy", "ECE")


def _class_rows(results: Results) -> list[list[str]]:
    """A row for every set of classes, with the columns of `CLASS_HEAD`."""
    return [
        [name, str(s.images), percent(s.miou), percent(s.sliding_miou), percent(s.accuracy), percent(s.ece)]
        for name, result in results.sets.items()
        if (s := result.segmentation) is not None
    ]


OBJECT_NOTE = (
    "Objects of the main score. Found (per cent) and false objects per frame are at the stored threshold; the FROC "
    "score is the mean of the recalls (per cent) at the numbers of false objects per frame that head the last columns. "
    "Pixels: every component counts; rules: what the object rules let through."
)


def component_figures(score: str, figures: Score) -> Iterator[tuple[str, Components]]:
    """The component metrics of a score and, where they exist, of the scores after the object rules.

    Examples:
        >>> found = Components(0.5, 0.6, 0.4, None, 3, 4, threshold=-4.5, smallest_prediction=500, smallest_object=100)
        >>> score = Score(images=1, inliers=99, outliers=9, components=found)
        >>> [(name, components.siou) for name, components in component_figures("energy", score)]
        [('energy', 0.5)]
    """
    if figures.components is not None:
        yield score, figures.components
    if figures.objects is not None and figures.objects.rules is not None and figures.objects.rules.components:
        yield f"{score} after the rules", figures.objects.rules.components


def markdown(results: Results) -> str:
    """The contents of ``results.md``.

    Examples:
        >>> from dataclasses import fields
        >>> from pebal_core.benchmark.results import Run, SetInfo, SetResult
        >>> run = dict.fromkeys((field.name for field in fields(Run)), "") | {"protocol": "smiyc", "input_size": None}
        >>> info = SetInfo("images+labels", "/data", 1, {}, {}, images_per_second=2.5, peak_memory_mb=900)
        >>> results = Results(Run(**run), {"town": SetResult(info, {"energy": Score(1, 99, 9, ap=0.5)})})
        >>> [line for line in markdown(results).splitlines() if "energy" in line]
        ['| town | 1 | energy | – | 50.00 | – | – |  |']
    """
    run = results.run
    size = "each image's own" if run.input_size is None else size_text(run.input_size)
    lines = [
        f"# {run.model}",
        "",
        f"Network {run.network}, SHA-256 `{run.model_sha256[:16]}…`, input size {size}, {run.engine} on {run.device}, "
        f"{run.precision}.",
        f"Protocol {run.protocol}: FPR95 {PROTOCOLS[run.protocol].fpr95}, main score {run.main_score}. Figures in per "
        "cent, all pixels of a set pooled; in brackets 95 % bootstrap intervals over images.",
        "",
        f"`{run.command}`",
    ]
    if rows := _score_rows(results, with_intervals=True):
        lines += ["", *_markdown_table(SCORE_HEAD, rows)]
    components = [
        [name, what, *map(percent, (c.siou, c.ppv, c.f1)), str(c.objects), str(c.predictions), c.undefined or ""]
        for name, score, figures in results.rows()
        for what, c in component_figures(score, figures)
    ]
    if components:
        lines += ["", *_markdown_table(("set", "score", "sIoU", "PPV", "F1", "objects", "predictions", ""), components)]
    if objects := _object_rows(results, with_intervals=True):
        lines += ["", OBJECT_NOTE, "", *_markdown_table(OBJECT_HEAD, objects)]
    for head, rows in ((SIZE_HEAD, _size_rows(results)), (ALARM_HEAD, _alarm_rows(results))):
        if rows:
            lines += ["", *_markdown_table(head, rows)]
    if classes := _class_rows(results):
        lines += ["", *_markdown_table(CLASS_HEAD, classes)]
    costs: list[list[str]] = []
    failures: list[str] = []
    for name, result in results.sets.items():
        info = result.set
        milliseconds = [f"{value:.0f}" for value in info.milliseconds.values()]
        costs.append([name, *milliseconds, f"{info.images_per_second:.2f}", f"{info.peak_memory_mb:.0f}"])
        failures += [f"\n{name}: {file}: {reason}" for file, reason in info.failed.items()]
    stages = (f"{stage} ms" for stage in STAGES)
    lines += ["", *_markdown_table(("set", *stages, "images/s", "peak MB"), costs), *failures]
    return "\n".join(lines) + "\n"


def terminal_tables(results: Results) -> list[Table]:
    """Scores and mIoU for the terminal.

    Examples:
        >>> from dataclasses import fields
        >>> from pebal_core.benchmark.results import Run, SetInfo, SetResult
        >>> run = dict.fromkeys((field.name for field in fields(Run)), "") | {"model": "starter", "protocol": "smiyc"}
        >>> info = SetInfo("images+labels", "/data", 1, {}, {}, images_per_second=2.5, peak_memory_mb=900)
        >>> results = Results(Run(**run), {"town": SetResult(info, {"energy": Score(1, 99, 9, ap=0.5)})})
        >>> [(table.title, table.row_count) for table in terminal_tables(results)]
        [('starter, protocol smiyc', 1)]
    """
    title = f"{results.run.model}, protocol {results.run.protocol}"
    tables = []
    if rows := _score_rows(results, with_intervals=False):
        tables.append(Table(*SCORE_HEAD, title=title))
        for row in rows:
            tables[-1].add_row(*row, style="bold" if row[2] == results.run.main_score else "")
    if objects := _object_rows(results, with_intervals=False):
        shown = OBJECT_HEAD.index("FROC score") + 1  # the recalls at each rate would not fit
        tables.append(Table(*OBJECT_HEAD[:shown], title=f"{title}, objects"))
        for row in objects:
            tables[-1].add_row(*row[:shown])
    if classes := _class_rows(results):
        tables.append(Table(*CLASS_HEAD, title=title))
        for row in classes:
            tables[-1].add_row(*row)
    return tables


def _figure(figures: Score, key: str, with_interval: bool) -> str:
    value: float | None = getattr(figures, key)
    interval: Interval | None = getattr(figures, f"{key}_interval")
    if value is None or interval is None or not with_interval:
        return percent(value)
    return f"{percent(value)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _with_interval(text: str, interval: Interval | None, wanted: bool, factor: float) -> str:
    return (
        text if interval is None or not wanted else f"{text} [{factor * interval[0]:.1f}, {factor * interval[1]:.1f}]"
    )


def _markdown_table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
