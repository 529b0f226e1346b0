"""Promised and realised risk of the thresholds that ``pebal calibrate`` chooses, over random splits of drives.

    python benchmarks/guarantee.py --idd-lite DATA/idd_lite --plot docs/guarantee.png

Every drive of IDD Lite is one unit. In each split one half of them chooses the threshold, and the other half shows what
it is worth.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path

import numpy as np

from pebal_core.data.scenes import idd_lite
from pebal_core.detector import AnomalyDetector
from pebal_core.guarantee import Request, Risk
from pebal_core.labels import VOID
from pebal_core.risk_control import Loss, largest_confident_risk, largest_mean_risk, mean_risk, smallest_threshold
from pebal_core.training.calibrate import UnitLosses


def drive_losses(folder: Path, request: Request, most: int) -> dict[Risk, list[Loss]]:
    """The losses of all drives, of up to so many frames each."""
    units, detector = UnitLosses(request), AnomalyDetector.load("starter")
    for split in ("train", "val"):
        scenes = idd_lite(folder, split)
        drives = [image.parent.name for image, _ in scenes.pairs]
        for drive, members in groupby(range(len(scenes)), drives.__getitem__):
            for index in list(members)[:most]:
                image, labels = scenes.load(index)
                units.add(f"{split}/{drive}", detector(image).energy, labels == VOID)
    return units.losses()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idd-lite", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=250)
    parser.add_argument("--most", type=int, default=2, help="frames of one drive, at most")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    request = Request(0.02, object_alpha=0.3)
    losses = drive_losses(args.idd_lite, request, args.most)
    count = len(losses["pixels"])
    print(
        f"{count} drives, {args.splits} splits in halves; a split breaks the promise if its other half exceeds alpha."
    )
    print("| risk | promise | alpha | realised: mean | 95 % of the splits below | splits above alpha |")
    print("|---|---|---|---|---|---|")
    rows: list[tuple[str, float, np.ndarray]] = []
    for risk, (alpha, bound) in request.risks.items():
        for name in ("mean", "confident"):
            realised = []
            for split in range(args.splits):
                order = np.random.default_rng(split).permutation(count)
                chosen = [losses[risk][i] for i in order[: count // 2]]
                rest = [losses[risk][i] for i in order[count // 2 :]]
                if name == "mean":
                    largest = largest_mean_risk(alpha, bound, len(chosen))
                else:
                    largest = largest_confident_risk(alpha, bound, len(chosen), request.confidence)
                realised.append(mean_risk(rest, smallest_threshold(chosen, largest)))
            values = np.array(realised)
            rows.append((f"{risk}, {name}", alpha, values))
            print(
                f"| {risk} | {name} | {alpha:g} | {values.mean():.4f} | {np.quantile(values, 0.95):.4f} "
                f"| {100 * np.mean(values > alpha):.1f} % |"
            )
    if args.plot:
        plot(rows, args.plot)


def plot(rows: list[tuple[str, float, np.ndarray]], path: Path) -> None:
    """Histograms of the realised risk as a share of the promised one."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(3 * len(rows), 2.6), sharey=True)
    for axis, (name, alpha, values) in zip(axes, rows):
        axis.hist(values / alpha, bins=np.linspace(0, 2, 41), color="#4477aa")
        axis.axvline(1, color="#cc3311", label="promised")
        axis.axvline(values.mean() / alpha, color="black", linestyle="--", label="mean")
        axis.set_title(name)
        axis.set_xlabel("realised / promised risk")
    axes[0].set_ylabel("splits")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
