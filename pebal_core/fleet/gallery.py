"""Writes the results of a triage: the page, the table, and the frames and clips of the chosen moments."""

from __future__ import annotations

import base64
import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import cv2
import jinja2
import numpy as np

from ..errors import PebalError
from ..files import being_written, read_pixels, write_atomically
from ..footage import FrameSource
from ..render import VideoWriter
from .events import Moment

MARGIN = 2.0
"""Seconds of footage in a clip before and after its event."""
CLIP_LONGEST = 20.0
"""Longest event in a clip, in seconds."""
CLIP_WIDTH, PAGE_WIDTH = 1280, 960
"""Width in pixels to which wider images are scaled down in clips and on the page."""
COLUMNS = (
    "rank", "source", "topic", "frame", "seconds", "utc", "first", "last", "energy", "objects", "distance_m", "image",
    "clip",
)  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """A moment that was chosen for the gallery."""

    rank: int
    moment: Moment
    stored: Path
    """File of its image; the overlay is stored beside it."""
    label: str
    """Unique label, by which its files are named."""

    @property
    def overlay(self) -> Path:
        """File of its overlay."""
        return self.stored.with_name(f"{self.stored.stem}_overlay.jpg")

    @property
    def name(self) -> str:
        """The last part of the source's path."""
        return Path(self.moment.source).name

    @property
    def utc(self) -> str:
        """Time at which the frame was taken, in ISO 8601; empty if the source does not store it."""
        if not self.moment.time_ns:
            return ""
        return datetime.fromtimestamp(self.moment.time_ns * 1e-9, timezone.utc).isoformat(timespec="milliseconds")

    @property
    def clock(self) -> str:
        """Minutes and seconds since the source's first frame."""
        minutes, seconds = divmod(self.moment.seconds, 60)
        return f"{int(minutes)}:{seconds:04.1f}"


def write_gallery(out: Path, chosen: Sequence[Chosen], figures: dict[str, str], failures: Sequence[str]) -> None:
    """Write the self-contained page ``index.html``, ``moments.csv``, ``frames/`` and ``clips/``.

    Files of moments that are no longer chosen are removed. Existing clips are not cut again.

    Args:
        out: folder to write to.
        chosen: the moments, by rank.
        figures: figures for the page, by name.
        failures: sentences about sources that could not be read.

    Raises:
        PebalError: a file cannot be written.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_gallery(Path(folder), [], {"sources": "1"}, ["drive.mp4 ends early."])
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['clips', 'frames', 'index.html', 'moments.csv']
    """
    try:
        _copy_frames(out / "frames", chosen)
        _cut_clips(out / "clips", chosen)
    except OSError as error:
        raise PebalError(
            f"{out} could not be written: {error.strerror}; free space or choose another --out."
        ) from error
    write_atomically(out / "moments.csv", _table(chosen).encode())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pebal_core.fleet"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    pictures = {one.label: _embedded(one.overlay) for one in chosen}
    page = environment.get_template("gallery.html").render(
        chosen=chosen, pictures=pictures, figures=figures, failures=failures
    )
    write_atomically(out / "index.html", page.encode())


def _table(chosen: Sequence[Chosen]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in chosen:
        moment = one.moment
        writer.writerow(
            (
                one.rank, moment.source, moment.topic, moment.name, moment.seconds, one.utc, moment.first, moment.last,
                moment.energy, len(moment.objects), "" if moment.distance is None else moment.distance,
                f"frames/{one.label}.jpg", f"clips/{one.label}.webm",
            )
        )  # fmt: skip
    return stream.getvalue()


def _copy_frames(folder: Path, chosen: Sequence[Chosen]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _keep(folder, {f"{one.label}.jpg" for one in chosen})
    for one in chosen:
        target = folder / f"{one.label}.jpg"
        if not target.exists():
            with being_written(target) as part:
                shutil.copyfile(one.stored, part)


def _cut_clips(folder: Path, chosen: Sequence[Chosen]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _keep(folder, {f"{one.label}.webm" for one in chosen})
    for one in chosen:
        target = folder / f"{one.label}.webm"
        if not target.exists():
            _cut_clip(one.moment, target)


def _keep(folder: Path, names: set[str]) -> None:
    for file in folder.iterdir():
        if file.name not in names:
            file.unlink()


def _cut_clip(moment: Moment, path: Path) -> None:
    """Write the camera's images around an event as VP8 video, which every browser can play."""
    source = FrameSource(moment.source, moment.topic)
    begin = max(moment.first, moment.seconds - CLIP_LONGEST / 2) - MARGIN
    end = min(moment.last, moment.seconds + CLIP_LONGEST / 2) + MARGIN
    video = VideoWriter(path, source.rate, "VP80")
    for frame in source.between(begin, end):
        image = _reduced(frame.image, CLIP_WIDTH)
        if video.shape and image.shape != video.shape:
            image = cv2.resize(image, (video.shape[1], video.shape[0]), interpolation=cv2.INTER_AREA)
        video.write(image)
    video.close()
    if not path.is_file():
        raise PebalError(f"The clip {path} of {moment.source} could not be cut. Check whether the source still exists.")


def _reduced(image: np.ndarray, width: int) -> np.ndarray:
    if image.shape[1] <= width:
        return image
    return cv2.resize(image, (width, round(image.shape[0] * width / image.shape[1])), interpolation=cv2.INTER_AREA)


def _embedded(path: Path) -> str:
    """Encode an image as a data URL."""
    image = read_pixels(path, cv2.IMREAD_COLOR)
    if image is None:
        raise PebalError(f"{path} is damaged. Remove its folder, and run the triage again.")
    data = cv2.imencode(".jpg", _reduced(image, PAGE_WIDTH), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
