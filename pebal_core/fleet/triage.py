"""Triage: every source scanned, the best moments of all of them chosen, and the gallery written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..detector import AnomalyDetector
from ..errors import PebalError
from .events import Moment, select
from .gallery import Chosen, write_gallery
from .scan import Request, expand, key, scan, stored

SCANS = "sources"
"""Folder of the results per source."""


def triage(sources: Sequence[str], out: Path, request: Request, detector: AnomalyDetector, top: int) -> int:
    """Scan what was not scanned before, and write the gallery; returns the number of problems with sources.

    Raises:
        PebalError: there is no source, or the results cannot be written.
    """
    found = expand(list(sources))
    folders = {source: out / SCANS / key(source, request, detector.model_sha256) for source in found}
    failures: list[str] = []
    entries: list[tuple[Moment, Path]] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        overall = progress.add_task("sources", total=len(found))
        frames = progress.add_task(f"frames, {detector.engine_name} on {detector.device_name}", total=None)
        for source, folder in folders.items():
            try:
                if not folder.is_dir():
                    scan(source, folder, request, detector, lambda count: progress.advance(frames, count))
                moments, problems = stored(folder)
            except PebalError as error:
                moments, problems = [], [str(error)]
            entries += moments
            failures += problems
            for problem in problems:
                print(f"pebal triage: {problem}", file=sys.stderr)
            progress.advance(overall)
    paths = {id(moment): path for moment, path in entries}
    best, alike = select([moment for moment, _ in entries], top)
    chosen = [
        Chosen(rank, moment, paths[id(moment)], f"{paths[id(moment)].parent.name}-{moment.name}")
        for rank, moment in enumerate(best, start=1)
    ]
    figures = {
        "sources": str(len(found)),
        "events": f"{len(entries)}, of which {alike} look like one that is shown",
        "model": f"{detector.model_path.name} ({detector.model_sha256[:12]})",
    }
    write_gallery(out, chosen, figures, failures)
    print(f"{len(chosen)} moments of {len(entries)} events are in {out / 'index.html'}.")
    return len(failures)
