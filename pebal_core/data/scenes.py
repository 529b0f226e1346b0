"""Road scenes with class labels: files found, paired and checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import PebalError
from ..labels import CAMVID_TO_TRAIN_ID, LABEL_ID_TO_TRAIN_ID

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: Path) -> np.ndarray:
    """H×W×3 uint8 RGB.

    Raises:
        PebalError: the file is missing or is not an image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise PebalError(f"{path} cannot be read as an image; replace or remove it.")
    return image


def read_ids(path: Path) -> np.ndarray:
    """H×W uint8 of a single-channel label image, values as stored.

    Raises:
        PebalError: the file is missing, unreadable or not single-channel 8-bit.
    """
    ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
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


def camvid(root: str | Path, split: str) -> SceneSet:
    """CamVid in SegNet's layout: ``{split}/*`` beside ``{split}annot/*.png``."""
    folder = Path(root) / split
    pairs = [(image, folder.with_name(f"{split}annot") / f"{image.stem}.png") for image in list_images(folder)]
    _require_labels(pairs)
    return SceneSet(f"CamVid {split}", tuple(pairs), CAMVID_TO_TRAIN_ID)


def cityscapes(root: str | Path, split: str) -> SceneSet:
    """Cityscapes in its official layout, labelIds mapped to trainIds in memory."""
    images = Path(root) / "leftImg8bit" / split
    if not images.is_dir():
        raise PebalError(f"The folder {images} does not exist; name the folder that holds leftImg8bit/ and gtFine/.")
    suffix = "_leftImg8bit.png"
    pairs = []
    for image in sorted(images.glob(f"*/*{suffix}")):
        labels = image.name.removesuffix(suffix) + "_gtFine_labelIds.png"
        pairs.append((image, Path(root) / "gtFine" / split / image.parent.name / labels))
    if not pairs:
        raise PebalError(f"The folder {images} holds no */*{suffix}.")
    _require_labels(pairs)
    return SceneSet(f"Cityscapes {split}", tuple(pairs), LABEL_ID_TO_TRAIN_ID)


SCENE_SETS = {"camvid": camvid, "cityscapes": cityscapes}


def open_scenes(layout: str, root: str | Path, split: str) -> SceneSet:
    """The scenes of a data set by the name of its layout.

    Raises:
        PebalError: unknown layout, or a folder that does not hold it.
    """
    if layout not in SCENE_SETS:
        raise PebalError(f"There is no layout '{layout}'; choose one of: {', '.join(sorted(SCENE_SETS))}.")
    return SCENE_SETS[layout](root, split)


def _require_labels(pairs: Sequence[tuple[Path, Path]]) -> None:
    missing = [(image, labels) for image, labels in pairs if not labels.is_file()]
    if missing:
        image, labels = missing[0]
        raise PebalError(f"{len(missing)} of {len(pairs)} images have no labels; the first is {image}: no {labels}.")
