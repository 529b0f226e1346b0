"""``pebal train``: fine-tunes any network with PEBAL on scenes with pasted outliers.

    pebal prepare-coco COCO_FOLDER outliers/coco
    pebal train --config config/train_espnetv2.yaml --data.root DATA --data.outliers outliers/coco --model MODEL
    torchrun --nproc-per-node 8 -m pebal_core train --config config/train_paper_wr38.yaml …

The output folder gets last.ckpt, log/, and the models best.safetensors and last.safetensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as pl

from ..detector import AnomalyDetector
from ..errors import PebalError
from ..guarantee import Request
from ..model_file import file_sha256, load_model, resolve_model, save_model
from ..model_info import ModelInfo
from ..networks import EnergyShift, KeptClasses
from .branch import add_branch
from .calibrate import CalibrationScene, calibrate
from .emphasis import PixelWeights
from .finetune_config import FinetuneConfig
from .finetune_module import FinetuneModule
from .run import AveragedWeights, find_checkpoint, fit, make_trainer
from .samples import FinetuneData, TrainingSamples, ValidationScenes, anomaly_digests
from .shift import NEAR, add_function, collect_pixels, fit_function

__all__ = ["FinetuneConfig", "finetune"]


def finetune(config: FinetuneConfig) -> dict[str, float]:
    """Train, evaluate, export and calibrate.

    Returns:
        figures of the best model on the validation set as fractions: val_ap, val_fpr95, val_auroc, val_miou and
        val_accuracy.

    Raises:
        PebalError: data, model or options cannot be used, which is found before training starts; or the loss becomes
            NaN during training.

    Examples:
        >>> from pebal_core.training.samples import DataConfig, SceneSource
        >>> scenes = [SceneSource("camvid", "camvid", split) for split in ("train", "val")]
        >>> config = FinetuneConfig("starter", DataConfig(scenes[:1], scenes[1:], "outliers/coco"))
        >>> figures = finetune(config)  # doctest: +SKIP
    """
    pl.seed_everything(config.trainer.seed, workers=True, verbose=False)
    out = Path(config.out)
    network, info = load_model(config.model)
    if isinstance(network, KeptClasses):
        raise PebalError(
            f"{config.model} was fine-tuned with keep_classes; start from the model that it was made from."
        )
    if isinstance(network, EnergyShift):
        raise PebalError(
            f"{config.model} has a function that lowers its energies, from 'pebal adapt' or calm_samples; train the "
            "model that it was made from."
        )
    if config.branch:
        if config.keep_classes or config.trainable or not config.freeze_bn:
            raise PebalError(
                "With branch, the network next to the branch stays frozen; leave keep_classes, trainable and "
                "freeze_bn out."
            )
        network = add_branch(network, info, config.branch_width)
    checkpoint = find_checkpoint(config.trainer, out)
    data = FinetuneData(config.data, config.trainer, info.classes)
    samples, validation = data.samples, data.validation
    weights = PixelWeights(config.emphasis, info.classes)
    if weights.calm:
        weights.check(samples.some_labels(), f"40 samples of {samples.name}")
    info = _describe(info, config, samples.name)
    if learned := anomaly_digests(samples):
        info.training["anomaly_images"] = learned
    module = FinetuneModule(network, info, config)
    averaging = [AveragedWeights(decay=config.ema_decay)] if config.ema_decay else []
    trainer = make_trainer(config.trainer, out, averaging)
    if checkpoint is None:
        trainer.validate(module, datamodule=data, verbose=False)
        if config.keep_accuracy:
            for name in ("best", "last"):
                module.save(name)
    fit(trainer, module, data, checkpoint)
    if module.forgot:
        print(f"{module.forgot} Training ends, and the last state before this is kept.")
    if trainer.is_global_zero and (module.forgot or trainer.global_step == config.trainer.steps):
        if not module.forgot:
            save_model(out / "last.safetensors", module.published.network, info)
        for name in ("best", "last"):
            path = out / f"{name}.safetensors"
            _calibrate(path, validation, config.target_fpr)
            if config.calm_samples and _calm(path, samples, config.calm_samples, weights.calm_labels):
                _calibrate(path, validation, config.target_fpr)
    return module.best


def _calibrate(path: Path, validation: ValidationScenes, target_fpr: float) -> None:
    """Choose the threshold of a model on the validation scenes without pasted objects."""
    detector = AnomalyDetector.load(path)
    scenes = (CalibrationScene(str(n), *validation.clean(n)) for n in range(len(validation)))
    request, source = Request(target_fpr), f"{len(validation)} validation scenes"
    calibrate(detector, scenes, request, "scenes", source, relax=True)
    save_model(path, load_model(path)[0], detector.info)


def _calm(path: Path, samples: TrainingSamples, count: int, calm: Sequence[int]) -> bool:
    """Add a function to a model that lowers the energies of known things; False if it has one or none can be fitted."""
    network, info = load_model(path)
    threshold = info.threshold
    assert threshold is not None
    if isinstance(network, EnergyShift):  # this run was complete before
        return False
    network, info = add_function(network, info)
    pixels = collect_pixels(network, info, samples, count, threshold, calm)
    try:
        network.set_last(*fit_function(pixels, threshold, depth=NEAR))
    except PebalError as error:
        print(f"{error} The energies of {path} stay as they are.")
        return False
    save_model(path, network, info)
    return True


def _describe(info: ModelInfo, config: FinetuneConfig, data: str) -> ModelInfo:
    """The metadata of the fine-tuned model."""
    info = copy.deepcopy(info)
    options = asdict(config)
    # Paths mean nothing to a user of the model.
    for section, key in (
        (options, "model"),
        (options, "out"),
        (options["data"], "root"),
        (options["data"], "outliers"),
    ):
        del section[key]
    info.training = {
        "command": "pebal train",
        "config": options,
        "data": data,
        "started_from": {"sha256": file_sha256(resolve_model(config.model)), "training": info.training},
    }
    info.outlier_statistics = ""  # those of the starting network
    info.input_size = config.input_size or info.input_size
    info.smoothing = config.smoothing
    info.licence = config.licence or info.licence
    return info
