"""The figures as Markdown and in the terminal."""

from __future__ import annotations

from rich.table import Table

from .protocols import PROTOCOLS
from .results import STAGES, Interval, Results, Score

NONE = "–"


def percent(value: float | None) -> str:
    """Two decimals, as the field prints its figures."""
    return NONE if value is None else f"{100 * value:.2f}"


SCORE_HEAD = ("set", "images", "score", "AUROC", "AP", "FPR95", "best F1", "")


def score_rows(results: Results, with_intervals: bool) -> list[list[str]]:
    """A row for every score of every set, as `SCORE_HEAD` says."""
    rows = []
    for name, score, figures in results.rows():
        values = [_figure(figures, key, with_intervals) for key in ("auroc", "ap", "fpr95")]
        best_f1 = percent(figures.best_f1)
        rows.append([name, str(figures.images), score, *values, best_f1, figures.undefined or ""])
    return rows


CLASS_HEAD = ("set", "images", "mIoU", "mIoU, sliding windows", "accuracy", "ECE")


def class_rows(results: Results) -> list[list[str]]:
    """A row for every set of classes, as `CLASS_HEAD` says."""
    return [
        [name, str(s.images), percent(s.miou), percent(s.sliding_miou), percent(s.accuracy), percent(s.ece)]
        for name, result in results.sets.items()
        if (s := result.segmentation) is not None
    ]


def markdown(results: Results) -> str:
    """The contents of ``results.md``."""
    run = results.run
    size = "each image's own" if run.input_size is None else "×".join(map(str, run.input_size))
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
    if rows := score_rows(results, with_intervals=True):
        lines += ["", *_markdown_table(SCORE_HEAD, rows)]
    components = [
        [name, score, *map(percent, (c.siou, c.ppv, c.f1)), str(c.objects), str(c.predictions), c.undefined or ""]
        for name, score, figures in results.rows()
        if (c := figures.components) is not None
    ]
    if components:
        lines += ["", *_markdown_table(("set", "score", "sIoU", "PPV", "F1", "objects", "predictions", ""), components)]
    if classes := class_rows(results):
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
    """Scores and mIoU for the terminal."""
    title = f"{results.run.model}, protocol {results.run.protocol}"
    tables = []
    if rows := score_rows(results, with_intervals=False):
        tables.append(Table(*SCORE_HEAD, title=title))
        for row in rows:
            tables[-1].add_row(*row, style="bold" if row[2] == results.run.main_score else "")
    if classes := class_rows(results):
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


def _markdown_table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
