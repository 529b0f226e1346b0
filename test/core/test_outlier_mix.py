"""AnomalyMix of the reference, and the richer mix."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pebal_core.data.coco import OutlierSet, prepare_coco
from pebal_core.data.cutouts import Cutout, cut_out, paste, random_blob, resize
from pebal_core.data.outlier_mix import ObjectPool, RichMix, anomaly_mix
from pebal_core.data.partial_labels import GROUPS, resolve_groups
from pebal_core.data.placement import draw_foot, horizon_row
from pebal_core.data.scenes import check_scenes, open_scenes, read_image
from pebal_core.errors import PebalError
from pebal_core.labels import ANYTHING, CARS, GREEN, OUTLIER, VOID, WALLS
from pebal_core.training.samples import DataConfig, SceneSource, TrainingSamples

from .scenes import road_scene, square, write_camvid, write_coco


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> OutlierSet:
    root = tmp_path_factory.mktemp("objects")
    objects = [("dog", square(10, 20, 100))], [("laptop", square(100, 100, 50))], [("cup", square(5, 5, 60))]
    return prepare_coco(write_coco(root / "coco", [((240, 240), list(o)) for o in objects]), root / "out", min_side=0)


def test_anomaly_mix_pastes_the_box_unscaled_at_every_position() -> None:
    scene = road_scene(6, 8)
    outlier = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3), np.zeros((5, 5), np.uint8)
    outlier[1][1:4, 2:4] = OUTLIER
    outlier[1][2, 2] = 0
    positions = set()
    for seed in range(300):
        image, labels = anomaly_mix(scene, outlier, np.random.default_rng(seed))
        pasted = labels == OUTLIER
        positions.add(tuple(np.argwhere(pasted).min(0).tolist()))
        assert pasted.sum() == 5, "the union of the masks, whole"
        assert np.array_equal(image[pasted], outlier[0][outlier[1] == OUTLIER])
        assert np.array_equal(image[~pasted], scene[0][~pasted]), "nothing but the object is pasted"
    assert positions == {(y, x) for y in range(4) for x in range(7)}, "3×2 box in a 6×8 scene"
    assert (scene[1] != OUTLIER).all(), "the scene given is not modified"


def test_anomaly_mix_cuts_an_object_larger_than_the_scene() -> None:
    outlier = np.full((50, 50, 3), 9, np.uint8), np.full((50, 50), OUTLIER, np.uint8)
    image, labels = anomaly_mix(road_scene(6, 8), outlier, np.random.default_rng(0))
    assert (labels == OUTLIER).all() and (image == 9).all()


def test_pasting_is_cut_at_the_borders_and_blends() -> None:
    image, labels = np.zeros((10, 10, 3), np.uint8), np.zeros((10, 10), np.uint8)
    opacity = np.full((4, 4), 0.4, np.float32)
    opacity[:, 2:] = 1.0
    cutout = Cutout(np.full((4, 4, 3), 100, np.uint8), opacity, np.full((4, 4), OUTLIER, np.uint8))
    paste(image, labels, cutout, -2, 7)
    assert image[0, 7:].tolist() == [[40] * 3, [40] * 3, [100] * 3]
    assert labels[:2, 9].tolist() == [OUTLIER, OUTLIER] and np.count_nonzero(labels) == 2
    paste(image, labels, cutout, 50, 50)


def test_rich_mix_is_a_pure_function_of_its_generator(outliers: OutlierSet) -> None:
    scene, pool, mix = road_scene(), ObjectPool(outliers), RichMix()
    kept = scene[0].copy(), scene[1].copy()
    first, again = (mix.outliers(scene, 48, pool, np.random.default_rng(5))[0] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    other = mix.outliers(scene, 48, pool, np.random.default_rng(6))[0]
    assert not np.array_equal(first[1], other[1])
    assert all(np.array_equal(a, b) for a, b in zip(scene, kept))


def test_pieces_come_from_another_scene(outliers: OutlierSet) -> None:
    """They replace that share of the objects, and without any the samples stay as they were."""
    scene, pool, donor = road_scene(), ObjectPool(outliers), np.full((9, 14, 3), 128, np.uint8)
    other = lambda: ((donor, donor[..., 0]), "other.png")  # noqa: E731
    mix = RichMix(count=[2, 2], pieces=1.0)
    ((image, labels), files), again = (
        mix.outliers(scene, 48, pool, np.random.default_rng(5), other=other) for _ in "ab"
    )
    assert files == ["other.png"] * 2 and np.array_equal(image, again[0][0])
    assert (labels == OUTLIER).any()
    assert mix.outliers(scene, 48, pool, np.random.default_rng(5))[1] == [], "pieces of the scene itself"
    half = RichMix(count=[30, 30], pieces=0.5).outliers(scene, 48, pool, np.random.default_rng(5), other=other)[1]
    assert 7 < half.count("other.png") < 23
    alone, beside = (
        RichMix().outliers(scene, 48, pool, np.random.default_rng(5), other=given)[0][0] for given in (None, other)
    )
    assert np.array_equal(alone, beside)


def test_objects_on_the_ground_follow_perspective(outliers: OutlierSet) -> None:
    """The lower in the image, the larger; and the foot is on the road."""
    mix = RichMix(count=[1, 1], height=[0.5, 0.5], anywhere=0.0, shapes=0.0, tilt=0.0, blur=0.0)
    pool, scene = ObjectPool(outliers), road_scene()
    for seed in range(60):
        (_, labels), _ = mix.outliers(scene, 48, pool, np.random.default_rng(seed))
        rows = np.flatnonzero((labels == OUTLIER).any(1))
        if rows.size:
            foot, height = rows[-1] + 1, rows.size
            assert foot > 50 and abs(height - max(6, 0.5 * (foot - 48))) <= 2


def test_distractors_never_become_outliers() -> None:
    """Parts of scenes keep an inlier label, shadows change no label at all."""
    scene = road_scene()
    donor = scene[0].copy(), scene[1].copy()
    donor[1][60:90, 20:60], donor[0][60:90, 20:60] = 13, (200, 10, 10)
    changed = cars = 0
    for seed in range(40):
        mix, rng = RichMix(distractors=2.0), np.random.default_rng(seed)
        (image, labels), files = mix.distract(scene, 48, lambda: (donor, "donor.png"), rng)
        assert set(files) <= {"donor.png"}
        assert set(np.unique(labels)) <= {0, 2, 13}
        changed += not np.array_equal(image, scene[0])
        cars += bool((labels == 13).any())
    assert changed > 30 and cars > 20


def test_horizon_and_feet() -> None:
    labels = road_scene()[1]
    assert 45 <= horizon_row(labels) <= 50
    feet = [draw_foot(labels, 48, np.random.default_rng(seed)) for seed in range(100)]
    assert all(foot is not None and labels[foot] == 0 for foot in feet)
    assert draw_foot(np.full((20, 20), 2, np.uint8), 5, np.random.default_rng(0)) is None


def test_blobs_fill_their_box_and_cutouts_keep_their_aspect() -> None:
    for seed in range(30):
        blob = random_blob(40, 60, np.random.default_rng(seed))
        assert blob.shape == (40, 60) and 0.1 < blob.mean() < 1.0
    mask = np.zeros((50, 50), bool)
    mask[10:30, 5:45] = True
    cutout = cut_out(np.zeros((50, 50, 3), np.uint8), mask, OUTLIER)
    assert cutout.opacity.shape == (20, 40)
    assert resize(cutout, 10).opacity.shape == (10, 20)


def config_of(root: Path, outliers: OutlierSet, **more: object) -> DataConfig:
    scenes = [SceneSource("camvid", "camvid", repeat=2)]
    return DataConfig(scenes, [], "", root=str(root), crop=[32, 48], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("mix", ["anomaly_mix", "rich_mix"])
def test_a_pass_holds_each_clean_scene_and_the_asked_share_of_mixed_ones(
    mix: str, tmp_path: Path, outliers: OutlierSet
) -> None:
    write_camvid(tmp_path / "camvid", count=6)
    samples = TrainingSamples(config_of(tmp_path, outliers, mix=mix, outlier_share=0.25), outliers, seed=1)
    assert (len(samples.deck), samples.mixed_places) == (12, 4)
    mixed = 0
    for number in range(16):
        image, labels = samples.draw(np.random.default_rng([1, number]), number)
        assert image.shape == (32, 48, 3) and labels.shape == (32, 48) and image.dtype == labels.dtype == np.uint8
        from_coco = [file for file in samples.files(number) if "train2017" in file]
        mixed += bool(from_coco)
        assert from_coco or not (labels == OUTLIER).any(), "a sample without outlier images has no outliers"
    assert mixed == 4


def write_cityscapes(root: Path, ids: np.ndarray, name: str) -> Path:
    for folder in (
        "leftImg8bit/train/x",
        "gtFine/train/x",
        "images/city_gt_fine/train",
        "annotation/city_gt_fine/train",
    ):
        (root / folder).mkdir(parents=True)
    image = np.full((*ids.shape, 3), 120, np.uint8)
    for folder in ("leftImg8bit/train/x", "images/city_gt_fine/train"):
        cv2.imwrite(str(root / folder / "x_0_leftImg8bit.png"), image)
    cv2.imwrite(str(root / "gtFine/train/x" / name), ids)
    cv2.imwrite(str(root / "annotation/city_gt_fine/train/x_0_gtFine.png"), ids)
    return root


def test_other_cityscapes_layouts_hold_train_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 18], [VOID, 10]], np.uint8).repeat(8, 0).repeat(8, 1)
    root = write_cityscapes(tmp_path, ids, "x_0_gtFine_labelTrainIds.png")
    for layout in ("cityscapes_flat", "cityscapes_train_ids"):
        scenes = open_scenes(layout, root, "train")
        check_scenes(scenes)
        assert np.array_equal(scenes.load(0)[1], ids)


def test_label_ids_in_place_of_train_ids_are_named(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path, np.full((16, 16), 26, np.uint8), "x_0_gtFine_labelTrainIds.png")
    with pytest.raises(
        PebalError, match=r"x_0_gtFine\.png contains the label 26.*labelIds where trainIds are expected"
    ):
        check_scenes(open_scenes("cityscapes_flat", root, "train"))


def test_swapped_colours_are_named(tmp_path: Path, shared_dir: Path) -> None:
    check_scenes(open_scenes("camvid", shared_dir / "data/camvid", "val"))
    source = open_scenes("camvid", shared_dir / "data/camvid", "train")
    check_scenes(source)
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
    for image, labels in source.pairs[::90]:
        cv2.imwrite(str(tmp_path / "train" / image.name), read_image(image))
        (tmp_path / "trainannot" / labels.name).write_bytes(labels.read_bytes())
    with pytest.raises(PebalError, match="Red and blue of CamVid train seem to be swapped"):
        check_scenes(open_scenes("camvid", tmp_path, "train"))


def test_coarse_labels_become_groups(shared_dir: Path) -> None:
    scenes = open_scenes("idd_lite", shared_dir / "data/idd_lite", "train")
    assert len(scenes) == 1403
    check_scenes(scenes)
    assert set(np.unique(scenes.load(0)[1])) <= {0, 10, VOID, *GROUPS}


def test_camvid_as_groups(shared_dir: Path) -> None:
    plain, groups = (
        open_scenes(layout, shared_dir / "data/camvid", "val").load(0)[1] for layout in ("camvid", "camvid_groups")
    )
    assert set(np.unique(groups)) & set(GROUPS) >= {CARS, GREEN, WALLS}
    for group, classes in GROUPS.items():
        assert set(np.unique(plain[groups == group])) <= set(classes)
    exact = groups < 19
    assert exact.any() and np.array_equal(groups[exact], plain[exact])


def test_scenes_without_labels(tmp_path: Path, shared_dir: Path) -> None:
    source = open_scenes("camvid", shared_dir / "data/camvid", "val")
    for file, _ in source.pairs[:3]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    scenes = open_scenes("unlabelled", tmp_path, "train")
    check_scenes(scenes)
    image, labels = scenes.load(1)
    assert len(scenes) == 3 and np.array_equal(image, source.load(1)[0])
    assert np.unique(labels).tolist() == [ANYTHING]
    logits = torch.randn(1, 20, *labels.shape, generator=torch.Generator().manual_seed(0))
    resolved = resolve_groups(torch.from_numpy(labels)[None], logits)
    assert torch.equal(resolved[0], logits[0, :19].argmax(0).to(torch.uint8)), (
        "a pixel is what the network takes it for"
    )
    (tmp_path / source.pairs[0][0].name).write_bytes(b"no image")
    with pytest.raises(PebalError, match="cannot be read as an image"):
        check_scenes(scenes)
