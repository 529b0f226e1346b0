"""Scans one source of a triage and writes its moments to a folder, which appears complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..data.scenes import IMAGE_SUFFIXES
from ..detector import AnomalyDetector
from ..engines import InputSize
from ..errors import CutShortError, PebalError
from ..files import user_path
from ..footage import Frame, FrameSource, is_recording
from ..footage.bags import METADATA
from ..model_file import MODELS_FOLDER, resolve_model
from ..outputs import ObjectOptions, ObjectReader
from .events import EventFinder, Moment
from .frames import answers, batches

VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")
SERIES = "series.csv"
"""File with the energy and the number of confirmed objects of every processed frame."""
VERSION = 1
"""Version of the stored results; results of another version are computed again."""


@dataclass(frozen=True)
class ScanRequest:
    """Settings of a scan, the same for every source."""

    top: int
    """Number of moments to keep per source."""
    topic: str
    """Name or type of the image topic in recordings; empty for the only one."""
    rate: float
    """Frames per second to process; 0 processes all."""
    batch: int
    """Frames that go through the network at once."""
    objects: ObjectOptions


@dataclass(frozen=True)
class ModelChoice:
    """The model and where it runs, as for `AnomalyDetector.load`.

    Examples:
        >>> ModelChoice("starter", device="cpu").everywhere().model
        'starter'
    """

    model: str
    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    input_size: InputSize | None = None

    def load(self) -> AnomalyDetector:
        """Load the model."""
        return AnomalyDetector.load(self.model, self.engine, self.device, self.precision, self.input_size)

    def everywhere(self) -> ModelChoice:
        """The same choice for workers with another working directory; a shipped model keeps its name.

        Raises:
            PebalError: there is no such model.
        """
        path = resolve_model(self.model)
        return self if path.parent == MODELS_FOLDER else replace(self, model=str(path.absolute()))


@dataclass(frozen=True)
class Job:
    """A source to be scanned, and the folder for its result."""

    source: str
    folder: Path

    def __str__(self) -> str:
        return self.source


def expand(paths: list[str]) -> list[str]:
    """Absolute paths of the sources that the given paths stand for, without duplicates.

    A folder that is no recording and holds no images stands for the sources inside it.

    Raises:
        PebalError: a folder holds no source, or a path is invalid.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a.mp4", "b.mkv", "notes.txt"):
        ...         (Path(folder) / name).touch()
        ...     [Path(source).name for source in expand([folder])]
        ['a.mp4', 'b.mkv']
    """
    found: list[str] = []
    for given in paths:
        path = user_path(given)
        within = _within(path.absolute()) if path.is_dir() else [str(path.absolute())]
        if not within:
            raise PebalError(f"The folder {path} contains no recordings, videos or images.")
        found += within
    return list(dict.fromkeys(found))


def _within(folder: Path) -> list[str]:
    entries = sorted(folder.iterdir())
    if any(entry.name == METADATA for entry in entries):
        return [str(folder)]
    if any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries if entry.is_file()):
        return [str(folder)]
    found = []
    for entry in entries:
        if entry.is_file() and (is_recording(entry) or entry.suffix.lower() in VIDEO_SUFFIXES):
            found.append(str(entry))
        elif entry.is_dir():
            found += _within(entry)
    return found


def key(source: str, request: ScanRequest, model_sha256: str) -> str:
    """Name of the folder for a source's results, which is different for other files, models and settings.

    Examples:
        >>> import tempfile
        >>> request = ScanRequest(top=50, topic="", rate=0.0, batch=1, objects=ObjectOptions())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     drive = Path(folder) / "drive.mp4"
        ...     drive.touch()
        ...     name = key(str(drive), request, "5eb1")
        ...     name[:10], name == key(str(drive), replace(request, top=20), "5eb1")
        ('drive.mp4-', False)
    """
    path = user_path(source)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    identity = json.dumps([VERSION, str(path.resolve()), stats, asdict(request), model_sha256], sort_keys=True)
    return f"{path.name or path.resolve().name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def scan(
    source: str, folder: Path, request: ScanRequest, detector: AnomalyDetector, advance: Callable[[int], None]
) -> None:
    """Process every frame of a source and write its moments to a folder.

    If a source ends early, its frames up to that point count, and the folder records the problem.

    Args:
        source: path of the source.
        folder: folder for the results, which must not exist yet; it appears with its complete content.
        request: the settings.
        detector: the detector.
        advance: function that is called with the number of frames processed.

    Raises:
        PebalError: the source cannot be read, or the disk is full.

    Examples:
        >>> import tempfile
        >>> import cv2
        >>> import numpy as np
        >>> request = ScanRequest(top=50, topic="", rate=0.0, batch=1, objects=ObjectOptions())
        >>> detector = ModelChoice("starter", "torch", "cpu").load()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = cv2.imwrite(f"{folder}/1.png", np.full((96, 128, 3), 90, np.uint8))
        ...     scan(folder, Path(folder) / "result", request, detector, advance=print)
        ...     (Path(folder) / "result" / SERIES).read_text().splitlines()[0]
        1
        'seconds,energy,confirmed'
    """
    footage = FrameSource(source, request.topic if is_recording(Path(source)) else "")
    read = ObjectReader(request.objects, detector.info, footage)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        for leftover in folder.parent.glob(f".{folder.name}.*.part"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir(parents=True)
        finder = EventFinder(source, request.top, read.settings.threshold)
        problems: list[str] = []
        with (part / SERIES).open("w") as series:
            series.write("seconds,energy,confirmed\n")
            for batch in batches(_until_cut(_thinned(footage, request.rate), problems), request.batch):
                for frame, result in zip(batch, answers(detector, [frame.image for frame in batch])):
                    products = read(frame, result)
                    energy = finder.add(frame, products, read.ignored(*result.energy.shape))
                    series.write(f"{frame.seconds:.6f},{energy:.4f},{len(products.sighting.confirmed)}\n")
                advance(len(batch))
        if footage.skipped:
            problems.append(f"{source}: {footage.skipped} malformed images were skipped.")
        moments = []
        for number, kept in enumerate(finder.finish()):
            (part / f"{number:04d}.jpg").write_bytes(kept.image)
            (part / f"{number:04d}_overlay.jpg").write_bytes(kept.overlay)
            moments.append(kept.moment.as_json())
        content = {"source": source, "problems": problems, "moments": moments}
        (part / "moments.json").write_text(json.dumps(content, indent=1))
        part.rename(folder)
    except OSError as error:
        raise PebalError(
            f"{folder} could not be written: {error.strerror}; free space or choose another --out."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


class Scanner:
    """Scans sources with one model.

    Args:
        request: the settings.
        choice: the model.
        advance: as for `scan`.

    Raises:
        PebalError: the model cannot be loaded.
    """

    def __init__(
        self, request: ScanRequest, choice: ModelChoice, advance: Callable[[int], None] = lambda _: None
    ) -> None:
        self._request, self._detector, self._advance = request, choice.load(), advance

    def __call__(self, job: Job) -> None:
        """Scan a source, unless its results exist, as when a worker died after the scan.

        Raises:
            PebalError: as for `scan`.
        """
        if not job.folder.is_dir():
            scan(job.source, job.folder, self._request, self._detector, self._advance)


def stored(folder: Path) -> tuple[list[tuple[Moment, Path]], list[str]]:
    """Read the results of a scan.

    Returns:
        The moments, each with the path of its image (beside which ``NAME_overlay.jpg`` is stored), and sentences about
        parts of the source that could not be read.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     content = {"source": "drive.mp4", "problems": ["drive.mp4 ends early."], "moments": []}
        ...     _ = (Path(folder) / "moments.json").write_text(json.dumps(content))
        ...     stored(Path(folder))
        ([], ['drive.mp4 ends early.'])
    """
    content = json.loads((folder / "moments.json").read_text())
    moments = [Moment.from_json(values) for values in content["moments"]]
    return [(moment, folder / f"{number:04d}.jpg") for number, moment in enumerate(moments)], content["problems"]


def _until_cut(frames: Iterator[Frame], problems: list[str]) -> Iterator[Frame]:
    """Yield the frames of a source; if it ends early, the error message is added to the problems."""
    try:
        yield from frames
    except CutShortError as error:
        problems.append(str(error))


def _thinned(footage: FrameSource, rate: float) -> Iterator[Frame]:
    """Yield frames at no more than the given rate in hertz; 0 yields all."""
    due = 0.0
    last = 0.0
    for frame in footage:
        if frame.seconds < last:
            due = frame.seconds  # the clock jumped back
        last = frame.seconds
        if not rate or frame.seconds >= due - 1e-9:
            due = max(due + 1 / rate, frame.seconds) if rate else 0.0
            yield frame
