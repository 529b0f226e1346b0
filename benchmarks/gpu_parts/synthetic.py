"""Files in the layouts that training reads, made here: no data set is needed."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from pebal_core.data.coco import INDEX
from pebal_core.model_file import save_model
from pebal_core.training.finetune import FinetuneConfig
from pebal_core.training.run import RunConfig
from pebal_core.training.samples import DataConfig, SceneSource

from .bench import Bench, Size, photograph

LAYOUT = "cityscapes_flat"


def write_scenes(root: Path, size: Size, count: int, unique: int) -> int:
    """Scenes in the layout above: ``unique`` pictures under ``count`` names (hard links); returns the bytes of one.

    Up to 8 of them have a second name in the split ``val``, because no file may be both learned and evaluated. The
    pictures show the road with fresh noise, of which PNG files get as large as those of a camera.
    """
    images, labels = (root / kind / "city_gt_fine/train" for kind in ("images", "annotation"))
    for folder in (images, labels):
        folder.mkdir(parents=True)
    road = photograph(size)
    classes = np.zeros(size, np.uint8)
    classes[: size.height // 3] = 10  # sky
    classes[size.height // 3 : size.height // 2] = cv2.resize(
        np.arange(19, dtype=np.uint8)[None], (size.width, size.height // 2 - size.height // 3), interpolation=0
    )

    def write(number: int) -> None:
        noise = np.random.default_rng(number).normal(0, 1.2, (*size, 3))
        picture = (road + noise).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(images / f"{number:04d}_leftImg8bit.png"), picture[..., ::-1])
        cv2.imwrite(str(labels / f"{number:04d}_gtFine.png"), classes)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(unique)))
    for number in range(unique, count):
        for folder, suffix in ((images, "leftImg8bit"), (labels, "gtFine")):
            os.link(folder / f"{number % unique:04d}_{suffix}.png", folder / f"{number:04d}_{suffix}.png")
    for folder in (images, labels):
        (folder.parent / "val").mkdir()
        for path in sorted(folder.iterdir())[: min(unique, 8)]:
            os.link(path, folder.parent / "val" / path.name)
    return (images / "0000_leftImg8bit.png").stat().st_size


def write_outliers(folder: Path, side: int, count: int) -> None:
    """What ``pebal prepare-coco`` writes, with a disc of noise on each image."""
    (folder / "masks").mkdir(parents=True)
    entries = []
    radius = side // 4
    for number in range(count):
        rng = np.random.default_rng(number)
        mask = cv2.circle(np.zeros((side, side), np.uint8), (side // 2, side // 2), radius, 1, -1)
        cv2.imwrite(str(folder / f"{number}.jpg"), rng.integers(0, 256, (side, side, 3), np.uint8))
        cv2.imwrite(str(folder / "masks" / f"{number}.png"), mask)
        box = list(cv2.boundingRect(mask))
        entries.append({"file": f"{number}.jpg", "instances": [{"number": 1, "category": "disc", "box": box}]})
    index = {"split": "synthetic", "rule": "images", "image_folder": str(folder), "images": entries}
    (folder / INDEX).write_text(json.dumps(index))


def configuration(bench: Bench, root: Path, network: str, crop: int, run: RunConfig) -> FinetuneConfig:
    """Fine-tuning on the files above, all else as in config/train_paper_wr38.yaml; the model is written, too."""
    save_model(root / "model.safetensors", *bench.load(network))
    data = DataConfig(
        scenes=[SceneSource(LAYOUT, "scenes", "train")],
        validation=[SceneSource(LAYOUT, "scenes", "val")],
        outliers=str(root / "outliers"),
        root=str(root),
        mix="anomaly_mix",
        outlier_share=0.09077,
        crop=[crop, crop],
        scale=[0.5, 0.75, 1, 1.5, 1.75, 2],
        mirror=0.8,
        color=0,
        camera=0,
        validation_every=10**6,  # one
        check=False,
    )
    return FinetuneConfig(str(root / "model.safetensors"), data, str(root / "run"), run, freeze_bn=False, lr=1e-5)
