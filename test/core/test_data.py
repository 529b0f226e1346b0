"""Scenes, augmentation and the numbered sample stream."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from pebal_core.data.augment import random_color, random_crop, random_mirror, random_scale
from pebal_core.data.scenes import open_scenes
from pebal_core.errors import PebalError
from pebal_core.labels import CAMVID_TO_TRAIN_ID, CITYSCAPES_CLASSES, LABEL_ID_TO_TRAIN_ID, VOID
from pebal_core.training.run import RunConfig, TrainingData
from pebal_core.training.stream import Sample, SampleStream, shuffled_index, stream_loader

from .scenes import write_camvid


def test_camvid_ids_become_train_ids(tmp_path: Path) -> None:
    image, labels = open_scenes("camvid", write_camvid(tmp_path), "train").load(0)
    assert image.shape == (48, 64, 3) and image.dtype == np.uint8
    assert set(np.unique(labels)) == {10, 0}
    named = {CITYSCAPES_CLASSES[i] for i in CAMVID_TO_TRAIN_ID[:11]}
    assert named == {"sky", "building", "pole", "road", "sidewalk", "vegetation", "traffic sign", "fence", "car",
                     "person", "rider"}  # fmt: skip
    assert CAMVID_TO_TRAIN_ID[11] == VOID


def test_cityscapes_label_ids_become_train_ids() -> None:
    """The official table: 19 evaluated classes, all else void."""
    assert LABEL_ID_TO_TRAIN_ID[[7, 8, 11, 23, 24, 26, 33]].tolist() == [0, 1, 2, 10, 11, 13, 18]
    assert (LABEL_ID_TO_TRAIN_ID != VOID).sum() == 19


def test_real_cityscapes_layout(shared_dir: Path) -> None:
    scenes = open_scenes("cityscapes", shared_dir / "data/cityscapes_mini", "train")
    assert len(scenes) == 8
    image, labels = scenes.load(0)
    assert image.shape == (1024, 2048, 3) and labels.shape == (1024, 2048)
    assert (labels == 0).mean() > 0.1, "a good part of a street scene is road"


def test_missing_folder_and_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(PebalError, match="train does not exist"):
        open_scenes("camvid", tmp_path / "nowhere", "train")
    root = write_camvid(tmp_path)
    (root / "trainannot" / "1.png").unlink()
    with pytest.raises(PebalError, match=r"1 of 3 images have no labels.*1\.png"):
        open_scenes("camvid", root, "train")
    with pytest.raises(PebalError, match="There is no layout 'kitti'"):
        open_scenes("kitti", root, "train")


def test_sizes_that_differ_and_colour_labels_are_named(tmp_path: Path) -> None:
    root = write_camvid(tmp_path)
    cv2.imwrite(str(root / "trainannot" / "0.png"), np.zeros((10, 10), np.uint8))
    cv2.imwrite(str(root / "trainannot" / "1.png"), np.zeros((48, 64, 3), np.uint8))
    scenes = open_scenes("camvid", root, "train")
    with pytest.raises(PebalError, match=r"0\.png are \(10, 10\)"):
        scenes.load(0)
    with pytest.raises(PebalError, match="not a single-channel 8-bit label image"):
        scenes.load(1)


def test_augmentation_keeps_image_and_labels_together() -> None:
    """A scene whose image is its label map stays so through scale, mirror and crop."""
    labels = np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4), 40, 0), 40, 1)
    image = np.repeat(labels[..., None] * 20, 3, axis=2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scaled = random_scale(image, labels, 0.5, 2.0, rng)
        cropped, target = random_crop(*random_mirror(*scaled, 0.5, rng), 64, 80, rng)
        assert cropped.shape == (64, 80, 3) and target.shape == (64, 80)
        known = target != VOID
        assert (np.abs(cropped[known][:, 0].astype(int) - target[known] * 20) <= 2).mean() > 0.85
        assert (cropped[~known] == 0).all(), "padding is black and void"


def test_crop_reaches_every_corner_and_never_leaves_the_scene() -> None:
    """An inclusive upper bound would reach one row of padding now and then."""
    labels = np.arange(36, dtype=np.uint8).reshape(6, 6)
    image = np.repeat(labels[..., None], 3, axis=2)
    rng = np.random.default_rng(0)
    corners = {int(random_crop(image, labels, 5, 5, rng)[1][0, 0]) for _ in range(200)}
    assert corners == {0, 1, 6, 7}


def test_colour_strength_zero_is_the_identity() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert (random_color(image, 0, np.random.default_rng(1)) == image).all()
    assert not (random_color(image, 0.3, np.random.default_rng(1)) == image).all()


def draw(rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A sample that carries its own number and one random value."""
    return np.full((2, 2, 3), rng.integers(256), np.uint8), np.full((2, 2), number)


def numbers(workers: int = 0, start: int = 0, rank: int = 0, world_size: int = 1) -> list[tuple[list[int], list[int]]]:
    stream = SampleStream(draw, 7, start, 24, batch_size=2, rank=rank, world_size=world_size)
    return [(target[:, 0, 0].tolist(), image[:, 0, 0, 0].tolist()) for image, target in stream_loader(stream, workers)]


class SomeData(TrainingData):
    """The samples of `draw`; five scenes are evaluated."""

    evaluated = 5

    def draw(self, rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
        return draw(rng, number)

    def load_evaluated(self, number: int) -> int:
        return number


class Listener(pl.LightningModule):
    """Learns nothing; keeps the numbers that it is fed with, and those that the data module foretells."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fed: list[list[int]] = []
        self.foretold: list[list[int]] = []
        self.evaluated: list[int] = []

    def training_step(self, batch: Sample, batch_index: int) -> torch.Tensor:
        self.fed.append(batch[1][:, 0, 0].tolist())
        self.foretold.append(list(self.trainer.datamodule.batch_numbers(batch_index)))  # type: ignore[attr-defined]
        return self.weight * 1

    def validation_step(self, number: int, batch_index: int) -> None:
        self.evaluated.append(number)

    def configure_optimizers(self) -> Any:
        def share(step: int) -> float:
            return 1 / (1 + step)

        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, share)}


def fit_listener(tmp_path: Path, workers: int) -> tuple[Listener, SomeData]:
    """Three steps of two batches each, and one evaluation."""
    data, listener = SomeData(RunConfig(seed=7, steps=3, batch_size=2, accumulate=2, workers=workers)), Listener()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=3, accumulate_grad_batches=2, val_check_interval=6,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(listener, datamodule=data)
    return listener, data


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_module_feeds_its_numbers_in_turn(tmp_path: Path, workers: int) -> None:
    listener, data = fit_listener(tmp_path, workers)
    assert listener.fed == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert listener.foretold == listener.fed, "what names the files of a batch is right within a step, too"
    assert listener.evaluated == [0, 1, 2, 3, 4] and data.samples_per_step == 4


def test_workers_that_are_not_forked_need_no_trainer(tmp_path: Path) -> None:
    """They get a pickled copy of the stream; the schedule of a run, a local function, could not be pickled."""
    _, data = fit_listener(tmp_path, workers=0)
    with pytest.raises(AttributeError, match="local object"):
        pickle.dumps(data.trainer)
    stream = pickle.loads(pickle.dumps(SampleStream(data.draw, 7, 0, 8, batch_size=2)))
    assert [int(target[0, 0]) for _, target in stream] == list(range(8))


def test_stream_is_the_same_however_it_is_split() -> None:
    whole = numbers()
    assert [n for batch, _ in whole for n in batch] == list(range(24))
    assert numbers(workers=2) == whole, "workers"
    assert numbers(start=8) == whole[4:], "resume"
    assert [b for pair in zip(numbers(rank=0, world_size=2), numbers(rank=1, world_size=2)) for b in pair] == whole


def test_every_scene_comes_once_per_pass() -> None:
    passes = [[shuffled_index(3, p * 10 + i, 10) for i in range(10)] for p in range(3)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert passes[0] != passes[1]
