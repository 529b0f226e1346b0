"""Fine-tune a model on annotated images in images/train and images/val, annotations in labels/train and labels/val.

    python examples/fine_tune_folder.py FOLDER classes.yaml OUTLIERS model.safetensors OUT [STEPS [HEIGHT WIDTH]]

OUTLIERS is a folder that `pebal prepare-coco` wrote. The model must have the classes of the list. HEIGHT and WIDTH
are the size of a training crop.
"""

from __future__ import annotations

import sys

from pebal_core.training.finetune import FinetuneConfig, finetune
from pebal_core.training.run import RunConfig
from pebal_core.training.samples import DataConfig, SceneSource


def main(
    folder: str,
    classes: str,
    outliers: str,
    model: str,
    out: str,
    steps: str = "1000",
    height: str = "384",
    width: str = "512",
) -> None:
    scenes, validation = (SceneSource("folders", folder, split, classes=classes) for split in ("train", "val"))
    data = DataConfig([scenes], [validation], outliers, root=".", crop=[int(height), int(width)])
    run = RunConfig(steps=int(steps), batch_size=4, validate_every=int(steps), workers=0)
    best = finetune(FinetuneConfig(model, data, out, run, lr=1e-4))
    print(f"{out}/best.safetensors: AP {best['val_ap']:.3f} on pasted outliers, mIoU {best['val_miou']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
