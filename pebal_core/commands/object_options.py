"""The options by which a command finds objects in a sequence of frames."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from ..model_file import ModelInfo
from ..objects import Mounting, RoadObject
from ..outputs import ObjectOptions


def add_object_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--threshold", type=float, help="nats from which a pixel alarms; default: the model's")
    parser.add_argument("--ignore-mask", type=Path, help="image file that is not black where nothing may alarm")
    parser.add_argument(
        "--camera-info",
        type=Path,
        help="calibration of the camera: a YAML file as ROS writes it, or the word topic for that of a recording",
    )
    parser.add_argument("--camera-height", type=float, default=1.5, help="metres above the ground")
    parser.add_argument("--camera-pitch", type=float, default=0.0, help="degrees; positive when the camera looks down")
    parser.add_argument("--camera-roll", type=float, default=0.0, help="degrees; positive when turned clockwise")


def object_options(args: Namespace, info: ModelInfo) -> ObjectOptions:
    """The options as given; says so where the model stores no threshold and none was given."""
    if args.threshold is None and info.threshold is None:
        print("The model stores no threshold, so no objects are looked for: give --threshold.", file=sys.stderr)
    calibration = str(args.camera_info) if args.camera_info else ""
    mounting = Mounting(args.camera_height, args.camera_pitch, args.camera_roll)
    return ObjectOptions(args.threshold, str(args.ignore_mask or ""), calibration, mounting)


def number_map(objects: Sequence[RoadObject], height: int, width: int) -> np.ndarray:
    """H×W uint16: the number of the object at each pixel, 0 = none. Numbers go round at 65535."""
    numbers = np.zeros((height, width), np.uint16)
    for found in objects:
        x, y, w, h = found.box
        numbers[y : y + h, x : x + w][found.mask] = (found.id - 1) % 65535 + 1
    return numbers
