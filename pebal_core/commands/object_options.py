"""Options of the commands that find objects in a sequence of frames."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from ..model_info import ModelInfo
from ..objects import Mounting, RoadObject
from ..outputs import ObjectOptions


def add_object_arguments(parser: ArgumentParser) -> None:
    """Add the options for finding and locating objects.

    Examples:
        >>> parser = ArgumentParser()
        >>> add_object_arguments(parser)
        >>> parser.parse_args(["--camera-height", "1.4"]).camera_height
        1.4
    """
    parser.add_argument(
        "--threshold", type=float, help="energy in nats from which a pixel is alarmed; default: the model's"
    )
    parser.add_argument("--ignore-mask", type=Path, help="image file; pixels that are not black never alarm")
    parser.add_argument(
        "--camera-info",
        type=Path,
        help="camera calibration, as a YAML file in the format of ROS, or the word topic to read it from the recording",
    )
    parser.add_argument("--camera-height", type=float, default=1.5, help="height of the camera above ground in metres")
    parser.add_argument("--camera-pitch", type=float, default=0.0, help="degrees; positive when the camera looks down")
    parser.add_argument("--camera-roll", type=float, default=0.0, help="degrees; positive when turned clockwise")


def object_options(args: Namespace, info: ModelInfo) -> ObjectOptions:
    """The options for objects; prints a notice if neither the model nor the user gives a threshold.

    Examples:
        >>> parser = ArgumentParser()
        >>> add_object_arguments(parser)
        >>> args = parser.parse_args(["--threshold", "-4", "--camera-pitch", "2"])
        >>> options = object_options(args, ModelInfo("espnetv2"))
        >>> options.threshold, options.mounting.pitch
        (-4.0, 2.0)
    """
    if args.threshold is None and info.threshold is None:
        print("The model stores no threshold, so no objects are searched for. Pass --threshold.", file=sys.stderr)
    calibration = str(args.camera_info) if args.camera_info else ""
    mounting = Mounting(args.camera_height, args.camera_pitch, args.camera_roll)
    return ObjectOptions(args.threshold, str(args.ignore_mask or ""), calibration, mounting)


def number_map(objects: Sequence[RoadObject], height: int, width: int) -> np.ndarray:
    """Draw the objects' numbers into a map, H×W uint16, in which 0 is background; numbers wrap around after 65535.

    Examples:
        >>> outline, mask = np.array([[1, 0], [2, 0]]), np.ones((1, 2), bool)
        >>> found = RoadObject((1, 0, 2, 1), 2, -2.0, -1.0, 0, (1, 0), outline, outline, mask, id=7)
        >>> number_map([found], height=2, width=4).tolist()
        [[0, 7, 7, 0], [0, 0, 0, 0]]
    """
    numbers = np.zeros((height, width), np.uint16)
    for found in objects:
        x, y, w, h = found.box
        numbers[y : y + h, x : x + w][found.mask] = (found.id - 1) % 65535 + 1
    return numbers
