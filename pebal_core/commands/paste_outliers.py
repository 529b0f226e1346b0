"""``pebal paste-outliers --config config/train_….yaml --to OUT`` writes a labelled set with pasted objects.

It pastes the held-back objects of a training configuration into scenes of its validation sets, or of another split of
them. The images are the same as in the evaluations during training. The folders ``images/`` and ``labels/`` can be
inspected and benchmarked.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.progress import track

from ..files import write_atomically
from ..labels import OUTLIER, VOID
from ..model_file import read_info, resolve_model
from ..training.finetune import FinetuneConfig
from ..training.samples import ValidationScenes, open_outliers
from .train import read_config


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="a configuration of pebal train")
    parser.add_argument("--to", type=Path, required=True, help="folder to write images/ and labels/ to")
    parser.add_argument("--split", type=str, help="use this split of the validation sets instead of the configured one")
    parser.add_class_arguments(FinetuneConfig)


def run(args: Namespace) -> None:
    config = read_config(args)
    data, classes = config.data, read_info(resolve_model(config.model)).classes
    if args.split is not None:
        data = replace(data, validation=[replace(source, split=args.split) for source in data.validation])
    scenes = ValidationScenes(data, open_outliers(data)[1], classes)
    for number in track(range(len(scenes)), "scenes with outliers"):
        image, labels, name = scenes.load(number)
        target = np.where(labels == OUTLIER, 1, np.where(labels == VOID, VOID, 0)).astype(np.uint8)
        file = f"{number:04d}_{Path(name).stem}.png"
        for folder, pixels in (("images", image[..., ::-1]), ("labels", target)):
            write_atomically(args.to / folder / file, cv2.imencode(".png", pixels)[1].tobytes())
    print(f"{args.to}: {len(scenes)} scenes of {scenes.name}; labels: 0 inlier, 1 outlier, {VOID} void.")
