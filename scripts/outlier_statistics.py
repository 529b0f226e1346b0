"""Stores in a model file how outliers of its training look to it, so that `pebal adapt` leaves such outliers alone.

    python scripts/outlier_statistics.py pebal_core/models/starter.safetensors --data DATA --half

DATA holds CamVid and the outliers of `pebal prepare-coco`, as for config/train_starter.yaml. The statistics are the
mean and the covariance of the features over pixels of outliers that are pasted into training scenes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pebal_core.data.outlier_mix import RichMix
from pebal_core.model_file import load_model, save_model
from pebal_core.training.samples import DataConfig, SceneSource, TrainingSamples, open_outliers
from pebal_core.training.shift import OutlierStatistics, add_function, collect_pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the model file, which is changed in place")
    parser.add_argument("--data", type=Path, required=True, help="folder with camvid and outliers/coco")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--half", action="store_true", help="store kernels as float16, as in shipped models")
    args = parser.parse_args()
    network, info = load_model(args.model)
    config = DataConfig(
        root=str(args.data),
        scenes=[SceneSource("camvid", "camvid", "train")],
        validation=[],
        outliers=str(args.data / "outliers/coco"),
        held_back=["elephant", "dog", "suitcase", "teddy bear", "cat", "chair"],
        rich_mix=RichMix(height=[0.15, 3.5], anywhere=0.35, anywhere_height=[0.05, 0.9]),
        outlier_share=0.6,
        crop=[320, 384],
        scale=[0.75, 2.0],
        color=0.4,
        camera=0.2,
    )
    samples = TrainingSamples(config, open_outliers(config)[0], 0, info.classes)
    shifted, _ = add_function(network, info)
    pixels = collect_pixels(shifted, info, samples, args.samples, float("inf"))
    info.outlier_statistics = OutlierStatistics.of(pixels).encode()
    save_model(args.model, network, info, half=args.half)


if __name__ == "__main__":
    main()
