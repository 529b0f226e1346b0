"""What finding, locating and tracking objects costs for a frame, on one core.

python benchmarks/objects.py
python benchmarks/objects.py --height 720 --width 1280 --frames 500

Scenes are drawn at random from a fixed seed: smooth inlier energies with 6 objects, the same with 3000 specks, and a
frame that is anomalous all over. The processor time of `find_objects`, `Locator` and `ObjectTracker` together is
reported, so that other jobs on the machine do not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np

from pebal_core.objects import CameraModel, GroundPlane, Locator, Mounting, ObjectRules, ObjectTracker, TrackRules
from pebal_core.objects import find_objects as find

RULES = ObjectRules(threshold=-4.0, grow=-5.5)


def with_objects(random: np.random.Generator, height: int, width: int, objects: int, specks: int) -> np.ndarray:
    """Energy H×W: smooth background, ellipses and single specks above the threshold."""
    coarse = random.normal(-10, 1.0, (height // 32 + 1, width // 32 + 1)).astype(np.float32)
    energy = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(objects):
        center = (int(random.integers(width)), int(random.integers(height // 2, height)))
        axes = (int(random.integers(10, width // 12)), int(random.integers(10, height // 12)))
        cv2.ellipse(energy, center, axes, 0, 0, 360, float(random.uniform(-4, 0)), -1)
    for x, y in zip(random.integers(0, width - 12, specks), random.integers(0, height - 12, specks)):
        energy[y : y + 12, x : x + 12] = -2.0
    return energy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--frames", type=int, default=200)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    random = np.random.default_rng(0)
    labels = np.full((args.height, args.width), 2, np.uint8)
    labels[args.height // 2 :] = 0
    matrix = np.array([[args.width, 0, args.width / 2], [0, args.width, args.height / 2], [0, 0, 1.0]])
    camera = CameraModel(args.width, args.height, matrix, np.zeros(5))
    locator = Locator(GroundPlane.from_mounting(camera, Mounting(height=1.5, pitch=2.0)))
    scenes: dict[str, Callable[[], np.ndarray]] = {
        "6 objects": lambda: with_objects(random, args.height, args.width, 6, 0),
        "6 objects, 3000 specks": lambda: with_objects(random, args.height, args.width, 6, 3000),
        "all anomalous": lambda: np.full((args.height, args.width), -2, np.float32),
    }
    print(f"{args.width}×{args.height}, {args.frames} frames, milliseconds")
    print(f"{'scene':24} {'p50':>6} {'p95':>6} {'objects':>8} {'left out':>9}")
    for name, scene in scenes.items():
        maps = [scene() for _ in range(8)]
        tracker = ObjectTracker(TrackRules())
        seconds, count, left_out = [], 0, 0
        for frame in range(args.frames):
            started = time.process_time()
            found = find(maps[frame % len(maps)], labels, RULES)
            count = len(tracker.update(locator.locate(found.objects), frame / 30))
            seconds.append(time.process_time() - started)
            left_out = found.left_out
        p50, p95 = 1e3 * np.percentile(seconds, (50, 95))
        print(f"{name:24} {p50:6.2f} {p95:6.2f} {count:8} {left_out:9}")


if __name__ == "__main__":
    main()
