"""Finds road scenes with class labels, and pairs and checks their files before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from ..class_list import ClassList, cityscapes_classes, read_mapping
from ..errors import PebalError
from ..files import read_pixels
from ..labels import (
    ANYTHING,
    CAMVID_TO_GROUPS,
    CAMVID_TO_TRAIN_ID,
    FIRST_GROUP,
    IDD_LITE_TO_TRAIN_ID,
    LABEL_ID_TO_TRAIN_ID,
    OUTLIER,
    TRAIN_IDS,
    VOID,
)

CHECKED = 8
"""Number of scenes of a set that are read and checked before training starts."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: Path) -> np.ndarray:
    """Read an image as H×W×3 uint8 RGB.

    Raises:
        PebalError: the file is missing, truncated or not an image.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "red.png")
        ...     _ = cv2.imwrite(str(path), np.full((1, 1, 3), (0, 0, 255), np.uint8))  # OpenCV takes BGR
        ...     read_image(path).tolist()
        [[[255, 0, 0]]]
    """
    image = read_pixels(path, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise PebalError(f"{path} cannot be read as an image; replace or remove it.")
    return image


def read_ids(path: Path) -> np.ndarray:
    """Read a single-channel label image as H×W uint8, with the values as stored.

    Raises:
        PebalError: the file is missing, unreadable or not single-channel 8-bit.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "0.png")
        ...     _ = cv2.imwrite(str(path), np.array([[0, 7, 255]], np.uint8))
        ...     read_ids(path).tolist()
        [[0, 7, 255]]
    """
    ids = read_pixels(path, cv2.IMREAD_UNCHANGED)
    if ids is None:
        raise PebalError(f"{path} cannot be read as a label image; replace or remove it.")
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise PebalError(f"{path} is not a single-channel 8-bit label image (its array is {ids.shape}, {ids.dtype}).")
    return ids


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder, sorted by name.

    Raises:
        PebalError: the folder is missing or holds no image.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("1.png", "0.jpg", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     [path.name for path in list_images(Path(folder))]
        ['0.jpg', '1.png']
    """
    if not folder.is_dir():
        raise PebalError(f"The folder {folder} does not exist; name the folder that contains the images.")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise PebalError(f"The folder {folder} contains no images ({', '.join(IMAGE_SUFFIXES)}).")
    return files


@dataclass(frozen=True)
class SceneSet:
    """Images paired with label files, and the table that maps their ids to class numbers.

    Examples:
        >>> len(SceneSet("hall", ((Path("0.jpg"), Path("0.png")),), np.arange(256, dtype=np.uint8)))
        1
    """

    name: str
    pairs: tuple[tuple[Path, Path], ...]
    """Image file and label file of each scene."""
    id_table: np.ndarray
    """Lookup table, 256 uint8, from an id to a class number."""
    known_ids: tuple[int, ...] = tuple(range(256))
    """Ids that may occur in the label files."""
    classes: ClassList = field(default_factory=cityscapes_classes)
    """The classes to which `id_table` maps."""

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read an image (H×W×3 uint8 RGB) and its labels (H×W uint8 class numbers, 255 = void).

        Raises:
            PebalError: a file is unreadable, or image and labels differ in size.
        """
        image_path, label_path = self.pairs[index]
        image, ids = read_image(image_path), read_ids(label_path)
        if image.shape[:2] != ids.shape:
            raise PebalError(f"{image_path} is {image.shape[:2]} but its labels {label_path} are {ids.shape}.")
        return image, self.id_table[ids]


@dataclass(frozen=True)
class UnlabelledScenes(SceneSet):
    """Unlabelled footage that shows known classes only; training uses the class that the network predicts."""

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read an image (H×W×3 uint8 RGB); its labels are `ANYTHING` everywhere (H×W uint8)."""
        image = read_image(self.pairs[index][0])
        return image, np.full(image.shape[:2], ANYTHING, np.uint8)


def _unlabelled(root: str | Path, split: str) -> SceneSet:
    """A folder of images without labels; it has no splits."""
    images = list_images(Path(root))
    return UnlabelledScenes(f"{Path(root).name} without labels", tuple((image, image) for image in images), TRAIN_IDS)


def _camvid(root: str | Path, split: str) -> SceneSet:
    """CamVid in SegNet's layout: ``{split}/*`` beside ``{split}annot/*.png``."""
    folder = Path(root) / split
    pairs = [(image, folder.with_name(f"{split}annot") / f"{image.stem}.png") for image in list_images(folder)]
    _require_labels(pairs)
    return SceneSet(f"CamVid {split}", tuple(pairs), CAMVID_TO_TRAIN_ID, tuple(range(12)))


def _camvid_groups(root: str | Path, split: str) -> SceneSet:
    """CamVid for a network with finer classes; its "car", for example, may be a truck (see `partial_labels`)."""
    return replace(_camvid(root, split), id_table=CAMVID_TO_GROUPS)


def _cityscapes(root: str | Path, split: str) -> SceneSet:
    """Cityscapes in its official layout; labelIds are mapped to trainIds on reading."""
    pairs = _find_pairs(
        Path(root) / "leftImg8bit" / split,
        "*/*_leftImg8bit.png",
        lambda image, stem: Path(root) / "gtFine" / split / image.parent.name / f"{stem}_gtFine_labelIds.png",
    )
    return SceneSet(f"Cityscapes {split}", pairs, LABEL_ID_TO_TRAIN_ID, tuple(range(34)))


def _cityscapes_train_ids(root: str | Path, split: str) -> SceneSet:
    """Cityscapes in its official layout with ``_labelTrainIds.png``, as cityscapesscripts writes them."""
    pairs = _find_pairs(
        Path(root) / "leftImg8bit" / split,
        "*/*_leftImg8bit.png",
        lambda image, stem: Path(root) / "gtFine" / split / image.parent.name / f"{stem}_gtFine_labelTrainIds.png",
    )
    return SceneSet(f"Cityscapes {split}", pairs, TRAIN_IDS, (*range(19), VOID))


def _cityscapes_flat(root: str | Path, split: str) -> SceneSet:
    """Cityscapes in the layout of the reference, with trainIds and without a folder per city.

    ``images/city_gt_fine/{split}/*_leftImg8bit.png`` and ``annotation/city_gt_fine/{split}/*_gtFine.png``.
    """
    pairs = _find_pairs(
        Path(root) / "images" / "city_gt_fine" / split,
        "*_leftImg8bit.png",
        lambda image, stem: Path(root) / "annotation" / "city_gt_fine" / split / f"{stem}_gtFine.png",
    )
    return SceneSet(f"Cityscapes {split}", pairs, TRAIN_IDS, (*range(19), VOID))


def _idd_lite(root: str | Path, split: str) -> SceneSet:
    """India Driving Dataset Lite, whose coarse classes become groups of trainIds (see `partial_labels`)."""
    pairs = _find_pairs(
        Path(root) / "leftImg8bit" / split,
        "*/*_image.jpg",
        lambda image, stem: Path(root) / "gtFine" / split / image.parent.name / f"{stem}_label.png",
    )
    return SceneSet(f"IDD Lite {split}", pairs, IDD_LITE_TO_TRAIN_ID, (*range(7), VOID))


def _folders(root: str | Path, split: str, classes: ClassList) -> SceneSet:
    """Any images in ``images/`` with label files of the same names in ``labels/``, in any lossless format.

    Args:
        root: the folder that holds both.
        split: name of a subfolder of both, if there is one.
        classes: meaning of the values in the label files.

    Raises:
        PebalError: a folder is missing, an image has no labels, or two label files have the same name.
    """
    images, labels = Path(root) / "images", Path(root) / "labels"
    if (images / split).is_dir():
        images, labels = images / split, labels / split
    found = list_images(images)
    by_stem: dict[str, Path] = {}
    for file in list_images(labels):
        if file.stem in by_stem:
            raise PebalError(f"{by_stem[file.stem]} and {file} have the same name; remove one of them.")
        by_stem[file.stem] = file
    pairs = [(image, by_stem.get(image.stem, labels / f"{image.stem}.png")) for image in found]
    _require_labels(pairs)
    name = f"{Path(root).name} {split}" if images.name == split else Path(root).name
    return SceneSet(name, tuple(pairs), classes.table, classes.known_ids, classes)


SCENE_SETS: dict[str, Callable[[str | Path, str], SceneSet]] = {
    "camvid": _camvid,
    "camvid_groups": _camvid_groups,
    "cityscapes": _cityscapes,
    "cityscapes_train_ids": _cityscapes_train_ids,
    "cityscapes_flat": _cityscapes_flat,
    "idd_lite": _idd_lite,
    "unlabelled": _unlabelled,
}
"""Functions that open a data set, by the name of its layout; `register_layout` adds to them."""


def register_layout(name: str, open_set: Callable[[str | Path, str], SceneSet]) -> None:
    """Register your own layout of labelled data under a name.

    Args:
        name: name for configurations.
        open_set: function of the data folder and the split that returns the scenes; it raises `PebalError` if it finds
            none.

    Examples:
        >>> def one_scene(root, split):
        ...     pair = (Path(root) / "image.png", Path(root) / "labels.png")
        ...     return SceneSet("one scene", (pair,), TRAIN_IDS)
        >>> register_layout("one_scene", one_scene)
        >>> len(open_scenes("one_scene", "data", "train"))
        1
    """
    SCENE_SETS[name] = open_set


def open_scenes(layout: str, root: str | Path, split: str, classes: ClassList | None = None) -> SceneSet:
    """Open a data set by the name of its layout.

    Args:
        layout: a name in `SCENE_SETS`, or ``folders``.
        root: the data folder.
        split: name of the split.
        classes: meaning of the values in the label files, for the layout ``folders`` only.

    Raises:
        PebalError: the layout is unknown, or the folder does not hold it.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "drive.jpg").touch()
        ...     scenes = open_scenes("unlabelled", folder, split="")
        >>> len(scenes), scenes.pairs[0][0].name
        (1, 'drive.jpg')
    """
    if layout == "folders":
        if classes is None:
            raise PebalError("The layout 'folders' needs a class list. Name one, or use a .yaml file.")
        return _folders(root, split, classes)
    if layout not in SCENE_SETS:
        known = ", ".join(sorted({*SCENE_SETS, "folders"}))
        raise PebalError(f"There is no layout '{layout}'; choose one of: {known}.")
    if classes is not None:
        raise PebalError(f"The layout {layout} has its own classes; leave the class list out, or use folders.")
    return SCENE_SETS[layout](root, split)


def as_classes(scenes: SceneSet, classes: ClassList, mapping: str | Path | None = None) -> SceneSet:
    """Convert the labels of a set to the classes of a network.

    Args:
        scenes: the set.
        classes: the classes of the network.
        mapping: file that maps the classes of the scenes to those of the network (see `read_mapping`).

    Raises:
        PebalError: the classes differ and there is no mapping, or group labels do not fit into 8 bits together with so
            many classes.

    Examples:
        >>> scenes = SceneSet("streets", (), LABEL_ID_TO_TRAIN_ID)
        >>> as_classes(scenes, cityscapes_classes()) is scenes
        True
    """
    if mapping is not None:
        if ((scenes.id_table >= FIRST_GROUP) & (scenes.id_table < OUTLIER)).any():
            raise PebalError(f"{scenes.name} has labels of several classes, which cannot be mapped; leave mapping out.")
        table = read_mapping(mapping, scenes.classes, classes)
        scenes = replace(scenes, id_table=table[scenes.id_table], classes=classes)
    elif scenes.classes.names != classes.names and not isinstance(scenes, UnlabelledScenes):
        theirs, ours = scenes.classes.names, classes.names
        raise PebalError(
            f"{scenes.name} is labelled with the {len(theirs)} classes {_few(theirs)} but the network has the "
            f"{len(ours)} classes {_few(ours)}. Set 'mapping' to a file that maps the former to the latter."
        )
    marks = scenes.id_table[(scenes.id_table >= FIRST_GROUP) & (scenes.id_table < VOID)]
    if len(classes.names) > FIRST_GROUP and (marks.size or isinstance(scenes, UnlabelledScenes)):
        raise PebalError(
            f"{scenes.name} has labels of several classes or labelled anomalies, for which 8 bits leave room next to "
            f"at most {FIRST_GROUP} classes, but the network has {len(classes.names)}."
        )
    return scenes


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)


def check_scenes(scenes: SceneSet) -> None:
    """Read some scenes spread over the set, and look for mistakes that training would not reveal.

    Raises:
        PebalError: the labels hold ids that the layout does not have (such as labelIds where trainIds are expected), no
            pixel is labelled, skies are more red than blue (swapped channels), or a file cannot be read.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "0.png")
        ...     _ = cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))
        ...     check_scenes(SceneSet("streets", ((path, path),), TRAIN_IDS, tuple(range(19))))
    """
    picked = sorted({round(i) for i in np.linspace(0, len(scenes) - 1, CHECKED)})
    if isinstance(scenes, UnlabelledScenes):
        for index in picked:
            scenes.load(index)
        return
    sky, labelled = [], 0
    names = [name.lower() for name in scenes.classes.names]
    sky_label = names.index("sky") if "sky" in names else None
    for index in picked:
        image, labels = scenes.load(index)
        path = scenes.pairs[index][1]
        ids = np.unique(read_ids(path))
        if strange := sorted(set(ids.tolist()) - set(scenes.known_ids)):
            pixels = int(np.count_nonzero(read_ids(path) == strange[0]))
            raise PebalError(
                f"{path} contains the label {strange[0]} ({pixels} pixels), which {scenes.name} in this layout does "
                f"not have: {_hint(scenes, ids)}."
            )
        labelled += int(np.count_nonzero(labels < OUTLIER))
        if sky_label is not None and np.count_nonzero(labels == sky_label) > 500:
            sky.append(image[labels == sky_label].mean(0))
    if not labelled:
        raise PebalError(
            f"None of the label files of {scenes.name} that were read contains a labelled pixel; the first is "
            f"{scenes.pairs[0][1]}."
        )
    if len(sky) >= 2 and (excess := float(np.mean([color[0] - color[2] for color in sky]))) > 10:
        raise PebalError(
            f"Red and blue of {scenes.name} seem to be swapped, because its skies are more red than blue (by "
            f"{excess:.0f} of 255; the first image is {scenes.pairs[0][0]}). Write the images again as RGB, or set "
            "data.check to false."
        )


def _hint(scenes: SceneSet, ids: np.ndarray) -> str:
    if scenes.id_table is TRAIN_IDS and ids.max() <= 33:
        return "it looks like labelIds where trainIds are expected; use the official layout or convert the labels"
    if scenes.id_table is LABEL_ID_TO_TRAIN_ID and set(ids.tolist()) <= {*range(19), VOID}:
        return "it looks like trainIds where labelIds are expected; choose the layout cityscapes_train_ids"
    if scenes.classes != cityscapes_classes():
        return "add it to a class or to 'void' in the class list"
    return "choose the layout that belongs to these files"


def _find_pairs(images: Path, pattern: str, labels_of: Callable[[Path, str], Path]) -> tuple[tuple[Path, Path], ...]:
    """Pair the images of a folder, sorted, with the label files that `labels_of` derives from image and stem."""
    if not images.is_dir():
        raise PebalError(f"The folder {images} does not exist; check the data folder and its layout.")
    suffix = pattern.rpartition("*")[2]
    pairs = tuple((image, labels_of(image, image.name.removesuffix(suffix))) for image in sorted(images.glob(pattern)))
    if not pairs:
        raise PebalError(f"The folder {images} contains no {pattern}.")
    _require_labels(pairs)
    return pairs


def _require_labels(pairs: Sequence[tuple[Path, Path]]) -> None:
    missing = [(image, labels) for image, labels in pairs if not labels.is_file()]
    if missing:
        image, labels = missing[0]
        raise PebalError(f"{len(missing)} of {len(pairs)} images have no labels; the first is {image}: no {labels}.")
