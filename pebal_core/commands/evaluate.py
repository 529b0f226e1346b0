"""``pebal evaluate``: IoU of a model on the labelled images of CamVid or Cityscapes, whole images, single scale."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..data.scenes import SCENE_SETS, open_scenes
from ..metrics.segmentation import SegmentationMetrics
from .model_options import add_model_arguments, load_detector


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("data", type=str, help="folder of the data set")
    parser.add_argument("--layout", choices=sorted(SCENE_SETS), default="camvid")
    parser.add_argument("--split", type=str, default="test")
    add_model_arguments(parser)


def run(args: Namespace) -> None:
    scenes = open_scenes(args.layout, args.data, args.split)
    detector = load_detector(args)
    metrics = SegmentationMetrics(detector.info.class_names)
    for index in track(range(len(scenes)), f"{scenes.name} on {detector.device_name}"):
        image, labels = scenes.load(index)
        metrics.update(detector(image).labels, labels, name=str(scenes.pairs[index][0]))
    result = metrics.compute()
    table = Table("class", "IoU", title=f"{scenes.name}, {len(scenes)} images, {args.model}")
    for name, iou in zip(metrics.classes, result.iou):
        if iou is not None:
            table.add_row(name, f"{iou:.3f}")
    table.add_row(f"mean of {len(metrics.labelled_classes())}", f"{metrics.labelled_miou():.4f}", style="bold")
    Console().print(table)
