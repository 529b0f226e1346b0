"""Selects outlier objects from COCO once and stores their masks on disk.

    COCO_DIR/annotations/instances_{split}.json, COCO_DIR/{split}/*.jpg      the official layout, read by `prepare_coco`
    OUT/outliers.json, OUT/masks/*.png                                       its output, read by `OutlierSet`

A mask holds 0 for background and i for the i-th instance listed in ``outliers.json``; where instances overlap, the
smaller one lies on top.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from ..errors import PebalError
from ..files import write_atomically
from .scenes import read_ids, read_image

EXCLUDED_CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "bus", "truck", "traffic light", "stop sign",
)  # fmt: skip
"""COCO categories that are Cityscapes classes, as listed in the reference."""

ROAD_CATEGORIES = (*EXCLUDED_CATEGORIES, "train")
"""The same categories and trains, a Cityscapes class that the reference omits."""

KNOWN_LABELS = {
    "person": 11, "car": 13, "truck": 14, "bus": 15, "train": 16, "motorcycle": 17, "bicycle": 18,
}  # fmt: skip
"""COCO categories that are people and vehicles, and their Cityscapes trainIds."""

Rule = Literal["images", "instances", "known"]
"""Whether the excluded categories exclude whole images, as in the reference, or only the instances themselves; the rule
``known`` keeps only people and vehicles, which are pasted as known objects."""

MAX_INSTANCES = 254
INDEX = "outliers.json"


@dataclass(frozen=True)
class Instance:
    """One object: its number in the mask, category, and bounding box (left, top, width, height) in pixels."""

    number: int
    category: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class OutlierImage:
    """An image with the objects in it that count as outliers."""

    image_path: Path
    mask_path: Path
    instances: tuple[Instance, ...]

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Image H×W×3 uint8 RGB and instance numbers H×W uint8 (0 = none of `instances`).

        Raises:
            PebalError: a file is missing or unreadable, or the image has changed since it was prepared.
        """
        image, numbers = read_image(self.image_path), read_ids(self.mask_path)
        if image.shape[:2] != numbers.shape:
            raise PebalError(f"{self.image_path} has changed since it was prepared. Run 'pebal prepare-coco' again.")
        kept = np.zeros(256, np.uint8)
        for instance in self.instances:
            kept[instance.number] = instance.number
        return image, kept[numbers]


@dataclass(frozen=True)
class OutlierSet:
    """Outlier images in the order of their names.

    Examples:
        >>> dog, cup = Instance(1, "dog", (4, 4, 90, 60)), Instance(2, "cup", (80, 9, 20, 30))
        >>> both = OutlierImage(Path("both.jpg"), Path("both.png"), (dog, cup))
        >>> alone = OutlierImage(Path("alone.jpg"), Path("alone.png"), (dog,))
        >>> train, validation = OutlierSet("mine", (both, alone)).hold_back(["cup"])
        >>> [image.image_path.name for image in train.images], validation.images[0].instances[0].category
        (['alone.jpg'], 'cup')
    """

    name: str
    images: tuple[OutlierImage, ...]

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def open(cls, folder: str | Path) -> OutlierSet:
        """Open a folder that `prepare_coco` wrote.

        Raises:
            PebalError: the folder holds no prepared outliers, or they are damaged.
        """
        path = Path(folder) / INDEX
        if not path.is_file():
            raise PebalError(
                f"There are no prepared outliers, because {path} is missing. Run 'pebal prepare-coco COCO {folder}'."
            )
        try:
            index = json.loads(path.read_text())
            root = Path(index["image_folder"])
            images = tuple(
                OutlierImage(
                    root / entry["file"],
                    path.parent / "masks" / f"{Path(entry['file']).stem}.png",
                    tuple(Instance(i["number"], i["category"], tuple(i["box"])) for i in entry["instances"]),
                )
                for entry in index["images"]
            )
            name = f"COCO {index['split']} by {index['rule']}"
        except (ValueError, TypeError, KeyError) as error:
            raise PebalError(f"{path} is damaged ({error!r}); run 'pebal prepare-coco' again.") from error
        if missing := [f for i in images for f in (i.image_path, i.mask_path) if not f.is_file()]:
            raise PebalError(f"{len(missing)} files named in {path} are missing; the first is {missing[0]}.")
        return cls(name, images)

    def select(self, keep: Callable[[Instance], bool], purpose: str) -> OutlierSet:
        """Keep only the instances for which `keep` is true, and the images that still have one.

        Args:
            keep: the condition.
            purpose: use of the instances, for the error message.

        Raises:
            PebalError: no instance is left.
        """
        images = [replace(image, instances=tuple(filter(keep, image.instances))) for image in self.images]
        kept = tuple(image for image in images if image.instances)
        if not kept:
            raise PebalError(
                f"No outlier of {self.name} is left for {purpose}; prepare more images or other categories."
            )
        return OutlierSet(self.name, kept)

    def hold_back(self, categories: Collection[str]) -> tuple[OutlierSet, OutlierSet]:
        """Split into a training set and a validation set with the held-back categories.

        An image that shows a held-back category is held back entirely, so that training never sees any part of a
        validation image.

        Raises:
            PebalError: one of the sets is empty.
        """
        held = {image.image_path for image in self.images if any(i.category in categories for i in image.instances)}
        train = OutlierSet(self.name, tuple(i for i in self.images if i.image_path not in held))
        rest = OutlierSet(self.name, tuple(i for i in self.images if i.image_path in held))
        return (
            train.select(lambda i: True, "training"),
            rest.select(lambda i: i.category in categories, f"validation with {', '.join(categories)}"),
        )


def prepare_coco(
    coco: str | Path,
    out: str | Path,
    *,
    split: str = "train2017",
    only: Collection[str] = (),
    min_side: int = 480,
    rule: Rule = "images",
    track: Callable[[list[Any]], Iterable[Any]] = iter,
) -> OutlierSet:
    """Write the outlier masks of a COCO split.

    Args:
        coco: folder with ``annotations/`` and the images.
        out: folder to write to.
        split: split of COCO.
        only: keep only these categories.
        min_side: images whose shorter side has fewer pixels are left out.
        rule: ``images`` leaves out every image that shows one of `EXCLUDED_CATEGORIES`, as the reference does;
            ``instances`` keeps such an image but only its instances of categories outside `ROAD_CATEGORIES`;
            ``known`` keeps only people and vehicles (`KNOWN_LABELS`).
        track: function that wraps the list of images, for example to show progress.

    Raises:
        PebalError: annotations or images are missing or damaged, a category is unknown, or no image is left.

    Examples:
        >>> import tempfile
        >>> outline = {"segmentation": [[9, 9, 9, 29, 29, 9]], "area": 200}
        >>> content = {
        ...     "images": [{"id": 1, "file_name": "1.jpg", "height": 64, "width": 96}],
        ...     "categories": [{"id": 7, "name": "dog"}],
        ...     "annotations": [{"id": 1, "image_id": 1, "category_id": 7, **outline}],
        ... }
        >>> with tempfile.TemporaryDirectory() as coco:
        ...     write_atomically(Path(coco, "annotations/instances_val.json"), json.dumps(content).encode())
        ...     write_atomically(Path(coco, "val/1.jpg"), b"")
        ...     prepare_coco(coco, Path(coco, "out"), split="val", min_side=60).images[0].instances
        (Instance(number=1, category='dog', box=(9, 9, 19, 19)),)
    """
    api = _open_annotations(Path(coco) / "annotations" / f"instances_{split}.json")
    names = {c["id"]: c["name"] for c in api.dataset["categories"]}
    if unknown := sorted(set(only) - set(names.values())):
        raise PebalError(f"COCO has no category '{unknown[0]}'; it has: {', '.join(sorted(names.values()))}.")
    images, entries = Path(coco) / split, []
    masks = Path(out) / "masks"
    for image_id in track(sorted(api.imgs)):
        image = api.imgs[image_id]
        annotations = api.imgToAnns[image_id]
        shown = {names[a["category_id"]] for a in annotations}
        if min(image["height"], image["width"]) < min_side or (rule == "images" and shown & set(EXCLUDED_CATEGORIES)):
            continue
        allowed = set(only or (KNOWN_LABELS if rule == "known" else names.values()))
        allowed = allowed & set(KNOWN_LABELS) if rule == "known" else allowed
        allowed = allowed - set(ROAD_CATEGORIES) if rule == "instances" else allowed
        kept = [a for a in annotations if names[a["category_id"]] in allowed]
        if not kept:
            continue
        if not (images / image["file_name"]).is_file():
            raise PebalError(f"{images / image['file_name']} is missing, but the annotations of {coco} list it.")
        numbers, instances = _instance_numbers(api, kept, names)
        if instances:
            _write_png(masks / f"{Path(image['file_name']).stem}.png", numbers)
            entries.append({"file": image["file_name"], "instances": instances})
    if not entries:
        raise PebalError(
            f"No outlier image is left of the {len(api.imgs)} images in {coco} (rule '{rule}', sides of at least "
            f"{min_side}{', only ' + ', '.join(sorted(only)) if only else ''}); lower --min-side or try --rule "
            "instances."
        )
    index = {
        "split": split,
        "rule": rule,
        "only": sorted(only),
        "min_side": min_side,
        "image_folder": str(images.resolve()),
        "images": sorted(entries, key=lambda entry: str(entry["file"])),
    }
    write_atomically(Path(out) / INDEX, json.dumps(index, indent=1).encode())
    return OutlierSet.open(out)


def _open_annotations(path: Path) -> Any:
    from pycocotools.coco import COCO

    if not path.is_file():
        raise PebalError(f"{path} is missing. Name the folder that contains COCO's annotations/ and its images.")
    try:
        with redirect_stdout(StringIO()):
            api = COCO(str(path))
        if not {"images", "annotations", "categories"} <= set(api.dataset):
            raise KeyError("images, annotations or categories")
        return api
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise PebalError(
            f"{path} is not a file of COCO's instance annotations ({error!r}); download it again."
        ) from error


def _instance_numbers(
    api: Any, annotations: list[dict[str, Any]], names: dict[int, str]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The map of instance numbers (H×W uint8), and the list of the instances that are at least partly visible."""
    ordered = sorted(annotations, key=lambda a: (-a["area"], a["id"]))[:MAX_INSTANCES]
    numbers = np.zeros(api.annToMask(ordered[0]).shape, np.uint8)
    for number, annotation in enumerate(ordered, 1):
        numbers[api.annToMask(annotation) > 0] = number
    instances = []
    for number, annotation in enumerate(ordered, 1):
        box = cv2.boundingRect((numbers == number).astype(np.uint8))
        if box[2]:
            instances.append({"number": number, "category": names[annotation["category_id"]], "box": list(box)})
    return numbers, instances


def _write_png(path: Path, image: np.ndarray) -> None:
    write_atomically(path, cv2.imencode(".png", image)[1].tobytes())
