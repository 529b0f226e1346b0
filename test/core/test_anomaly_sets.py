"""Evaluation sets: every layout, and what is refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pebal_core.data.anomaly_sets import PAIR_NAME, EvaluationSet, anomaly_ids, open_set
from pebal_core.data.scenes import read_image
from pebal_core.errors import PebalError
from pebal_core.objects import IgnoreMask

IDS = np.array([[0, 1, 2, 255], [0, 1, 2, 255]], np.uint8)


def write(path: Path, pixels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((2, 4, 3), 90, np.uint8) if pixels is None else pixels)
    return path


def write_layout(root: Path, image: str, labels: str, values: np.ndarray = IDS, names: Iterable[str] = "ab") -> Path:
    for name in names:
        write(root / image.format(name))
        write(root / labels.format(name), values)
    return root


def values_of(data: EvaluationSet, index: int = 0) -> list[int]:
    return data.load(index).target[0].tolist()


BINARY = np.array([[0, 1, 1, 255], [0, 0, 0, 255]], np.uint8)
LABEL_IDS = np.array([[7, 26, 4, 23], [7, 26, 4, 23]], np.uint8)
TRAIN_IDS = np.array([[0, 13, 255, 10], [0, 13, 255, 10]], np.uint8)
CAMVID = np.array([[3, 8, 11, 0], [3, 8, 11, 0]], np.uint8)

LAYOUTS = {
    "fishyscapes, reference": ("FishyscapesStatic", "original/{}.png", "labels/{}.png", IDS, [0, 1, 255, 255]),
    "fishyscapes, jpg": ("FishyscapesLostAndFound", "original/{}.jpg", "labels/{}.png", IDS, [0, 1, 255, 255]),
    "lost and found": (
        "LostAndFound",
        "leftImg8bit/test/street/{}_leftImg8bit.png",
        "gtCoarse/test/street/{}_gtCoarse_labelTrainIds.png",
        IDS,
        [255, 0, 1, 255],
    ),
    "road anomaly, id 2": ("RoadAnomaly", "original/{}.jpg", "labels/{}.png", IDS * (IDS != 1), [0, 0, 1, 255]),
    "road anomaly, id 1": ("RoadAnomaly", "original/{}.jpg", "labels/{}.png", BINARY, [0, 1, 1, 255]),
    "road anomaly, frames": (
        "RoadAnomaly",
        "frames/{}.webp",
        "frames/{}.labels/labels_semantic.png",
        BINARY,
        [0, 1, 1, 255],
    ),
    "road anomaly 21": (
        "RoadAnomaly21",
        "images/{}.jpg",
        "labels_masks/{}_labels_semantic.png",
        BINARY,
        [0, 1, 1, 255],
    ),
    "road obstacle 21": (
        "RoadObstacle21",
        "images/{}.webp",
        "labels_masks/{}_labels_semantic.png",
        BINARY,
        [0, 1, 1, 255],
    ),
    "cityscapes": (
        "Cityscapes",
        "leftImg8bit/val/city/{}_leftImg8bit.png",
        "gtFine/val/city/{}_gtFine_labelIds.png",
        LABEL_IDS,
        [0, 13, 255, 10],
    ),
    "cityscapes, train ids": (
        "Cityscapes-train",
        "leftImg8bit/train/city/{}_leftImg8bit.jpg",
        "gtFine/train/city/{}_gtFine_labelTrainIds.png",
        TRAIN_IDS,
        [0, 13, 255, 10],
    ),
    "cityscapes, flat": (
        "Cityscapes",
        "images/city_gt_fine/val/{}_leftImg8bit.png",
        "annotation/city_gt_fine/val/{}_gtFine.png",
        TRAIN_IDS,
        [0, 13, 255, 10],
    ),
    "camvid": ("CamVid", "test/{}.png", "testannot/{}.png", CAMVID, [0, 13, 255, 10]),
    "camvid, split": ("camvid-val", "val/{}.jpg", "valannot/{}.png", CAMVID, [0, 13, 255, 10]),
    "folder pair": ("anything", "images/{}.jpg", "labels/{}.png", BINARY, [0, 1, 1, 255]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_and_its_ids_are_understood(layout: str, tmp_path: Path) -> None:
    name, image, labels, values, expected = LAYOUTS[layout]
    data = open_set(name, write_layout(tmp_path / "here", image, labels, values))
    assert [pair[0].name for pair in data.pairs] == sorted(Path(image.format(frame)).name for frame in "ab")
    assert values_of(data) == expected
    assert data.load(1).image.shape == (2, 4, 3)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("FishyscapesStatic", "Static"), ("RoadAnomaly21", "dataset_AnomalyTrack"), ("RoadAnomaly", "RoadAnomaly")],
)
def test_the_folder_above_will_do(name: str, folder: str, tmp_path: Path) -> None:
    images, labels = ("images/{}.jpg", "labels_masks/{}_labels_semantic.png")
    if name != "RoadAnomaly21":
        images, labels = ("original/{}.jpg", "labels/{}.png")
    write_layout(tmp_path / folder, images, labels, BINARY)
    other = tmp_path / "dataset_ObstacleTrack"
    write_layout(other, "images/{}.jpg", "labels_masks/{}_labels_semantic.png", BINARY, "x")
    data = open_set(name.lower(), tmp_path)
    assert (data.name, len(data), data.path) == (name, 2, tmp_path / folder)


def test_the_labels_of_fishyscapes_choose_among_the_images_of_lost_and_found(tmp_path: Path) -> None:
    street = tmp_path / "leftImg8bit" / "test" / "04_Street"
    for frame in ("000030", "000040", "000050"):
        write(street / f"04_Street_8_000000_{frame}_leftImg8bit.png")
    for number, frame in (("0000", "000050"), ("0001", "000030")):
        write(tmp_path / "fishyscapes_lostandfound" / f"{number}_04_Street_8_000000_{frame}_labels.png", IDS)
    data = open_set("FishyscapesLostAndFound", tmp_path)
    assert [image.name[-22:-16] for image, _ in data.pairs] == ["000050", "000030"]
    assert [labels.name[:4] for _, labels in data.pairs] == ["0000", "0001"]
    assert values_of(data) == [0, 1, 255, 255]
    (street / "04_Street_8_000000_000030_leftImg8bit.png").unlink()
    with pytest.raises(PebalError, match=r"1 of 2 label files .* have no image; the first is .*0001_04_Street"):
        open_set("FishyscapesLostAndFound", tmp_path)
    (street / "04_Street_8_000000_000050_leftImg8bit.png").unlink()
    with pytest.raises(PebalError, match=r"2 of 2 label files .* have no image"):
        open_set("FishyscapesLostAndFound", tmp_path)


def test_a_folder_of_another_set_is_refused(tmp_path: Path) -> None:
    root = write_layout(
        tmp_path / "dataset_ObstacleTrack", "images/{}.jpg", "labels_masks/{}_labels_semantic.png", BINARY
    )
    with pytest.raises(PebalError, match="is one of RoadObstacle21, not of RoadAnomaly21"):
        open_set("RoadAnomaly21", root)


def test_test_images_without_labels_and_coloured_labels_are_passed_over(tmp_path: Path) -> None:
    """The official folders hold hidden test images and coloured label images beside what is evaluated."""
    names = ("validation0000", "validation0007")
    write_layout(tmp_path, "images/{}.jpg", "labels_masks/{}_labels_semantic.png", BINARY, names)
    write(tmp_path / "images/cow0001.jpg")
    write(tmp_path / "labels_masks/validation0000_labels_semantic_color.png")
    assert len(open_set("RoadAnomaly21", tmp_path)) == 2


def test_missing_and_mismatched_pairs_are_named(tmp_path: Path) -> None:
    root = write_layout(tmp_path, "images/{}.png", "labels/{}.png", BINARY, ("a", "b", "c"))
    (root / "labels/b.png").unlink()
    with pytest.raises(PebalError, match=r"1 of 3 images of mine have no labels; the first is .*b\.png"):
        open_set("mine", root)
    (root / "images/b.png").unlink()
    (root / "images/c.png").unlink()
    with pytest.raises(PebalError, match=r"1 of 2 label files of mine have no image; the first is .*labels/c\.png"):
        open_set("mine", root)
    write(root / "images/a.jpg")
    with pytest.raises(PebalError, match=r"a\.jpg and .*a\.png have the same name"):
        open_set("mine", root)


def test_empty_and_foreign_folders_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(PebalError, match="nowhere of RoadAnomaly does not exist"):
        open_set("RoadAnomaly", tmp_path / "nowhere")
    with pytest.raises(PebalError, match=r"does not contain RoadAnomaly. .*original/\* with labels/\*"):
        open_set("RoadAnomaly", tmp_path)
    with pytest.raises(PebalError, match="name one of the known sets: Cityscapes"):
        open_set("RoadAnomoly", tmp_path)


def test_undeclared_values_and_sizes_are_named(tmp_path: Path) -> None:
    root = write_layout(tmp_path, "images/{}.png", "labels/{}.png", IDS)
    with pytest.raises(PebalError, match=r"labels/a\.png contains the value 2; images\+labels declares only 0, 1, 255"):
        open_set("mine", root).load(0)
    declared = open_set("mine", root, anomaly_ids([0], [2], [1, 255]))
    assert (declared.name, values_of(declared)) == (PAIR_NAME, [0, 255, 1, 255])
    write(root / "labels/a.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(PebalError, match=r"a\.png is 2×4 .* its labels .*a\.png are 3×4"):
        declared.load(0)
    for wrong in ([0], [300]):
        with pytest.raises(PebalError, match="different numbers from 0 to 255"):
            anomaly_ids([0], wrong)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_picture_that_was_cut_short_is_refused(suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = write(tmp_path / f"a{suffix}", noise)
    assert read_image(path).shape == (64, 64, 3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PebalError, match=f"a{suffix} cannot be read as an image"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "folder", "images", "values"),
    [
        ("RoadAnomaly21", "smiyc", 10, {0, 1, 255}),
        ("RoadObstacle21", "smiyc/dataset_ObstacleTrack", 30, {0, 1, 255}),
        ("FishyscapesStatic", "fishyscapes", 30, {0, 1, 255}),
        ("CamVid", "camvid", 233, {0, 1, 2, 5, 7, 8, 10, 11, 12, 13, 255}),
        ("Cityscapes", "cityscapes_mini", 1, {0, 1, 2, 4, 5, 7, 8, 10, 12, 13, 18, 255}),
    ],
)
def test_real_sets(name: str, folder: str, images: int, values: set[int], shared_dir: Path) -> None:
    data = open_set(name, shared_dir / "data" / folder)
    assert len(data) == images
    assert set(np.unique(data.load(0).target).tolist()) == values


def test_what_an_ego_mask_covers_is_void(tmp_path: Path) -> None:
    root = write_layout(tmp_path / "mine", "images/{}.png", "labels/{}.png", BINARY)
    mask = IgnoreMask(np.array([[0, 1, 0, 0], [0, 0, 0, 0]], bool), "The ego mask")
    data = replace(open_set("mine", root), ignore=mask)
    assert data.load(0).target.tolist() == [[0, 255, 1, 255], [0, 0, 0, 255]]
    other = replace(data, ignore=IgnoreMask(np.eye(2, dtype=bool), "The ego mask"))
    with pytest.raises(PebalError, match="belongs to another camera"):
        other.load(0)
