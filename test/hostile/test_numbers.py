"""Every number of every command and configuration at and beyond its bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pebal_core.commands.main import main
from pebal_core.training.finetune import FinetuneConfig
from pebal_core.training.pretrain import PretrainConfig

from .commands import refused

OPTIONS = {
    "predict x --out=y": {
        "frames": ["-1", "1.5", "1e3", "nan", "", "9" * 400], "batch": ["0", "-1"], "cores": ["0", "-1", "1.5"],
    },
    "triage x --out=y": {"top": ["0", "-1"], "rate": ["-1", "nan"], "batch": ["0", "1025"], "cores": ["0", "nan"]},
    "benchmark --dataset=a=b --out=y": {
        "cores": ["0", "-1", "nan", "2.5"], "inlier-ids": ["-1", "256", "0.5"], "anomaly-ids": ["256"],
        "void-ids": ["-1"],
    },
    "calibrate x --out=y": {
        "alpha": ["0", "1", "-1", "nan"], "object-alpha": ["0", "1", "nan"], "object-size": ["0", "1.5"],
        "clip": ["0", "2", "nan"], "confidence": ["0", "1", "nan"], "block": ["0", "-1", "nan"],
        "interval": ["-1", "nan", "inf"], "frames": ["0", "-3"],
    },
    "adapt x --out=y": {
        "samples": ["0", "-1", "1.5"], "interval": ["0", "-1", "nan"], "block": ["0", "inf"], "frames": ["0", "-3"],
        "alpha": ["0", "1", "nan"],
    },
    "convert a b.safetensors": {"seed": ["-1", "4294967296", "x"]},
    "prepare-coco a b": {"min-side": ["-1", "99999999"]},
    "ablate": {"fixed-penalty": ["0", "-1", "nan"]},
    "suggest-margins": {"samples": ["0", "-1"]},
}  # fmt: skip
SIZES = ["0 5", "1 1", "-1 -1", "15 64", "64 8193", "8193 64", "1000000000 1000000000", "64.5 64", "x y", "64 nan"]


@pytest.mark.parametrize("command", OPTIONS)
def test_options_of_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option, values in OPTIONS[command].items():
        for value in values:
            sentence = refused([*command.split(), f"--{option}={value}"], capsys)
            assert option in sentence and " from " in sentence, sentence


@pytest.mark.parametrize("size", SIZES)
def test_input_sizes(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((32, 32, 3), np.uint8))
    commands = (
        ["predict", str(tmp_path), f"--out={tmp_path / 'out'}"],
        ["calibrate", str(tmp_path), f"--out={tmp_path / 'c.safetensors'}"],
        ["pack", str(tmp_path), "--format=fishyscapes", f"--out={tmp_path / 'p'}"],
        ["export", "starter", str(tmp_path / "x.onnx")],
    )
    for command in commands:
        sentence = refused([*command, "--input-size", *size.split()], capsys)
        assert "input size" in sentence or "--input-size" in sentence, sentence


BEYOND: dict[str, dict[str, list[Any]]] = {
    "pretrain": {
        "steps": [0, -1, 1.5, "many", 10**10], "batch_size": [0, -1], "accumulate": [0], "clip": [-1, ".nan", ".inf"],
        "validate_every": [0], "checkpoint_every": [0], "stop_after": [0], "workers": [-1, 5000], "seed": [-1, 2**32],
        "devices": [0, -2], "nodes": [0], "crop": ["[0, 0]", "[32]", "[32, 32, 32]", "[64, 100000]"],
        "scale": ["[0, 1]", "[-1, 1]", "[.nan, 1]", "[1]"], "color": [-0.1, 2, ".nan"], "camera": [1.1],
        "encoder_lr": [-1, ".inf"], "lr": [-1, ".nan"], "weight_decay": [-1], "class_balance": [-1, 2],
        "dice": [-1],
        "ema_decay": [-0.1, 1.1, ".nan"],
    },
    "train": {
        "lr": [0, -1, ".nan"], "backbone_lr": [-1], "decay_power": [-1], "decay_steps": [0], "min_lr": [-1],
        "ema_decay": [2], "input_size": ["[0, 5]", "[8]", "[64, 64, 64]", "[64, 99999]"], "target_fpr": [0, 1, ".nan"],
        "trainer.steps": [0], "trainer.seed": [-1], "data.outlier_share": [-1, 1, ".nan"], "data.crop": ["[0, 0]"],
        "data.scale": ["[]", "[-1, 1]"], "data.mirror": [2], "data.color": [-1], "data.camera": [7],
        "data.validation_every": [0, -4], "data.rich_mix.count": ["[0, 1]", "[1, 100000]", "[3, 1]"],
        "data.rich_mix.height": ["[.nan, 1]", "[1]"], "data.rich_mix.anywhere": [2], "data.rich_mix.tilt": [-1, 999],
        "data.rich_mix.small": [-1, 2], "data.rich_mix.pieces": [-0.1, 1.5],
        "data.rich_mix.small_height": ["[0, 1]", "[1]"], "data.rich_mix.known": [-1],
        "branch_width": [0, -1], "emphasis.calm_weight": [0, ".nan"], "emphasis.size_exponent": [-1, 2],
        "emphasis.labelled_anomalies": [0, ".nan"], "keep_accuracy": [-1, 2], "calm_samples": [-1],
        "data.rich_mix.blur": [-1], "data.rich_mix.distractors": [-1, ".inf"], "data.rich_mix.harmonise": [2],
        "loss.penalty": [0, -1, ".nan"], "loss.penalty_floor": [0], "loss.inlier_margin": [".nan", 5000],
        "loss.outlier_margin": [-5000, -100], "loss.energy_weight": [-1], "loss.hinge_weight": [".inf"],
        "loss.smoothness_weight": [-1], "loss.sparsity_weight": [".nan"], "loss.entropy_weight": [-1],
    },
}  # fmt: skip
BASE = {
    "pretrain": ["pretrain", "--data=nowhere"],
    "train": ["train", "--model=nonesuch", "--data.scenes=[]", "--data.validation=[]", "--data.outliers=nowhere"],
}


@pytest.mark.parametrize("command", BEYOND)
def test_fields_of_configurations(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for field, values in BEYOND[command].items():
        for value in values:
            sentence = refused([*BASE[command], f"--{field}={value}"], capsys)
            assert field.rpartition(".")[2] in sentence, (field, value, sentence)


@pytest.mark.parametrize("text", ["{layout: camvid, folder: x, height: 0}", "{layout: camvid, folder: x, repeat: 0}"])
def test_fields_of_scene_sources(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused([*BASE["train"], f"--data.scenes=[{text}]"], capsys)
    assert "must lie between" in sentence


def test_every_number_of_the_configurations_is_in_this_table() -> None:
    """A new field needs a range, and a line above."""
    import dataclasses
    import typing

    def numbers(owner: type, prefix: str = "") -> set[str]:
        hints, found = typing.get_type_hints(owner), set()
        for field in dataclasses.fields(owner):
            kinds = {hints[field.name], *typing.get_args(hints[field.name])}
            if dataclasses.is_dataclass(hints[field.name]):
                found |= numbers(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")
            elif kinds & {int, float}:
                found.add(f"{prefix}{field.name}")
        return found

    assert numbers(PretrainConfig) == set(BEYOND["pretrain"])
    tested = set(BEYOND["train"]) | {f"trainer.{name}" for name in BEYOND["pretrain"]}
    left = numbers(FinetuneConfig) - tested
    assert left <= {"data.rich_mix.anywhere_height", "data.rich_mix.shapes", "data.rich_mix.color"}, left


def test_the_configurations_that_come_along_are_within_their_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(__file__).resolve().parents[2] / "config"
    for name in ("train_starter", "train_espnetv2", "train_paper_wr38", "train_resnet101", "ablation"):
        command = "ablate" if name == "ablation" else "train"
        arguments = [command, f"--config={config / name}.yaml", "--model=nonesuch"]
        assert main(arguments) == 1
        assert "There is no model 'nonesuch'" in capsys.readouterr().err
    assert main(["pretrain", f"--config={config}/pretrain_camvid.yaml", "--data=nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
