"""Scenes, a video, and small sets in the layouts of CamVid and COCO."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from pebal_core.class_list import ClassList

CATEGORIES = ("person", "car", "train", "dog", "laptop", "cup")


def write_camvid(root: Path, count: int = 3) -> Path:
    """A CamVid-like folder: train, val and test of a few small scenes."""
    for split in ("train", "val", "test"):
        for kind in (split, f"{split}annot"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            rng = np.random.default_rng(number)
            ids = np.full((48, 64), 3, np.uint8)
            ids[:20] = 0
            image = rng.integers(0, 40, (48, 64, 3), np.uint8) + np.where(ids == 3, 60, 160).astype(np.uint8)[..., None]
            cv2.imwrite(str(root / split / f"{number}.jpg"), image)
            cv2.imwrite(str(root / f"{split}annot" / f"{number}.png"), ids)
    return root


def road_scene(height: int = 120, width: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Buildings above, road below row 50."""
    labels = np.full((height, width), 2, np.uint8)
    labels[50:] = 0
    image = np.where(labels[..., None] == 0, 90, 150).astype(np.uint8).repeat(3, 2)
    return image, labels


def square(left: int, top: int, side: int) -> list[list[int]]:
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def write_coco(root: Path, images: Iterable[tuple[tuple[int, int], list[tuple[str, list[list[int]]]]]]) -> Path:
    """Images given as ((height, width), [(category, polygons), …])."""
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    document: dict[str, list[object]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)],
    }
    for number, ((height, width), objects) in enumerate(images):
        file = f"{9 - number:012d}.jpg"
        rng = np.random.default_rng(number)
        cv2.imwrite(str(root / "train2017" / file), rng.integers(0, 256, (height, width, 3), np.uint8))
        document["images"].append({"id": number + 1, "file_name": file, "height": height, "width": width})
        for category, polygons in objects:
            document["annotations"].append({
                "id": len(document["annotations"]) + 1,
                "image_id": number + 1,
                "category_id": CATEGORIES.index(category) + 1,
                "segmentation": polygons,
                "area": (polygons[0][2] - polygons[0][0]) ** 2,
                "iscrowd": 0,
            })  # fmt: skip
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    return root


def write_video(path: Path, frames: int = 30, codec: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(rng.integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    return path


def write_folders(root: Path, classes: ClassList, count: int, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Images in the colours of their classes under some noise; the first class fills the lower half."""
    rng = np.random.default_rng(0)
    palette = np.array(classes.palette, np.uint8)
    for split in splits:
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            labels = cv2.resize(
                rng.integers(0, len(palette), (4, 6), dtype=np.uint8), (96, 64), interpolation=cv2.INTER_NEAREST
            )
            labels[32:] = 0
            ids = np.array([one.ids[0] for one in classes.classes], np.uint8)[labels]
            image = palette[labels].astype(int) + rng.integers(-20, 21, (64, 96, 3))
            if classes.anomaly:
                ids[40:50, 10:30], image[40:50, 10:30] = classes.anomaly[0], (0, 255, 0)
            cv2.imwrite(str(root / "images" / split / f"{number}.jpg"), image.clip(0, 255).astype(np.uint8)[..., ::-1])
            cv2.imwrite(str(root / "labels" / split / f"{number}.png"), ids)
    return root
