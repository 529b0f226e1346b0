"""Finds evaluation sets by name, and pairs and checks their files before anything runs.

| name | images, labels | ids in the labels |
|---|---|---|
| FishyscapesLostAndFound, FishyscapesStatic | ``original/*``, ``labels/*`` | 0 inlier, 1 anomaly, else void |
| FishyscapesLostAndFound | ``leftImg8bit/**`` of LostAndFound, ``NNNN_*_labels`` | the same |
| LostAndFound | ``leftImg8bit/test/**``, ``gtCoarse/…_labelTrainIds`` | 1 inlier, 2 anomaly; void 0, 255 |
| RoadAnomaly | ``original/*``, ``labels/*``; ``frames/*``, ``frames/*.labels/labels_semantic`` | 0; 1 or 2 by copy |
| RoadAnomaly21, RoadObstacle21 | ``images/*``, ``labels_masks/*_labels_semantic`` | 0, 1, void 255 |
| Cityscapes | ``leftImg8bit/val/**``, ``gtFine/…_labelIds`` or ``_labelTrainIds``; the reference's flat one | classes |
| CamVid | ``test/*``, ``testannot/*`` | classes |
| any other name | ``images/*``, ``labels/*`` | as declared |

These are the official layouts and the layouts of the PEBAL reference. Files may have any suffix that OpenCV reads. A
split is appended to the name, as in ``CamVid-val`` and ``LostAndFound-train``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..class_list import ClassList
from ..errors import PebalError
from ..files import user_path
from ..labels import CAMVID_TO_TRAIN_ID, CITYSCAPES_CLASSES, LABEL_ID_TO_TRAIN_ID, OUTLIER, TRAIN_IDS, VOID
from ..objects import IgnoreMask
from .scenes import IMAGE_SUFFIXES, open_scenes, read_ids, read_image

INLIER, ANOMALY = 0, 1
"""Values of anomaly targets; `VOID` is the third."""

Pairs = tuple[tuple[Path, Path], ...]


@dataclass(frozen=True)
class Ids:
    """The meaning of the values in a label file."""

    table: np.ndarray
    """Lookup table, 256 uint8, from a value to `INLIER`, `ANOMALY` or `VOID`; to a class number if `classes` is set."""
    known: frozenset[int]
    """Values that may occur."""
    classes: tuple[str, ...] = ()
    """Names of the classes to which the table maps; empty for a set of anomalies."""


@dataclass(frozen=True)
class LabelledImage:
    """One image (H×W×3 uint8 RGB) with its ground truth (H×W uint8)."""

    image: np.ndarray
    target: np.ndarray
    """`INLIER`, `ANOMALY` and `VOID`, or class numbers and `VOID` for a set of classes."""


@dataclass(frozen=True)
class EvaluationSet:
    """Images paired with label files."""

    name: str
    """Canonical name."""
    path: Path
    pairs: Pairs
    ids: Ids
    track: str | None = None
    """``anomaly`` or ``obstacle`` if SegmentMeIfYouCan defines component metrics for the set, else None."""
    ignore: IgnoreMask | None = None
    """Pixels that become void in every image, such as the vehicle's own bonnet."""

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> LabelledImage:
        """Read an image with its ground truth.

        Raises:
            PebalError: a file is unreadable, image and labels differ in size, a value is not declared, or the image
                differs in aspect ratio from the mask.
        """
        image_path, label_path = self.pairs[index]
        image, values = read_image(image_path), read_ids(label_path)
        if image.shape[:2] != values.shape:
            raise PebalError(
                f"{image_path} is {image.shape[0]}×{image.shape[1]} (height×width) but its labels {label_path} are "
                f"{values.shape[0]}×{values.shape[1]}."
            )
        strange = sorted(set(np.unique(values).tolist()) - self.ids.known)
        if strange:
            raise PebalError(
                f"{label_path} contains the value {strange[0]}; {self.name} declares only "
                f"{_list(sorted(self.ids.known))}."
            )
        target = self.ids.table[values]
        if self.ignore is not None:
            target[self.ignore.at(*target.shape)] = VOID
        return LabelledImage(image, target)


def anomaly_ids(inlier: Sequence[int], anomaly: Sequence[int], void: Sequence[int] | None = (VOID,)) -> Ids:
    """Declare the ids of an anomaly set.

    Args:
        inlier: values of inlier pixels.
        anomaly: values of anomalous pixels.
        void: values of ignored pixels; None makes every other value void.

    Raises:
        PebalError: a value is outside 0…255 or is declared twice.

    Examples:
        >>> ids = anomaly_ids([0], [1, 2])
        >>> ids.table[[0, 1, 2, 255]].tolist(), sorted(ids.known)
        ([0, 1, 1, 255], [0, 1, 2, 255])
    """
    table = np.full(256, VOID, np.uint8)
    named = [*inlier, *anomaly, *(void or ())]
    if len(set(named)) != len(named) or not set(named) <= set(range(256)):
        raise PebalError(f"The label ids must be different numbers from 0 to 255; they are {_list(named)}.")
    table[list(inlier)] = INLIER
    table[list(anomaly)] = ANOMALY
    return Ids(table, frozenset(range(256) if void is None else named))


_BINARY = anomaly_ids([0], [1])
_FISHYSCAPES = anomaly_ids([0], [1], None)
_LOST_AND_FOUND = anomaly_ids([1], [2], [0, VOID])
_ROAD_ANOMALY = anomaly_ids([0], [1, 2])
_LABEL_IDS = Ids(LABEL_ID_TO_TRAIN_ID, frozenset({*range(34), VOID}), CITYSCAPES_CLASSES)
_TRAIN_IDS = Ids(TRAIN_IDS, frozenset({*range(19), VOID}), CITYSCAPES_CLASSES)
_CAMVID = Ids(CAMVID_TO_TRAIN_ID, frozenset(range(12)), CITYSCAPES_CLASSES)


@dataclass(frozen=True)
class _Layout:
    """Where images and labels of a set are stored. ``{split}`` is filled in; ``**`` matches folders of any depth."""

    images: str
    labels: str
    """Globs of files without their suffix; the part that ``*`` matches names the image and pairs the two files."""
    ids: Ids
    only: str = ""
    """If some image names start with this prefix, the other images have no labels by design."""
    numbered: bool = False
    """Whether the names of label files start with a number; images without such a file are not part of the set."""


def _city(folder: str, images: str, labels: str, ids: Ids) -> _Layout:
    return _Layout(f"leftImg8bit/{{split}}/**/*{images}", f"{folder}/{{split}}/**/*{labels}", ids)


_PAIR = ("images/*", "labels/*")
_REFERENCE = ("original/*", "labels/*")
_SMIYC = (
    _Layout("images/*", "labels_masks/*_labels_semantic", _BINARY, only="validation"),
    _Layout(*_PAIR, _BINARY),
)


@dataclass(frozen=True)
class _Known:
    """A set that is known by name."""

    folders: tuple[str, ...]
    """Usual names of its folder, lower case."""
    layouts: tuple[_Layout, ...]
    split: str = ""
    """Default split; empty if the set has no splits."""
    track: str | None = None


KNOWN: dict[str, _Known] = {
    "Cityscapes": _Known(
        ("cityscapes", "city_scape"),
        (
            _city("gtFine", "_leftImg8bit", "_gtFine_labelIds", _LABEL_IDS),
            _city("gtFine", "_leftImg8bit", "_gtFine_labelTrainIds", _TRAIN_IDS),
            _Layout(
                "images/city_gt_fine/{split}/*_leftImg8bit", "annotation/city_gt_fine/{split}/*_gtFine", _TRAIN_IDS
            ),
        ),
        "val",
    ),
    "FishyscapesLostAndFound": _Known(
        ("lostandfound", "fs_lost_found", "fishyscapes_lostandfound", "laf"),
        (
            _Layout(*_REFERENCE, _FISHYSCAPES),
            _Layout(*_PAIR, _FISHYSCAPES),
            _Layout("leftImg8bit/**/*_leftImg8bit", "**/*_labels", _FISHYSCAPES, numbered=True),
        ),
    ),
    "FishyscapesStatic": _Known(
        ("static", "fs_static", "fishyscapes_static"),
        (_Layout(*_REFERENCE, _FISHYSCAPES), _Layout(*_PAIR, _FISHYSCAPES)),
    ),
    "LostAndFound": _Known(
        ("lost_and_found", "lostandfound", "lost-and-found"),
        (_city("gtCoarse", "_leftImg8bit", "_gtCoarse_labelTrainIds", _LOST_AND_FOUND),),
        "test",
    ),
    "RoadAnomaly": _Known(
        ("roadanomaly", "road_anomaly", "roadanomaly_jpg"),
        (
            _Layout(*_REFERENCE, _ROAD_ANOMALY),
            _Layout("frames/*", "frames/*.labels/labels_semantic", _ROAD_ANOMALY),
            _Layout(*_PAIR, _ROAD_ANOMALY),
        ),
    ),
    "RoadAnomaly21": _Known(("dataset_anomalytrack", "roadanomaly21", "road_anomaly_21"), _SMIYC, track="anomaly"),
    "RoadObstacle21": _Known(("dataset_obstacletrack", "roadobstacle21", "road_obstacle_21"), _SMIYC, track="obstacle"),
    "CamVid": _Known(("camvid",), (_Layout("{split}/*", "{split}annot/*", _CAMVID),), "test"),
}
"""The sets that are known by name; every other name stands for a folder pair ``images/``, ``labels/``."""

PAIR_NAME = "images+labels"
"""Canonical name of a folder pair."""


def open_set(name: str, path: str | Path, declared: Ids = _BINARY) -> EvaluationSet:
    """Find and pair the files of a set.

    Args:
        name: name of a known set, followed by ``-SPLIT`` if it has splits; case and separators do not matter. Any other
            name stands for a folder pair.
        path: the folder of the set or its parent.
        declared: meaning of the values in the label files of a folder pair.

    Raises:
        PebalError: the folder does not exist or holds no layout of the set, an image has no labels, labels have no
            image, or two files have the same name.

    Examples:
        >>> import tempfile
        >>> from pebal_core.files import write_atomically
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for file in ("images/0.jpg", "labels/0.png"):
        ...         write_atomically(Path(folder, file), b"")
        ...     found = open_set("my drives", folder, anomaly_ids([0], [30]))
        >>> found.name, [image.name for image, _ in found.pairs]
        ('images+labels', ['0.jpg'])
    """
    root = user_path(path)
    if not root.is_dir():
        raise PebalError(f"The folder {root} of {name} does not exist.")
    canonical, split = _find_name(name)
    if canonical is None:
        known = _Known((name.lower(),), (_Layout(*_PAIR, declared),))
    else:
        known = KNOWN[canonical]
        _refuse_other(canonical, root)
    for folder in _candidates(root, known.folders):
        for layout in known.layouts:
            images, labels = (_find(folder, pattern.format(split=split)) for pattern in (layout.images, layout.labels))
            if images and labels:
                if layout.numbered:
                    names = {key: key.partition("_")[2] for key in labels}
                    images = {key: images[name] for key, name in names.items() if name in images}
                if layout.only and any(key.startswith(layout.only) for key in images):
                    images = {key: file for key, file in images.items() if key.startswith(layout.only)}
                pairs = _pair(name, images, labels)
                return EvaluationSet(canonical or PAIR_NAME, folder, pairs, layout.ids, known.track)
    expected = " or ".join(f"{layout.images} with {layout.labels}".format(split=split) for layout in known.layouts)
    hint = "" if canonical else f" (or name one of the known sets: {', '.join(KNOWN)})"
    raise PebalError(
        f"{root} does not contain {name}. It must have images {expected}, directly or one folder down{hint}."
    )


def open_listed(name: str, path: str | Path, classes: ClassList) -> dict[str, EvaluationSet]:
    """Open a folder pair whose label files hold the ids of a class list.

    Args:
        name: name for the set; it ends with ``-SPLIT`` if ``images/`` and ``labels/`` hold folders of splits.
        path: the folder that holds ``images/`` and ``labels/``.
        classes: the class list.

    Returns:
        Evaluation sets by name. The set of classes is called `name`; if the list has ids of anomalies, there is also a
        set of anomalies called `name` + ``-anomalies``.

    Raises:
        PebalError: as for `open_set`.

    Examples:
        >>> import tempfile
        >>> from pebal_core.class_list import KnownClass
        >>> from pebal_core.files import write_atomically
        >>> hall = ClassList("hall", (KnownClass("floor", (1, 2), (90, 90, 90)),), anomaly=(30,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for file in ("images/0.jpg", "labels/0.png"):
        ...         write_atomically(Path(folder, file), b"")
        ...     found = open_listed("hall", folder, hall)
        >>> {name: one.ids.table[[1, 2, 30]].tolist() for name, one in found.items()}
        {'hall': [0, 0, 255], 'hall-anomalies': [0, 0, 1]}
    """
    root, split = user_path(path), name.rpartition("-")[2]
    scenes = open_scenes("folders", root, split, classes)
    table = classes.table
    known = frozenset(classes.known_ids)
    void = np.where(table == OUTLIER, VOID, table).astype(np.uint8)
    sets = {name: EvaluationSet(PAIR_NAME, root, scenes.pairs, Ids(void, known, classes.names))}
    if classes.anomaly:
        inliers = np.where(table == VOID, VOID, np.where(table == OUTLIER, ANOMALY, INLIER)).astype(np.uint8)
        sets[f"{name}-anomalies"] = EvaluationSet(PAIR_NAME, root, scenes.pairs, Ids(inliers, known))
    return sets


def is_known(name: str) -> bool:
    """Whether there is a known set of this name.

    Examples:
        >>> is_known("road-anomaly-21"), is_known("my_drives")
        (True, False)
    """
    return _find_name(name)[0] is not None


def _find_name(name: str) -> tuple[str | None, str]:
    """The canonical name (None if the name is unknown) and the split."""
    stem, _, split = name.rpartition("-")
    for canonical, known in KNOWN.items():
        if _plain(name) == _plain(canonical):
            return canonical, known.split
        if known.split and _plain(stem) == _plain(canonical):
            return canonical, split
    return None, ""


def _refuse_other(canonical: str, root: Path) -> None:
    """Refuse a folder that carries the name of another set, which may have the same layout."""
    if root.name.lower() in KNOWN[canonical].folders:
        return
    others = [name for name, known in KNOWN.items() if root.name.lower() in known.folders]
    if others:
        raise PebalError(
            f"The name of the folder {root} is one of {others[0]}, not of {canonical}. Name that set, or the folder "
            f"of {canonical}."
        )


def _candidates(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """The folder itself and those in it that have one of the names."""
    yield root
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and folder.name.lower() in names:
            yield folder


def _find(folder: Path, pattern: str) -> dict[str, Path]:
    """Files by the text that the last ``*`` of the pattern matches.

    Raises:
        PebalError: two files have the same name.
    """
    head, tail = pattern.rsplit("*", 1)
    found: dict[str, Path] = {}
    for file in sorted(folder.glob(f"{pattern}.*")):
        if file.suffix.lower() not in IMAGE_SUFFIXES or file.name.startswith(".") or not file.is_file():
            continue
        key = _key(file, head, tail)
        if key in found:
            raise PebalError(f"{found[key]} and {file} have the same name; remove one of them.")
        found[key] = file
    return found


def _key(file: Path, head: str, tail: str) -> str:
    if "/" in tail:  # the folder is named after the image
        return file.parent.name.removesuffix(tail.split("/")[0])
    return file.stem.removesuffix(tail)


def _pair(name: str, images: dict[str, Path], labels: dict[str, Path]) -> Pairs:
    for what, some, others, lacking in (
        ("images", images, labels, "labels"),
        ("label files", labels, images, "image"),
    ):
        lonely = [some[key] for key in some if key not in others]
        if lonely:
            where = f", whose {lacking} should be in {next(iter(others.values())).parent}" if others else ""
            raise PebalError(
                f"{len(lonely)} of {len(some)} {what} of {name} have no {lacking}; the first is {lonely[0]}{where}."
            )
    return tuple((images[key], labels[key]) for key in sorted(images))


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _list(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))
