"""What the tests of training share: small scenes with outliers and a small network, and the options of the commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch

from pebal_core.data.coco import prepare_coco
from pebal_core.model_file import save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import build_network

from .scenes import square, write_camvid, write_coco

TINY: dict[str, Any] = {"encoder": "resnet18", "decoder_channels": 16}


def make_workshop(root: Path) -> Path:
    """Fill a folder with scenes, prepared outliers and a small network with random weights."""
    write_camvid(root / "camvid")
    objects = [("dog", square(10, 20, 100))], [("laptop", square(100, 100, 50))], [("cup", square(5, 5, 60))]
    coco = write_coco(root / "coco", [((240, 240), list(o)) for o in objects])
    prepare_coco(coco, root / "outliers", min_side=100)
    torch.manual_seed(0)
    network = build_network("deeplabv3plus", **TINY)
    info = ModelInfo("deeplabv3plus", TINY, outlier_statistics="of this network")
    save_model(root / "model.safetensors", network, info)
    return root


def train_options(workshop: Path, out: Path, *more: str) -> list[str]:
    scene = {"layout": "camvid", "folder": "camvid", "height": 48}
    return [
        "train", f"--model={workshop / 'model.safetensors'}", f"--out={out}", f"--data.root={workshop}",
        f"--data.outliers={workshop / 'outliers'}", f"--data.scenes={json.dumps([scene])}",
        f"--data.validation={json.dumps([scene | {'split': 'val'}])}", "--data.held_back=[cup]", "--data.crop=[32,48]",
        "--data.validation_every=1", "--trainer.steps=4", "--trainer.batch_size=2", "--trainer.validate_every=2",
        "--trainer.checkpoint_every=1", "--trainer.workers=0", "--trainer.accelerator=cpu", "--trainer.devices=1",
        "--lr=0.001", "--ema_decay=0.5", *more,
    ]  # fmt: skip


def pretrain_options(data: Path, out: Path, *more: str) -> list[str]:
    return [
        "pretrain", f"--data={data}", f"--out={out}", f"--network_args={json.dumps(TINY)}", "--encoder_weights=null",
        "--batch_size=2", "--crop=[32,32]", "--validate_every=10", "--workers=0", "--accelerator=cpu", "--devices=1",
        "--checkpoint_every=5", *more,
    ]  # fmt: skip


def log_of(out: Path, column: str) -> list[float]:
    with (out / "log" / "metrics.csv").open() as stream:
        return [float(row[column]) for row in csv.DictReader(stream) if row.get(column)]
