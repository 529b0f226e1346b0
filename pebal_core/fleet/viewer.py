"""Writes the chosen moments and the alarm series of all sources as a Rerun recording."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import PebalError
from ..files import being_written
from .gallery import Chosen
from .scan import SERIES

APPLICATION = "pebal triage"


def write_rrd(path: Path, chosen: Sequence[Chosen], folders: Mapping[str, Path]) -> None:
    """Write an .rrd file, which appears complete or not at all.

    The timeline ``rank`` holds the moments, each with image, overlay, boxes of confirmed objects, and a text that names
    the source. The timeline ``time``, which starts at zero for each source, holds its energies in nats and its number
    of confirmed objects.

    Args:
        path: the file to write.
        chosen: the moments, by rank.
        folders: folder of the results by source.

    Raises:
        PebalError: rerun-sdk is not installed, or the file cannot be written.

    Examples:
        >>> folders = {"drive.mcap": Path("out/sources/drive.mcap-0123456789ab")}
        >>> write_rrd(Path("moments.rrd"), [], folders)  # doctest: +SKIP
    """
    try:
        import rerun as rr
    except ModuleNotFoundError as error:
        raise PebalError("--rerun needs the package rerun-sdk. Run: pip install 'pebal_ros[rerun]'.") from error
    with being_written(path) as part:
        part.touch()  # raises an error if the file cannot be written; rerun would only warn
        stream = rr.RecordingStream(APPLICATION)
        stream.save(part)
        for one in chosen:
            stream.set_time("rank", sequence=one.rank)
            stream.log("moment/image", rr.EncodedImage(contents=one.stored.read_bytes(), media_type="image/jpeg"))
            stream.log("moment/overlay", rr.EncodedImage(contents=one.overlay.read_bytes(), media_type="image/jpeg"))
            stream.log("moment/image/objects", _boxes(rr, one))
            words = " ".join(filter(None, (one.moment.source, one.moment.topic, one.clock, one.utc)))
            stream.log("moment/source", rr.TextDocument(words))
        stream.reset_time()
        for folder in folders.values():
            with (folder / SERIES).open() as lines:
                for row in csv.DictReader(lines):
                    stream.set_time("time", duration=float(row["seconds"]))
                    stream.log(f"sources/{folder.name}/energy", rr.Scalars(float(row["energy"])))
                    stream.log(f"sources/{folder.name}/confirmed_objects", rr.Scalars(float(row["confirmed"])))
        stream.flush()
        stream.disconnect()


def _boxes(rr: Any, one: Chosen) -> Any:
    labels = [
        f"{found['id']}" if found["distance_m"] is None else f"{found['id']}: {found['distance_m']:.1f} m"
        for found in one.moment.objects
    ]
    corners = [found["box"][:2] for found in one.moment.objects]
    sizes = [found["box"][2:] for found in one.moment.objects]
    return rr.Boxes2D(mins=corners, sizes=sizes, labels=labels)
