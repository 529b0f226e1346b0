"""``pebal prepare-coco COCO OUT`` makes outlier masks from COCO's annotations, by the reference's exclusion rule."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.progress import track

from ..data.coco import prepare_coco
from ..ranges import Whole


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("coco", type=Path, help="folder with annotations/instances_{split}.json and {split}/*.jpg")
    parser.add_argument("out", type=Path, help="folder to write to; training names it as data.outliers")
    parser.add_argument("--split", type=str, default="train2017")
    parser.add_argument(
        "--only", type=str, nargs="+", default=[], metavar="CATEGORY", help="keep only these categories"
    )
    parser.add_argument(
        "--min-side", type=Whole(0, 65_536), default=480, help="leave out images with a shorter side (pixels)"
    )
    parser.add_argument(
        "--rule",
        choices=("images", "instances", "known"),
        default="images",
        help="images leaves out every image that shows a road user or traffic sign, as the reference does; instances "
        "leaves out only those instances; known keeps only people and vehicles, for data.known",
    )


def run(args: Namespace) -> None:
    outliers = prepare_coco(
        args.coco,
        args.out,
        split=args.split,
        only=args.only,
        min_side=args.min_side,
        rule=args.rule,
        track=lambda images: track(images, "outlier masks"),
    )
    counts = Counter(instance.category for image in outliers.images for instance in image.instances)
    print(f"{args.out}: {len(outliers)} images, {counts.total()} outlier instances of {len(counts)} categories.")
