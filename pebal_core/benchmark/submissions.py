"""Writes and checks submission files for Fishyscapes and SegmentMeIfYouCan.

| format | files of a frame |
|---|---|
| fishyscapes | `FRAME_anomaly.npy` (float32), `FRAME_segmentation.npy` (uint8 trainIds) |
| smiyc | `anomaly_p/METHOD/SET/FRAME.hdf5` with the data set `value` (float16) |

The files are read by github.com/hermannsblum/fishyscapes and github.com/SegmentMeIfYouCan/road-anomaly-benchmark.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.scenes import IMAGE_SUFFIXES, list_images, read_image
from ..errors import PebalError, one_line
from ..files import write_atomically

FORMATS = ("fishyscapes", "smiyc")

SMIYC_SETS: dict[str, tuple[str, int | None]] = {
    "AnomalyTrack-all": ("images", 110),
    "ObstacleTrack-all": ("images", None),
    "LostAndFound-train": ("leftImg8bit/train/*", 1036),
    "LostAndFound-test": ("leftImg8bit/test/*", 1203),
}
"""Sets on which the official tool runs a method: their images, and how many there must be (None: any number)."""

FISHYSCAPES_SIZE = (1024, 2048)
FISHYSCAPES_CLASSES = 20
"""The official tool accepts class ids below this."""

SAMPLE = 4_000_000
"""The float16 map of a set is made from at most so many scores, in equal numbers from all frames."""

_HDF5_NAME = "value"
_CODES = np.arange(0x0400, 0x3C00 + 1, dtype=np.uint16).view(np.float16)
"""The normal float16 numbers up to 1, 2^-14 … 1, in ascending order."""


@dataclass(frozen=True)
class SubmissionImage:
    """An image and its name in the benchmark."""

    name: str
    path: Path


def find_frames(source: Path, official_set: str | None = None) -> list[SubmissionImage]:
    """Frames of a folder of images, or of an official set (a key of `SMIYC_SETS`) with ``source`` as its root.

    Raises:
        PebalError: no images, two of one name, or another number than the official set has.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("0001.png", "0000.jpg"):
        ...         (Path(folder) / name).touch()
        ...     [frame.name for frame in find_frames(Path(folder))]
        ['0000', '0001']
    """
    if official_set is None:
        frames = [SubmissionImage(path.stem, path) for path in list_images(source)]
    else:
        pattern, number = SMIYC_SETS[official_set]
        images = sorted(p for p in source.glob(f"{pattern}/*") if p.suffix.lower() in IMAGE_SUFFIXES)
        frames = [SubmissionImage(path.stem.removesuffix("_leftImg8bit"), path) for path in images]
        if not frames:
            raise PebalError(
                f"{source} contains no images that match {pattern}; name the folder of {official_set} as downloaded."
            )
        if number not in (None, len(frames)):
            raise PebalError(
                f"{source} contains {len(frames)} images, but {official_set} has {number}. Complete the folder, or "
                "for a trial name the folder of images and leave --set out."
            )
    seen: dict[str, Path] = {}
    for frame in frames:
        if frame.name in seen:
            raise PebalError(f"{seen[frame.name]} and {frame.path} have the same frame name; remove one of them.")
        seen[frame.name] = frame.path
    return frames


class OrderKeepingFloat16:
    """A monotonically rising map from scores to float16 in 0…1, the same for all frames of a set.

    Benchmarks only use the order of the scores. float16 preserves it poorly where scores are far from 0: energies near
    -12 are rounded to 1/128 nats. Here, each of the 14,337 float16 numbers in use stands for a small share of the
    pixels instead. With p the share of all pixels that score higher, the position of a score between 0 and 1 is

        ½ (1 - p) + ½ log p / log p_min

    The first term spreads the scores by rank. The second one resolves scores the more finely, the rarer higher scores
    are, so that the highest scores, where the anomalies are, keep their order best.

    Args:
        sample: scores from all frames in fair proportion, including the lowest and the highest of all.

    Examples:
        >>> energies = np.linspace(-12, -11.99, 1000, dtype=np.float32).reshape(20, 50)
        >>> keep_order = OrderKeepingFloat16(energies)
        >>> len(np.unique(energies.astype(np.float16))), len(np.unique(keep_order(energies)))
        (2, 1000)
    """

    def __init__(self, sample: np.ndarray) -> None:
        self._scores, counts = np.unique(sample.astype(np.float64), return_counts=True)
        if len(self._scores) < 2:
            raise PebalError(f"All scores are {self._scores[0]:g}, so they have no order to write. Check the model.")
        higher = (counts.sum() - np.cumsum(counts) + counts / 2) / counts.sum()
        position = (1 - higher + np.log(higher) / np.log(higher[-1])) / 2
        low, high = position[0], position[-1]
        self._codes = (position - low) / (high - low) * (len(_CODES) - 1)

    def __call__(self, score: np.ndarray) -> np.ndarray:
        """H×W float32 → H×W float16; two scores never change their order, but neighbours may become equal."""
        codes: np.ndarray = _CODES[np.rint(np.interp(score, self._scores, self._codes)).astype(np.intp)]
        return codes


def sample_scores(score: np.ndarray, number: int, seed: int) -> np.ndarray:
    """At most ``number`` scores of a frame, drawn with replacement, and its lowest and highest score.

    Examples:
        >>> sample = sample_scores(np.arange(100).reshape(10, 10), number=8, seed=0)
        >>> len(sample), sample[-2:].tolist()
        (10, [0, 99])
    """
    drawn = np.random.default_rng(seed).integers(0, score.size, min(number, score.size))
    return np.concatenate([score.ravel()[drawn], [score.min(), score.max()]])


def require_finite(energy: np.ndarray, name: str) -> None:
    """Refuse scores that the evaluation cannot rank.

    Raises:
        PebalError: a score is NaN or infinite.

    Examples:
        >>> require_finite(np.array([[-9, np.inf]]), "a.png")
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: a.png: 1 of 2 scores are not finite; check the model and its precision.
    """
    bad = np.count_nonzero(~np.isfinite(energy))
    if bad:
        raise PebalError(f"{name}: {bad} of {energy.size} scores are not finite; check the model and its precision.")


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write an array as a ``.npy`` file, which appears whole or not at all.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_npy(Path(folder) / "0000_anomaly.npy", np.array([[-9.5, -2]], np.float32))
        ...     np.load(Path(folder) / "0000_anomaly.npy").tolist()
        [[-9.5, -2.0]]
    """
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomically(path, buffer.getvalue())


def write_hdf5(path: Path, score: np.ndarray) -> None:
    """Write scores H×W float16 as the official tool stores them.

    Examples:
        >>> import h5py, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_hdf5(Path(folder) / "0001.hdf5", np.array([[0.25, 0.5]], np.float16))
        ...     with h5py.File(Path(folder) / "0001.hdf5") as file:
        ...         file["value"][()].tolist()
        [[0.25, 0.5]]
    """
    buffer = io.BytesIO()
    with _h5py().File(buffer, "w") as file:
        file.create_dataset(_HDF5_NAME, data=score, compression=4)
    write_atomically(path, buffer.getvalue())


def check_fishyscapes(folder: Path, frames: Sequence[SubmissionImage]) -> list[str]:
    """Find everything that the official validation would reject or misread in a folder of submission files.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_npy(Path(folder) / "0000_a_anomaly.npy", np.zeros(FISHYSCAPES_SIZE, np.float32))
        ...     check_fishyscapes(Path(folder), [SubmissionImage("0000_a", Path("0000_a.png"))])
        ['0000_a_segmentation.npy: missing', '0000_a_anomaly.npy: all scores are equal']
    """
    kinds = ("anomaly", "segmentation")
    problems = _check_files(folder, {f"{frame.name}_{kind}.npy" for frame in frames for kind in kinds}, ".npy")
    numbers: dict[int, str] = {}
    for frame in frames:
        first = frame.name.split("_")[0]
        if not first.isdecimal():
            problems.append(f"{frame.name}: the name does not begin with the number that the labels are matched by")
        elif int(first) in numbers:
            problems.append(f"{frame.name}: {numbers[int(first)]} has the same number, {int(first)}")
        else:
            numbers[int(first)] = frame.name
        for kind in kinds:
            path = folder / f"{frame.name}_{kind}.npy"
            if path.is_file():
                problems += [f"{path.name}: {problem}" for problem in _fishyscapes_problems(path, kind)]
    return problems


def _fishyscapes_problems(path: Path, kind: str) -> list[str]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        return [f"cannot be read as an array ({one_line(error)})"]
    if array.shape != FISHYSCAPES_SIZE:
        return [f"the shape is {_size(array)}, not {_size(np.empty(FISHYSCAPES_SIZE, np.uint8))}"]
    if kind == "anomaly":
        return _score_problems(array, np.float32)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= FISHYSCAPES_CLASSES:
        return [f"{array.dtype} from {array.min()} to {array.max()} are not trainIds below {FISHYSCAPES_CLASSES}"]
    return []


def check_smiyc(folder: Path, frames: Sequence[SubmissionImage]) -> list[str]:
    """Find everything that the official evaluation would reject or misread in ``anomaly_p/METHOD/SET``.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "street.hdf5").touch()
        ...     check_smiyc(Path(folder), [SubmissionImage("road", Path("road.png"))])
        ['road.hdf5: missing', 'street.hdf5: belongs to no frame; remove it']
    """
    problems = _check_files(folder, {f"{frame.name}.hdf5" for frame in frames}, ".hdf5")
    for frame in frames:
        path = folder / f"{frame.name}.hdf5"
        if path.is_file():
            size = read_image(frame.path).shape[:2]
            problems += [f"{path.name}: {problem}" for problem in _smiyc_problems(path, size)]
    return problems


def _smiyc_problems(path: Path, size: tuple[int, ...]) -> list[str]:
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get(_HDF5_NAME), h5py.Dataset):
                return [f"it contains no data set '{_HDF5_NAME}'"]
            score = file[_HDF5_NAME][()]
    except OSError as error:
        return [f"cannot be read as HDF5 ({one_line(error)})"]
    if np.shape(score) != size:
        return [f"the scores are {_size(score)}, the image is {_size(np.empty(size, np.uint8))}"]
    return _score_problems(score, np.float16)


def _score_problems(score: np.ndarray, dtype: type[np.floating[Any]]) -> list[str]:
    if score.dtype != dtype:
        return [f"the scores are {score.dtype}, not {np.dtype(dtype)}"]
    if not np.isfinite(score).all():
        return [f"{np.count_nonzero(~np.isfinite(score))} scores are not finite"]
    return ["all scores are equal"] if score.min() == score.max() else []


def _check_files(folder: Path, wanted: set[str], suffix: str) -> list[str]:
    """Find missing files and files that belong to no frame; the official tools pair files by position or name."""
    found = {path.name for path in folder.glob(f"*{suffix}")}
    missing = [f"{name}: missing" for name in sorted(wanted - found)]
    return missing + [f"{name}: belongs to no frame; remove it" for name in sorted(found - wanted)]


def _size(array: np.ndarray) -> str:
    return "×".join(map(str, np.shape(array))) or "a single number"


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise PebalError("SegmentMeIfYouCan's files need h5py. Run: pip install 'pebal_ros[benchmark]'.") from error
    return h5py
