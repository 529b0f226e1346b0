"""How soon a camera's drift is noticed: the clips as they are, and with a change after a third of each.

    pebal adapt drives/*.mp4 --out front_camera
    python benchmarks/drift.py --model front_camera/model.safetensors drives/a.mp4 other_drive.mp4

Changes are drawn: fog, night, blur, glare from one corner, and dirt that stays in place. For each clip and change the
table gives the seconds from the change to the report, and the reason that is reported; "never" means until the end of
the clip. Without a change, the seconds count from the first frame.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import cv2
import numpy as np

from pebal_core.detector import AnomalyDetector
from pebal_core.drift import DriftMonitor
from pebal_core.footage import FrameSource

Change = Callable[[np.ndarray], np.ndarray]


def fog(image: np.ndarray) -> np.ndarray:
    """Denser towards the horizon, which is taken to lie in the middle."""
    rows = np.abs(np.linspace(-1, 1, image.shape[0]))[:, None, None]
    share = 0.75 - 0.35 * rows
    return (image * (1 - share) + 215 * share).astype(np.uint8)


def night(image: np.ndarray) -> np.ndarray:
    """A tenth of the light, with the noise of a camera that amplifies it."""
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    return (image * 0.12 + noise).clip(0, 255).astype(np.uint8)


def blur(image: np.ndarray) -> np.ndarray:
    """Out of focus by a hundredth of the width."""
    return cv2.GaussianBlur(image, (0, 0), image.shape[1] / 250)


def glare(image: np.ndarray) -> np.ndarray:
    """A low sun in the upper right corner."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - 0.2 * height, x - 0.8 * width) / width
    return (image + 400 * np.exp(-((distance / 0.28) ** 2))[..., None]).clip(0, 255).astype(np.uint8)


def dirt(image: np.ndarray) -> np.ndarray:
    """Brown splashes that stay in place."""
    height, width = image.shape[:2]
    rng, mask = np.random.default_rng(3), np.zeros((height, width), np.float32)
    for _ in range(25):
        center = int(rng.integers(width)), int(rng.integers(height // 3, height))
        cv2.circle(mask, center, int(rng.integers(width // 60, width // 20)), 1.0, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), width / 160)[..., None] * 0.9
    return (image * (1 - mask) + np.array([70, 55, 40]) * mask).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "none": lambda image: image, "fog": fog, "night": night, "blur": blur, "glare": glare, "dirt": dirt,
}  # fmt: skip


def watch(detector: AnomalyDetector, source: str, change: Change | None, every: float) -> tuple[float | None, str, int]:
    """Seconds until drift is reported, its reason, and the frames that were looked at since the change."""
    clip = FrameSource(source)
    step = max(1, round(every * clip.rate))
    begin = 0.0 if change is None else (clip.count or 0) / clip.rate / 3
    monitor, frames = DriftMonitor(detector.info), 0
    for number, frame in enumerate(clip):
        if number % step:
            continue
        image = frame.image if change is None or frame.seconds < begin else change(frame.image)
        state = monitor.update(detector(image).energy, image)
        frames += change is None or frame.seconds >= begin
        if state.drifted:
            return frame.seconds - begin, state.reason, frames
    return None, "", frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--model", required=True, help="a model with a profile, from pebal adapt or pebal calibrate")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between two frames")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES))
    args = parser.parse_args()
    detector = AnomalyDetector.load(args.model)
    print("| clip | change | reported after | frames | reason |\n|---|---|---|---|---|")
    for clip in args.clips:
        for name in args.changes:
            seconds, reason, frames = watch(detector, clip, None if name == "none" else CHANGES[name], args.every)
            after = "never" if seconds is None else f"{seconds:.1f} s"
            print(f"| {clip.rpartition('/')[2]} | {name} | {after} | {frames} | {reason} |", flush=True)


if __name__ == "__main__":
    main()
