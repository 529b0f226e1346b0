"""What an adaptation is worth on drives that it has not seen.

    pebal adapt drives/a drives/b --out adapted
    python benchmarks/adaptation.py --after adapted/model.safetensors drives/c drives/d

Both models score the frames as they are and with pasted objects, which are textured shapes of families that `pebal
adapt` never trains with. False objects are alarmed regions of at least 100 pixels on the clean frames. The adapted
model is compared at its own threshold, and at the threshold where it finds as many of the pasted objects as the model
from before does at its stored one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from pebal_core.adaptation.check import Figures, energies, figures
from pebal_core.adaptation.shapes import HELD_BACK, write_shapes
from pebal_core.data.coco import OutlierSet
from pebal_core.detector import AnomalyDetector
from pebal_core.errors import PebalError
from pebal_core.footage import FrameSource
from pebal_core.objects import IgnoreMask

SIZE = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="drives without anomalies: videos, recordings or folders of images")
    parser.add_argument("--before", default="starter", help="the model that the adaptation started from")
    parser.add_argument("--after", required=True, help="the adapted model")
    parser.add_argument("--frames", type=int, default=40, help="look at this many frames, evenly spread")
    args = parser.parse_args()
    images = spread(args.sources, args.frames)
    models = {name: AnomalyDetector.load(getattr(args, name), engine="torch") for name in ("before", "after")}
    before, after = models["before"], models["after"]
    if before.info.threshold is None or after.info.threshold is None:
        raise PebalError("Both models need a stored threshold; choose one with 'pebal calibrate'.")
    base = [before(image).labels for image in images]
    mask = IgnoreMask.decode(after.info.ego_mask)
    ego = mask.at(*images[0].shape[:2]) if mask is not None else None
    with tempfile.TemporaryDirectory() as folder:
        write_shapes(Path(folder), seed=1)
        held = OutlierSet.open(folder).hold_back(HELD_BACK)[1]
        runs = {name: energies(model, images, base, ego, held) for name, model in models.items()}
    first = figures(runs["before"], before.info.threshold, SIZE)
    equal = figures(runs["after"], runs["after"].threshold_of(first.recall), SIZE)
    rows = {
        "before": first,
        "after, at equal recall": equal,
        "after, at its threshold": figures(runs["after"], after.info.threshold, SIZE),
    }
    print(f"{len(images)} frames\n")
    print("| | threshold | false objects per frame | alarmed | recall | AP |\n|---|---|---|---|---|---|")
    for name, values in rows.items():
        print(row(name, values))


def spread(sources: list[str], count: int) -> list[np.ndarray]:
    """At most so many images of all sources together, evenly spread over each; H×W×3 uint8 RGB."""
    images: list[np.ndarray] = []
    for source in map(FrameSource, sources):
        share = -(-count // len(sources))
        step = max(1, (source.count or share) // share)
        images += [frame.image for number, frame in enumerate(source) if number % step == 0][:share]
    return images


def row(name: str, values: Figures) -> str:
    return (
        f"| {name} | {values.threshold:.2f} | {values.false_objects:.2f} | {100 * values.alarmed:.2f} % | "
        f"{values.recall:.2f} | {values.ap:.3f} |"
    )


if __name__ == "__main__":
    main()
