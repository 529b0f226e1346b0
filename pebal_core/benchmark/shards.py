"""Stores the intermediate results of a benchmark: a small file per image, and exact counts of scores in larger files.

Every file appears whole or not at all. A run can therefore be killed at any time, and any number of workers that see
the folder can share it. The worker that evaluates an image writes its counts first and its record last, so an image is
done when its record exists.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PebalError, one_line
from ..files import being_written, write_atomically
from ..metrics.pooled import PooledMetrics

MERGED = 8
"""So many shards of one size are merged, so that their number and the time to merge grow with the logarithm of the
number of images."""

Arrays = Mapping[str, np.ndarray]


@contextmanager
def trusting(place: Path) -> Iterator[None]:
    """Read files of an earlier run in this block; if they are damaged, the error names the place.

    Raises:
        PebalError: an exception that damaged files cause was raised in the block.

    Examples:
        >>> with trusting(Path("work")):
        ...     {}["pixels"]
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: work is damaged (KeyError: 'pixels'); delete it and run the same command again.
    """
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise PebalError(
            f"{place} is damaged ({type(error).__name__}: {reason:.100}); delete it and run the same command again."
        ) from error


class Records:
    """A ``.npz`` of small arrays for each image that is done, a ``.failed`` with the reason for each that failed.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     records = Records(Path(folder), count=3)
        ...     records.write(0, {"pixels": np.array([3, 4])})
        ...     records.fail(2, "no labels")
        ...     records.done(), records.read(0)["pixels"].tolist(), records.failures()
        ([0], [3, 4], {2: 'no labels'})
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, index: int, arrays: Arrays) -> None:
        path = self._path(index, "npz")
        with being_written(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **dict(arrays))  # type: ignore[arg-type]
        self._path(index, "failed").unlink(missing_ok=True)

    def fail(self, index: int, reason: str) -> None:
        write_atomically(self._path(index, "failed"), reason.encode())

    def forget_failure(self, index: int) -> None:
        """Delete the note of a failure before another try."""
        self._path(index, "failed").unlink(missing_ok=True)

    def read(self, index: int, prefix: str = "") -> dict[str, np.ndarray]:
        """The arrays of a record whose names begin with the prefix."""
        with trusting(self._path(index, "npz")), np.load(self._path(index, "npz")) as arrays:
            return {name: arrays[name] for name in arrays.files if name.startswith(prefix)}

    def done(self) -> list[int]:
        """Images with a record, in ascending order."""
        return self._list("npz")

    def failures(self) -> dict[int, str]:
        """The reasons why images failed, for those without a record."""
        done = set(self.done())
        return {
            index: self._path(index, "failed").read_text(errors="replace")
            for index in self._list("failed")
            if index not in done
        }

    def _path(self, index: int, suffix: str) -> Path:
        return self.folder / f"{index:06d}.{suffix}"

    def _list(self, suffix: str) -> list[int]:
        pattern = re.compile(rf"(\d+)\.{suffix}")
        matches = (pattern.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)


class CountShards:
    """The exact `PooledMetrics` of every score, in archives that each cover some images.

    Archives overlap where a process was killed between writing a merged archive and deleting its parts, or where two
    processes evaluated the same image. Then the largest archive counts, and the others are left out.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shards = CountShards(Path(folder))
        ...     for index, high in enumerate((-2, -6)):
        ...         metrics = PooledMetrics()
        ...         metrics.update(np.array([[-8, -4, high]], np.float32), np.array([[0, 0, 1]]), name=str(index))
        ...         shards.add(index, {"energy": metrics})
        ...     shards.covered(), shards.total("energy").compute().auroc
        ({0, 1}, 0.75)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own: dict[int, list[Path]] = {}
        self._origin = f"{socket.gethostname()}-{os.getpid()}"

    def add(self, index: int, metrics: Mapping[str, PooledMetrics]) -> None:
        """Write the counts of one image, by score, and merge archives of this process once there are enough."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{index:06d}.zip"
        _write_archive(path, [index], metrics, metrics.__getitem__)
        level = 0
        self._own.setdefault(0, []).append(path)
        while len(self._own.get(level, [])) >= MERGED:
            valid = _disjoint(self._own[level])
            parts, images = [part for part, _ in valid], sorted(image for _, images in valid for image in images)
            merged = self.folder / f"{images[0]:06d}-{len(images)}-{self._origin}.zip"
            _write_archive(merged, images, metrics, lambda score, parts=parts: _merge(parts, score))  # type: ignore[misc]
            for part in parts:
                part.unlink(missing_ok=True)
            self._own[level] = []
            level += 1
            self._own.setdefault(level, []).append(merged)

    def covered(self) -> set[int]:
        """Images whose counts exist."""
        return {image for _, images in _disjoint(self.folder.glob("*.zip")) for image in images}

    def total(self, score: str) -> PooledMetrics:
        """The counts of all images together."""
        return _merge([path for path, _ in _disjoint(self.folder.glob("*.zip"))], score)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Store:
    """The results of one pass over the images of a set."""

    records: Records
    counts: CountShards | None = None
    """None where the pass counts no pixels."""

    def done(self) -> set[int]:
        """Images that are done, counts included."""
        done = set(self.records.done())
        return done if self.counts is None or self.sums() is not None else done & self.counts.covered()

    def missing(self) -> list[int]:
        """Images that are neither done nor failed."""
        return sorted(set(range(self.records.count)) - self.done() - set(self.records.failures()))

    def sums(self) -> dict[str, Any] | None:
        """The figures that `keep_sums` wrote, if they cover all images that are done; counts are then superfluous."""
        if not self._sums.is_file():
            return None
        with trusting(self._sums):
            values = json.loads(self._sums.read_text())
            scores: dict[str, Any] = values["scores"]
            return scores if values["images"] == len(self.records.done()) else None

    def keep_sums(self, scores: Mapping[str, Any]) -> None:
        """Write the figures of each score, and delete the counts once every image is done."""
        done = len(self.records.done())
        write_atomically(self._sums, json.dumps({"images": done, "scores": scores}).encode())
        if self.counts is not None and done == self.records.count:
            self.counts.clear()

    @property
    def _sums(self) -> Path:
        return self.records.folder.with_name("figures.json")


def write_once(path: Path, values: Mapping[str, Any], explain: Callable[[str, Any, Any], str]) -> None:
    """Write values that must not change to a JSON file, and refuse a folder whose file has other values.

    Args:
        explain: makes the message from a key, the stored value and the new one.

    Raises:
        PebalError: the file holds another value.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for model in ("starter", "starter", "other"):
        ...         write_once(Path(folder) / "identity.json", {"model": model}, "{}: {}, not {}".format)
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: model: starter, not other
    """
    if not path.is_file():
        write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())
        return
    try:
        stored = json.loads(path.read_text())
        differing = [key for key in values if stored.get(key) != values[key]]
    except (ValueError, AttributeError) as error:
        raise PebalError(f"{path} is damaged ({one_line(error)}); delete {path.parent} to start over.") from error
    if differing:
        key = differing[0]
        raise PebalError(explain(key, stored.get(key), values[key]))


def _merge(paths: Iterable[Path], score: str) -> PooledMetrics:
    total = PooledMetrics()
    for path in paths:
        with trusting(path), np.load(path) as archive:
            names = [name for name in archive.files if name.startswith(f"{score}/")]
            total.merge(PooledMetrics.from_state({name.removeprefix(f"{score}/"): archive[name] for name in names}))
    return total


def _disjoint(paths: Iterable[Path]) -> list[tuple[Path, list[int]]]:
    """Existing archives with their images, the largest first, so chosen that no two cover the same image."""
    found = [(path, images) for path in sorted(set(paths)) if (images := _images(path))]
    found.sort(key=lambda item: -len(item[1]))
    covered: set[int] = set()
    disjoint = []
    for path, images in found:
        if covered.isdisjoint(images):
            covered.update(images)
            disjoint.append((path, images))
    return disjoint


def _images(path: Path) -> list[int] | None:
    """Images that an archive covers; None where it is missing or damaged."""
    try:
        with np.load(path) as archive:
            return [int(index) for index in np.atleast_1d(archive["images"])]
    except (OSError, ValueError, TypeError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        return None


def _write_archive(
    path: Path, images: list[int], scores: Iterable[str], metrics_of: Callable[[str], PooledMetrics]
) -> None:
    """Write one score after the other, so that memory holds only one."""
    with being_written(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _write_array(archive, "images", np.array(images))
        for score in scores:
            for name, array in metrics_of(score).state_dict().items():
                _write_array(archive, f"{score}/{name}", array)


def _write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)
