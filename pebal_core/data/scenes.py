"""Road scenes with class labels: files found, paired and checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from ..errors import PebalError
from ..files import read_pixels
from ..labels import CAMVID_TO_TRAIN_ID, LABEL_ID_TO_TRAIN_ID, VOID

SKY = 10
ANY_CLASS = 209
"""The group of `partial_labels` that holds every class."""
CHECKED = 8
"""Scenes of a set that are read before training starts."""

TRAIN_IDS: np.ndarray = np.where(np.arange(256) < 19, np.arange(256), VOID).astype(np.uint8)
"""Files that hold trainIds already."""

IDD_LITE_TO_TRAIN_ID: np.ndarray = np.full(256, VOID, np.uint8)
"""IDD Lite's 7 coarse classes → trainIds and groups of `partial_labels`; living things include animals: void."""
IDD_LITE_TO_TRAIN_ID[[0, 1, 3, 4, 5, 6]] = 0, 200, 201, 202, 203, SKY

CAMVID_TO_GROUPS: np.ndarray = CAMVID_TO_TRAIN_ID.copy()
"""CamVid's 11 classes → trainIds, and groups where one of them covers several trainIds."""
for _train_id, _group in {13: 204, 12: 205, 7: 206, 8: 207, 2: 208}.items():
    CAMVID_TO_GROUPS[_train_id == CAMVID_TO_TRAIN_ID] = _group

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: Path) -> np.ndarray:
    """H×W×3 uint8 RGB.

    Raises:
        PebalError: the file is missing, cut short or not an image.
    """
    image = read_pixels(path, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise PebalError(f"{path} cannot be read as an image; replace or remove it.")
    return image


def read_ids(path: Path) -> np.ndarray:
    """H×W uint8 of a single-channel label image, values as stored.

    Raises:
        PebalError: the file is missing, unreadable or not single-channel 8-bit.
    """
    ids = read_pixels(path, cv2.IMREAD_UNCHANGED)
    if ids is None:
        raise PebalError(f"{path} cannot be read as a label image; replace or remove it.")
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise PebalError(f"{path} is not a single-channel 8-bit label image (it holds {ids.shape}, {ids.dtype}).")
    return ids


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder, sorted by name.

    Raises:
        PebalError: the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise PebalError(f"The folder {folder} does not exist; name the folder that holds the images.")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise PebalError(f"The folder {folder} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return files


@dataclass(frozen=True)
class SceneSet:
    """Images paired with label files, and the table that turns their ids into trainIds."""

    name: str
    pairs: tuple[tuple[Path, Path], ...]
    id_table: np.ndarray
    known_ids: tuple[int, ...] = tuple(range(256))
    """Ids that may occur in the label files."""

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image H×W×3 uint8 RGB and labels H×W uint8 trainIds (255 = void).

        Raises:
            PebalError: unreadable file, or image and labels of different size.
        """
        image_path, label_path = self.pairs[index]
        image, ids = read_image(image_path), read_ids(label_path)
        if image.shape[:2] != ids.shape:
            raise PebalError(f"{image_path} is {image.shape[:2]} but its labels {label_path} are {ids.shape}.")
        return image, self.id_table[ids]


@dataclass(frozen=True)
class UnlabelledScenes(SceneSet):
    """Footage that shows nothing but known things: each pixel is what the network takes it for."""

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image H×W×3 uint8 RGB and `ANY_CLASS` H×W uint8."""
        image = read_image(self.pairs[index][0])
        return image, np.full(image.shape[:2], ANY_CLASS, np.uint8)


def unlabelled(root: str | Path, split: str) -> SceneSet:
    """A folder of images without labels; it has no splits."""
    images = list_images(Path(root))
    return UnlabelledScenes(f"{Path(root).name} without labels", tuple((image, image) for image in images), TRAIN_IDS)


def camvid(root: str | Path, split: str) -> SceneSet:
    """CamVid in SegNet's layout: ``{split}/*`` beside ``{split}annot/*.png``."""
    folder = Path(root) / split
    pairs = [(image, folder.with_name(f"{split}annot") / f"{image.stem}.png") for image in list_images(folder)]
    _require_labels(pairs)
    return SceneSet(f"CamVid {split}", tuple(pairs), CAMVID_TO_TRAIN_ID, tuple(range(12)))


def camvid_groups(root: str | Path, split: str) -> SceneSet:
    """CamVid for a network that knows more classes than it: "car" may be a truck, and so on (see `partial_labels`)."""
    return replace(camvid(root, split), id_table=CAMVID_TO_GROUPS)


def cityscapes(root: str | Path, split: str) -> SceneSet:
    """Cityscapes in its official layout, labelIds mapped to trainIds in memory."""
    pairs = _find_pairs(
        Path(root) / "leftImg8bit" / split,
        "*/*_leftImg8bit.png",
        lambda image, stem: Path(root) / "gtFine" / split / image.parent.name / f"{stem}_gtFine_labelIds.png",
    )
    return SceneSet(f"Cityscapes {split}", pairs, LABEL_ID_TO_TRAIN_ID, tuple(range(34)))


def cityscapes_train_ids(root: str | Path, split: str) -> SceneSet:
    """Cityscapes in its official layout with ``_labelTrainIds.png``, as cityscapesscripts writes them."""
    pairs = _find_pairs(
        Path(root) / "leftImg8bit" / split,
        "*/*_leftImg8bit.png",
        lambda image, stem: Path(root) / "gtFine" / split / image.parent.name / f"{stem}_gtFine_labelTrainIds.png",
    )
    return SceneSet(f"Cityscapes {split}", pairs, TRAIN_IDS, (*range(19), VOID))


def cityscapes_flat(root: str | Path, split: str) -> SceneSet:
    """Cityscapes as the reference lays it out, trainIds without folders per city.

    ``images/city_gt_fine/{split}/*_leftImg8bit.png`` and ``annotation/city_gt_fine/{split}/*_gtFine.png``.
    """
    pairs = _find_pairs(
        Path(root) / "images" / "city_gt_fine" / split,
        "*_leftImg8bit.png",
        lambda image, stem: Path(root) / "annotation" / "city_gt_fine" / split / f"{stem}_gtFine.png",
    )
    return SceneSet(f"Cityscapes {split}", pairs, TRAIN_IDS, (*range(19), VOID))


def idd_lite(root: str | Path, split: str) -> SceneSet:
    """India Driving Dataset Lite: coarse classes, which become groups of trainIds (see `partial_labels`)."""
    pairs = _find_pairs(
        Path(root) / "leftImg8bit" / split,
        "*/*_image.jpg",
        lambda image, stem: Path(root) / "gtFine" / split / image.parent.name / f"{stem}_label.png",
    )
    return SceneSet(f"IDD Lite {split}", pairs, IDD_LITE_TO_TRAIN_ID, (*range(7), VOID))


SCENE_SETS: dict[str, Callable[[str | Path, str], SceneSet]] = {
    "camvid": camvid,
    "camvid_groups": camvid_groups,
    "cityscapes": cityscapes,
    "cityscapes_train_ids": cityscapes_train_ids,
    "cityscapes_flat": cityscapes_flat,
    "idd_lite": idd_lite,
    "unlabelled": unlabelled,
}


def open_scenes(layout: str, root: str | Path, split: str) -> SceneSet:
    """The scenes of a data set by the name of its layout.

    Raises:
        PebalError: unknown layout, or a folder that does not hold it.
    """
    if layout not in SCENE_SETS:
        raise PebalError(f"There is no layout '{layout}'; choose one of: {', '.join(sorted(SCENE_SETS))}.")
    return SCENE_SETS[layout](root, split)


def check_scenes(scenes: SceneSet) -> None:
    """Read some scenes spread over the set, and look for the mistakes that training would hide.

    Raises:
        PebalError: ids that the layout does not have (such as labelIds where trainIds are expected), a set without any
            labelled pixel, skies that are redder than blue (red and blue swapped), or a file that cannot be read.
    """
    picked = sorted({round(i) for i in np.linspace(0, len(scenes) - 1, CHECKED)})
    if isinstance(scenes, UnlabelledScenes):
        for index in picked:
            scenes.load(index)
        return
    sky, labelled = [], 0
    for index in picked:
        image, labels = scenes.load(index)
        path = scenes.pairs[index][1]
        ids = np.unique(read_ids(path))
        if strange := sorted(set(ids.tolist()) - set(scenes.known_ids)):
            raise PebalError(
                f"{path} holds the label {strange[0]}, which {scenes.name} in this layout does not have: "
                f"{_hint(scenes, ids)}."
            )
        labelled += int(np.count_nonzero(labels != VOID))
        if np.count_nonzero(labels == SKY) > 500:
            sky.append(image[labels == SKY].mean(0))
    if not labelled:
        raise PebalError(
            f"None of the label files of {scenes.name} that were read holds a labelled pixel; the first is "
            f"{scenes.pairs[0][1]}."
        )
    if len(sky) >= 2 and (excess := float(np.mean([color[0] - color[2] for color in sky]))) > 10:
        raise PebalError(
            f"Red and blue of {scenes.name} seem swapped: its skies are redder than blue (by {excess:.0f} of 255; the "
            f"first image is {scenes.pairs[0][0]}). Write the images again as RGB, or set data.check to false."
        )


def _hint(scenes: SceneSet, ids: np.ndarray) -> str:
    if scenes.id_table is TRAIN_IDS and ids.max() <= 33:
        return "it looks like labelIds where trainIds are expected; use the official layout or convert the labels"
    if scenes.id_table is LABEL_ID_TO_TRAIN_ID and set(ids.tolist()) <= {*range(19), VOID}:
        return "it looks like trainIds where labelIds are expected; choose the layout cityscapes_train_ids"
    return "choose the layout that belongs to these files"


def _find_pairs(images: Path, pattern: str, labels_of: Callable[[Path, str], Path]) -> tuple[tuple[Path, Path], ...]:
    """Images of a folder, sorted, each with its label file, which is named from the image and its stem."""
    if not images.is_dir():
        raise PebalError(f"The folder {images} does not exist; check the data folder and its layout.")
    suffix = pattern.rpartition("*")[2]
    pairs = tuple((image, labels_of(image, image.name.removesuffix(suffix))) for image in sorted(images.glob(pattern)))
    if not pairs:
        raise PebalError(f"The folder {images} holds no {pattern}.")
    _require_labels(pairs)
    return pairs


def _require_labels(pairs: Sequence[tuple[Path, Path]]) -> None:
    missing = [(image, labels) for image, labels in pairs if not labels.is_file()]
    if missing:
        image, labels = missing[0]
        raise PebalError(f"{len(missing)} of {len(pairs)} images have no labels; the first is {image}: no {labels}.")
