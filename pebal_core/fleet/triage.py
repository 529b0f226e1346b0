"""Triage: every source scanned, the best moments of all of them chosen, and the gallery written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..detector import AnomalyDetector
from ..errors import PebalError
from .events import select
from .gallery import Chosen, write_gallery
from .scan import Request, expand, key, scan, stored

SCANS = "sources"
"""Folder of the results per source."""


def triage(sources: Sequence[str], out: Path, request: Request, detector: AnomalyDetector, top: int) -> int:
    """Scan what was not scanned before, and write the gallery; returns the number of sources that failed.

    Raises:
        PebalError: there is no source, or the results cannot be written.
    """
    found = expand(list(sources))
    folders = {source: out / SCANS / key(source, request, detector.model_sha256) for source in found}
    failures: dict[str, str] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        overall = progress.add_task("sources", total=len(found))
        frames = progress.add_task(f"frames, {detector.engine_name} on {detector.device_name}", total=None)
        for source, folder in folders.items():
            if not folder.is_dir():
                try:
                    scan(source, folder, request, detector, lambda count: progress.advance(frames, count))
                except PebalError as error:
                    failures[source] = str(error)
                    print(f"pebal triage: {error}", file=sys.stderr)
            progress.advance(overall)
    entries = [entry for source, folder in folders.items() if source not in failures for entry in stored(folder)]
    paths = {id(moment): path for moment, path in entries}
    moments, alike = select([moment for moment, _ in entries], top)
    chosen = [
        Chosen(rank, moment, paths[id(moment)], f"{paths[id(moment)].parent.name}-{moment.name}")
        for rank, moment in enumerate(moments, start=1)
    ]
    figures = {
        "sources": f"{len(found) - len(failures)} of {len(found)}",
        "events": f"{len(entries)}, of which {alike} look like one that is shown",
        "model": f"{detector.model_path.name} ({detector.model_sha256[:12]})",
    }
    write_gallery(out, chosen, figures, list(failures.values()))
    print(f"{len(chosen)} moments of {len(entries)} events are in {out / 'index.html'}.")
    return len(failures)
