"""What float16 costs in a submission: figures from float32 energies, from the map of `pebal pack`, from plain float16.

python benchmarks/submission_order.py RoadAnomaly21=FOLDER --input-size 360 640
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from pebal_core.benchmark.submissions import SAMPLE, OrderKeepingFloat16, sample_scores
from pebal_core.data.anomaly_sets import open_set
from pebal_core.detector import AnomalyDetector
from pebal_core.metrics.pooled import PooledMetrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="NAME=FOLDER of an anomaly set")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--input-size", type=int, nargs=2, metavar=("H", "W"))
    args = parser.parse_args()
    name, _, folder = args.dataset.partition("=")
    data = open_set(name, folder)
    detector = AnomalyDetector.load(args.model, input_size=tuple(args.input_size) if args.input_size else None)
    energies, samples = [], []
    for index in range(len(data)):
        energies.append(detector(data.load(index).image).energy)
        samples.append(sample_scores(energies[-1], SAMPLE // len(data), seed=index))
    to_float16 = OrderKeepingFloat16(np.concatenate(samples))
    kinds: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "float32": np.asarray,
        "as packed": to_float16,
        "energies as float16": lambda energy: energy.astype(np.float16),
    }
    metrics = {kind: PooledMetrics() for kind in kinds}
    for index, energy in enumerate(energies):
        for kind, store in kinds.items():
            target = data.load(index).target
            metrics[kind].update(store(energy).astype(np.float32), target, name=str(data.pairs[index][0]))
    for kind, pooled in metrics.items():
        result = pooled.compute()
        print(f"{kind:20} AUROC {result.auroc:.6f}  AP {result.ap:.6f}  FPR95 {result.fpr95:.6f}")


if __name__ == "__main__":
    main()
