"""Any network: each is built, saved, loaded, trained, exported and run, and answers what its library answers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pebal_core.adaptation.shapes import write_shapes
from pebal_core.class_list import load_class_list
from pebal_core.commands.main import main
from pebal_core.detector import AnomalyDetector
from pebal_core.errors import PebalError
from pebal_core.export import export
from pebal_core.labels import OUTLIER
from pebal_core.losses import pebal_loss
from pebal_core.model_file import load_model, save_model
from pebal_core.model_folders import load_folder
from pebal_core.model_info import ModelInfo
from pebal_core.networks import AnomalyBranch, SegmentationNetwork, build_network, describe_network, register_network

from .model_folders import FOLDERS, NAMES, SMP, write_folder, write_smp_folder
from .scenes import write_folders


def network_of(name: str, tmp_path: Path) -> tuple[SegmentationNetwork, ModelInfo]:
    kind, _, which = name.partition(" ")
    if kind == "transformers":
        return load_folder(str(write_folder(tmp_path / "folder", which)[0]))
    torch.manual_seed(0)
    info = ModelInfo("smp", SMP[which], class_names=list("abcdef"), palette=[[0, 0, 0]] * 6, input_size=[64, 96])
    return build_network("smp", info.num_outputs, **SMP[which]).eval(), info


ALL = [*(f"smp {name}" for name in SMP), *(f"transformers {name}" for name in FOLDERS)]
EXPORTED = [
    *(f"smp {name}" for name in ("linknet", "upernet", "dpt")),
    *(f"transformers {name}" for name in ("beit", "mobilevit")),
]
"""One for each kind of operation; the tests of the commands export an FPN and a SegFormer."""
IMAGE = np.random.default_rng(0).integers(0, 256, (72, 100, 3), np.uint8)


def train_step(network: SegmentationNetwork) -> None:
    """One step of PEBAL's objective on the head, as fine-tuning makes it."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    head = [value for name, value in network.named_parameters() if network.is_head(name)]
    optimizer = torch.optim.SGD(head, lr=0.1)
    target = torch.zeros(2, 64, 96, dtype=torch.long)
    target[:, 20:40, 20:40], target[:, :10] = OUTLIER, 3
    with torch.no_grad():
        features = network.trunk(
            torch.randn(2, 3, 64 if network.stride <= 64 else 128, 96 if network.stride <= 32 else 128)
        )
    logits = F.interpolate(network.head(features), (64, 96))
    pebal_loss(logits, target).total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(map(network.is_head, changed)), "the head alone learns"


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_network_goes_through(name: str, tmp_path: Path) -> None:
    """Build, save, load, train for a step (the network's head, and a branch beside it), run."""
    network, info = network_of(name, tmp_path)
    images = torch.randn(1, 3, 75, 101)
    with torch.inference_mode():
        expected = network(images)
    assert expected.shape == (1, len(info.class_names) + 1, 75, 101)
    path = tmp_path / "model.safetensors"
    save_model(path, network, info)
    loaded, _ = load_model(path)
    with torch.inference_mode():
        assert torch.equal(loaded(images), expected)
    train_step(loaded)
    branched = AnomalyBranch(network, 8).eval()
    with torch.inference_mode():
        assert torch.equal(branched(images), expected), "a fresh branch changes nothing"
    train_step(branched)
    answer = AnomalyDetector.load(path, engine="torch")(IMAGE)
    assert answer.energy.shape == (72, 100) and answer.labels.max() < len(info.class_names)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_a_network_is_exported(name: str, tmp_path: Path) -> None:
    """`export` writes nothing that is further from PyTorch than its tolerance."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    network, info = network_of(name, tmp_path)
    path = tmp_path / "model.safetensors"
    save_model(path, network, info)
    parity = export(path, path.with_suffix(".onnx"), [IMAGE])
    assert parity.labels_equal >= 0.9995
    assert AnomalyDetector.load(path.with_suffix(".onnx"))(IMAGE).energy.shape == (72, 100)


def write_class_list(path: Path) -> Path:
    """The classes of the small models, with ids for their label files."""
    names = [name.strip(" ?") for name in NAMES]
    listed = [{"name": name, "ids": [n + 1], "color": [40 * n] * 3} for n, name in enumerate(names)]
    path.write_text(json.dumps({"classes": listed, "void": [0], "anomaly": [9]}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smp fpn", "transformers segformer"])
def test_a_network_goes_through_every_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convert, fine-tune, evaluate, choose a threshold, adapt to a camera, export, answer."""
    monkeypatch.chdir(tmp_path)
    listed = str(write_class_list(tmp_path / "classes.yaml"))
    library, _, kind = name.partition(" ")
    {"smp": write_smp_folder, "transformers": write_folder}[library](tmp_path / "published", kind)
    assert main(["convert", "published", "model.safetensors", "--classes", listed]) == 0
    root, shapes = write_folders(tmp_path / "hall", load_class_list(listed), 3), tmp_path / "shapes"
    write_shapes(shapes)
    scene = {"layout": "folders", "folder": "hall", "classes": listed}
    training = [
        "train", "--model=model.safetensors", "--out=run", "--data.root=.", f"--data.outliers={shapes}",
        f"--data.scenes={json.dumps([scene])}", f"--data.validation={json.dumps([scene | {'split': 'val'}])}",
        "--data.crop=[64,64]", "--data.validation_every=1", "--lr=0.001", "--trainer.steps=2",
        "--trainer.batch_size=2", "--trainer.validate_every=2", "--trainer.workers=0", "--trainer.accelerator=cpu",
        "--trainer.devices=1",
    ]  # fmt: skip
    assert main(training) == 0, capsys.readouterr().err
    trained = "run/last.safetensors"
    evaluated = [f"--model={trained}", f"--classes={listed}", "--scores=energy", "--device=cpu", "--out=figures"]
    assert main(["benchmark", *evaluated, f"--dataset=hall-val={root}"]) == 0, capsys.readouterr().err
    assert "miou" in json.loads(Path("figures/results.json").read_text())["hall-val"]["segmentation"]
    drive = tmp_path / "drive"
    drive.mkdir()
    for number in range(12):
        picture = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
        cv2.imwrite(str(drive / f"{number:03d}.png"), cv2.resize(picture, (120, 90), interpolation=cv2.INTER_CUBIC))
    calibration = ["calibrate", str(drive), f"--model={trained}", "--out=calibrated.safetensors", "--alpha=0.04"]
    assert main(calibration) == 0, capsys.readouterr().err
    assert main(["adapt", str(drive), "--out=adapted", "--model=calibrated.safetensors", "--samples=20"]) == 0
    adapted = Path("adapted/model.safetensors")
    assert main(["export", str(adapted), "model.onnx", f"--images={drive}", "--input-size", "64", "96"]) == 0
    answers = [AnomalyDetector.load(path, input_size=(64, 96))(IMAGE) for path in (adapted, Path("model.onnx"))]
    assert np.abs(answers[0].energy - answers[1].energy).max() < 1e-2
    assert answers[0].labels.max() < len(NAMES)


@pytest.mark.parametrize("kind", FOLDERS)
def test_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    folder, model = write_folder(tmp_path / "folder", kind)
    network, info = load_folder(str(folder))
    assert info.input_size is not None
    images = torch.randn(2, 3, *info.input_size)
    given = images.flip(1) if kind == "mobilevit" else images  # it takes blue first
    with torch.inference_mode():
        expected = model(given).logits
        logits = network.head(network.trunk(images))[:, :-1]
    if logits.shape != expected.shape:  # UPerNet and DPT enlarge theirs
        logits = F.interpolate(logits, expected.shape[-2:], mode="bilinear", align_corners=kind == "dpt")
    assert expected.std() > 0
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", SMP)
def test_logits_are_those_of_segmentation_models_pytorch(kind: str, tmp_path: Path) -> None:
    """By way of the folder that its save_pretrained writes."""
    model = write_smp_folder(tmp_path / "folder", kind)
    network, info = load_folder(str(tmp_path / "folder"), licence="MIT")
    assert info.class_names == [f"class {n}" for n in range(6)] and info.licence == "MIT"
    images = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        expected, logits = model(images), network(images)[:, :-1]
    assert (logits - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "Mask2Former"}, "There is no architecture 'Mask2Former'; choose one of: Unet"),
        ({"architecture": "unet", "encoder": "nothing"}, "There is no encoder 'nothing'"),
        ({"architecture": "unet", "encoder_weights": "imagenet"}, "has no option 'encoder_weights'"),
        ({"architecture": "unet", "decoder_channels": [10**9] * 5}, "decoder_channels of Unet cannot be"),
        ({"architecture": "dpt", "encoder": "resnet18"}, "Only Timm encoders"),
    ],
    ids=str,
)
def test_an_architecture_that_cannot_be_built_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PebalError, match=message):
        build_network("smp", 7, **arguments)


def test_a_network_that_is_registered_again_is_described_anew() -> None:
    for scale in (0.5, 1.0):
        register_network("my_espnetv2", partial(build_network, "espnetv2", scale=scale))
        described, built = describe_network("my_espnetv2", 4), build_network("my_espnetv2", 4).state_dict()
        assert {name: tensor.shape for name, tensor in described.items()} == {
            name: tensor.shape for name, tensor in built.items()
        }
    described.clear()
    assert describe_network("my_espnetv2", 4), "the caller's copy"
