"""Scans every source of a triage, chooses the best moments of all, and writes the gallery."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..locks import held
from ..model_file import file_sha256, resolve_model
from .cluster import Cluster, open_workers
from .events import Moment, select
from .gallery import Chosen, write_gallery
from .scan import Job, ModelChoice, Scanner, ScanRequest, expand, key, stored
from .viewer import write_rrd

SCANS = "sources"
"""Folder for the results of each source."""


def triage(
    sources: Sequence[str],
    out: Path,
    request: ScanRequest,
    choice: ModelChoice,
    top: int,
    cluster: Cluster | None = None,
    rrd: Path | None = None,
) -> int:
    """Scan the sources that have no results yet, and write the gallery.

    Args:
        sources: recordings, videos, folders of images, or folders of any of these.
        out: folder to write to.
        request: the settings of the scans.
        choice: the model.
        top: number of moments to show.
        cluster: cluster on which the sources are scanned; None scans them in this process, one after the other.
        rrd: file for a Rerun recording, if one is wanted.

    Returns:
        The number of problems with sources.

    Raises:
        PebalError: there is no source, or the results cannot be written.

    Examples:
        >>> from pebal_core.outputs import ObjectOptions
        >>> request = ScanRequest(top=50, topic="", rate=0.0, batch=1, objects=ObjectOptions())
        >>> triage(["drive.mcap"], Path("out"), request, ModelChoice("starter"), top=50)  # doctest: +SKIP
        0
    """
    found = expand(list(sources))
    model = resolve_model(choice.model)
    sha256 = file_sha256(model)
    folders = {source: out.absolute() / SCANS / key(source, request, sha256) for source in found}
    with held(out):
        problems = _scan_missing(folders, request, choice, cluster)
        entries: list[tuple[Moment, Path]] = []
        failures: list[str] = []
        for source, folder in folders.items():
            moments, reported = ([], [problems[source]]) if source in problems else stored(folder)
            entries += moments
            failures += reported
        for failure in failures:
            print(f"pebal triage: {failure}", file=sys.stderr)
        paths = {id(moment): path for moment, path in entries}
        best, alike = select([moment for moment, _ in entries], top)
        chosen = [
            Chosen(rank, moment, paths[id(moment)], f"{paths[id(moment)].parent.name}-{moment.name}")
            for rank, moment in enumerate(best, start=1)
        ]
        figures = {
            "sources": str(len(found)),
            "events": f"{len(entries)} found, {alike} left out for looking like a shown moment",
            "model": f"{model.name} ({sha256[:12]})",
        }
        write_gallery(out, chosen, figures, failures)
        if rrd is not None:
            write_rrd(rrd, chosen, {source: folder for source, folder in folders.items() if source not in problems})
    print(f"{len(chosen)} moments of {len(entries)} events are in {out / 'index.html'}.")
    return len(failures)


def _scan_missing(
    folders: Mapping[str, Path], request: ScanRequest, choice: ModelChoice, cluster: Cluster | None
) -> dict[str, str]:
    """Scan the sources whose folders do not exist yet; returns the error messages by source."""
    missing = [Job(source, folder) for source, folder in folders.items() if not folder.is_dir()]
    problems: dict[str, str] = {}
    if not missing:
        return problems
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        overall = progress.add_task("sources", total=len(folders), completed=len(folders) - len(missing))
        load = partial(Scanner, request, choice.everywhere())
        if cluster is None:  # the progress within a source is known only in this process
            frames = progress.add_task("frames", total=None)
            load = partial(load, lambda count: progress.advance(frames, count))
        with open_workers(cluster, load, len(missing)) as workers:
            for job, _, error in workers.results(missing):
                if error is not None:
                    problems[job.source] = str(error)
                progress.advance(overall)
    return problems
