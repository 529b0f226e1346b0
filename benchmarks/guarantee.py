"""Guaranteed and realised risk of the thresholds that ``pebal calibrate`` chooses, over random splits of drives.

    python benchmarks/guarantee.py --idd-lite DATA/idd_lite --camvid DATA/camvid --clips CLIPS/*.mp4 \\
        --plot docs/guarantee.png

A unit is a drive of IDD Lite, ten successive test images of CamVid (10 s), or a block of four seconds of a clip. In
each split, one half of the units is used to choose the threshold, and the other half shows the realised risk.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import track

from pebal_core.data.scenes import open_scenes
from pebal_core.detector import AnomalyDetector
from pebal_core.footage import FrameSource
from pebal_core.guarantee import Request, Risk
from pebal_core.labels import VOID
from pebal_core.risk_control import Loss, largest_confident_risk, largest_mean_risk, mean_risk, smallest_threshold
from pebal_core.training.calibrate import CalibrationScene, UnitLosses

INTERVAL, BLOCK = 0.5, 4.0
"""Seconds between two frames of a clip, and seconds of a block."""


def idd_scenes(folder: Path, most: int) -> Iterator[CalibrationScene]:
    """Up to so many images of each drive of IDD Lite."""
    for split in ("train", "val"):
        scenes, seen = open_scenes("idd_lite", folder, split), dict[str, int]()
        for index, (image, _) in enumerate(scenes.pairs):
            drive = image.parent.name
            seen[drive] = seen.get(drive, 0) + 1
            if seen[drive] <= most:
                yield CalibrationScene(f"{split}/{drive}", *scenes.load(index))


def camvid_scenes(folder: Path) -> Iterator[CalibrationScene]:
    """The test images of CamVid, which were taken once a second."""
    scenes, seen = open_scenes("camvid", folder, "test"), dict[str, int]()
    for index, (image, _) in enumerate(scenes.pairs):
        drive = image.stem.split("_")[0]
        seen[drive] = seen.get(drive, 0) + 1
        yield CalibrationScene(f"{drive}/{(seen[drive] - 1) // 10}", *scenes.load(index))


def clip_scenes(clips: list[str]) -> Iterator[CalibrationScene]:
    """Frames of videos."""
    for clip in clips:
        following = 0.0
        for frame in FrameSource(clip):
            if frame.seconds >= following:
                following = frame.seconds + INTERVAL
                yield CalibrationScene(f"{clip}/{int(frame.seconds // BLOCK)}", frame.image)


def unit_losses(
    scenes: Iterator[CalibrationScene], detector: AnomalyDetector, request: Request
) -> dict[Risk, list[Loss]]:
    """The losses of all units."""
    units = UnitLosses(request)
    for scene in track(scenes, "scenes", total=None):
        units.add(scene.unit, detector(scene.image).energy, None if scene.labels is None else scene.labels == VOID)
    return units.losses()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idd-lite", type=Path, help="folder of the data set")
    parser.add_argument("--camvid", type=Path, help="folder of the data set")
    parser.add_argument("--clips", nargs="+", default=[], help="videos without anomalies")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--splits", type=int, default=250)
    parser.add_argument("--most", type=int, default=2, help="frames of one drive of IDD Lite, at most")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    request, detector = Request(0.02, object_alpha=0.3), AnomalyDetector.load(args.model)
    sets = {
        "IDD Lite": args.idd_lite and idd_scenes(args.idd_lite, args.most),
        "CamVid test": args.camvid and camvid_scenes(args.camvid),
        "clips": clip_scenes(args.clips) if args.clips else None,
    }
    print(f"{args.splits} splits in halves; a split breaks the guarantee if its other half exceeds alpha.")
    print("| set | units | risk | guarantee | alpha | mean realised risk | 95 % are below | splits above alpha |")
    print("|---|---|---|---|---|---|---|---|")
    rows: list[tuple[str, float, np.ndarray]] = []
    for title, scenes in sets.items():
        if scenes:
            rows += evaluate(title, unit_losses(scenes, detector, request), request, args.splits)
    if args.plot and rows:
        plot(rows, args.plot)


def evaluate(
    title: str, losses: dict[Risk, list[Loss]], request: Request, splits: int
) -> list[tuple[str, float, np.ndarray]]:
    """Print the rows of one set; returns name, alpha and the realised risks of each."""
    rows = []
    for risk, (alpha, bound) in request.risks.items():
        count = len(losses[risk])
        for name in ("mean", "confident"):
            if name == "mean":
                largest = largest_mean_risk(alpha, bound, count // 2)
            else:
                largest = largest_confident_risk(alpha, bound, count // 2, request.confidence)
            if largest < 0:
                print(f"| {title} | {count} | {risk} | {name} | {alpha:g} | too few units | | |")
                continue
            realised = []
            for split in range(splits):
                order = np.random.default_rng(split).permutation(count)
                chosen, rest = ([losses[risk][i] for i in half] for half in (order[: count // 2], order[count // 2 :]))
                realised.append(mean_risk(rest, smallest_threshold(chosen, largest)))
            values = np.array(realised)
            rows.append((f"{title}: {risk}, {name}", alpha, values))
            print(
                f"| {title} | {count} | {risk} | {name} | {alpha:g} | {values.mean():.4f} "
                f"| {np.quantile(values, 0.95):.4f} | {100 * np.mean(values > alpha):.1f} % |"
            )
    return rows


def plot(rows: list[tuple[str, float, np.ndarray]], path: Path) -> None:
    """Histograms of the realised risk as a share of the guaranteed one."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    height = -(-len(rows) // 4)
    figure, axes = plt.subplots(height, 4, figsize=(12, 2.4 * height), squeeze=False)
    for axis, (name, alpha, values) in zip(axes.flat, rows):
        axis.hist(values / alpha, bins=np.linspace(0, 2, 41), color="#4477aa")
        axis.axvline(1, color="#cc3311", label="guaranteed")
        axis.axvline(values.mean() / alpha, color="black", linestyle="--", label="mean")
        axis.set_title(name, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("realised / guaranteed risk")
    for axis in axes[:, 0]:
        axis.set_ylabel("splits")
    axes[0, 0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
