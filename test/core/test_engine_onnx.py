"""Exported models say what PyTorch says; what cannot be had is an error; PyTorch is not needed to run them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pebal_core import export as exporting
from pebal_core.commands.main import main
from pebal_core.detector import AnomalyDetector
from pebal_core.engines import selection
from pebal_core.engines.onnx import OnnxEngine, read_metadata
from pebal_core.engines.selection import model_info
from pebal_core.engines.torch import TorchEngine
from pebal_core.errors import PebalError
from pebal_core.export import Parity, compare, export, to_onnx
from pebal_core.model_file import file_sha256, load_model, onnx_with_info, save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import build_network
from pebal_core.onnx_pooling import TRANSLATIONS

from .sample_networks import network_of, photograph

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"encoder": "resnet18", "decoder_channels": 16}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with its exported form beside it; the image's own size."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    torch.manual_seed(0)
    info = ModelInfo("deeplabv3plus", TINY, threshold=-3.5, smoothing=True)
    save_model(path, build_network("deeplabv3plus", **TINY), info)
    export(path, path.with_suffix(".onnx"), [photograph(120, 200)[0]])
    return path


@pytest.fixture(scope="module")
def onnx_path(model_path: Path) -> Path:
    return model_path.with_suffix(".onnx")


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (33, 17), (160, 96)])
@pytest.mark.parametrize("count", [1, 3])
def test_any_size_and_batch(model_path: Path, onnx_path: Path, size: tuple[int, int], count: int) -> None:
    images = list(photograph(*size, count))
    expected = AnomalyDetector.load(model_path, engine="torch")(images)
    detector = AnomalyDetector.load(onnx_path)
    for answer, other in zip(detector(images), expected, strict=True):
        assert answer.labels.dtype == np.uint8 and answer.energy.dtype == np.float32
        np.testing.assert_allclose(answer.energy, other.energy, atol=1e-3)
        assert (answer.labels == other.labels).mean() >= 0.999
    assert set(detector.timings) == {"preprocess", "inference", "postprocess"}


def test_an_answer_outlives_the_next(onnx_path: Path) -> None:
    detector = AnomalyDetector.load(onnx_path)
    first, second = photograph(64, 96, 2)
    result = detector(first)
    kept = result.labels.copy(), result.energy.copy()
    detector(second)
    assert (result.labels == kept[0]).all() and (result.energy == kept[1]).all()


@pytest.mark.parametrize(
    ("name", "input_size"),
    [
        ("efficientnet_lite0", (80, 112)),
        ("wide_resnet38", (64, 96)),
        ("shift on two heads", (100,)),  # shrinks the first image only
        ("branch on espnetv2", (72, 100)),  # with all of an ESPNetv2 in it
    ],
)
def test_every_kind_of_network(name: str, input_size: tuple[int, ...] | None) -> None:
    """The graph shrinks or enlarges the image as the PyTorch engine does, and brings the answer back."""
    info = ModelInfo(name, input_size=None if input_size is None else list(input_size), smoothing=False)
    exported = OnnxEngine(onnx_with_info(to_onnx(network_of(name), info, "fp32"), info))
    engine = TorchEngine(network_of(name), info, "cpu", input_size=input_size, smoothing=False)
    images = [photograph(height, width)[0] for height, width in ((96, 160), (61, 83))]
    parity = compare(engine, exported, images, [])
    assert parity.energy_max <= 1e-3 and parity.labels_equal >= 0.999


class Pooling(nn.Module):
    """Adaptive pooling as ESPNetv2 uses it: to sizes that follow from the image's, to fixed ones, and to one pixel."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        smaller = max(math.ceil(x.shape[-2] * 0.3), 5), max(math.ceil(x.shape[-1] * 0.3), 5)
        return tuple(F.adaptive_avg_pool2d(x, size) for size in (smaller, (7, 3), (1, 1)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_adaptive_pooling(dynamic: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    free = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        Pooling().eval(),
        (torch.zeros(2, 3, 20, 31),),
        dynamic_shapes=({2: free, 3: free} if dynamic else {},),
        custom_translation_table=TRANSLATIONS,
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in ((20, 31), (40, 62), (9, 17)) if dynamic else ((20, 31),):
        x = torch.randn(2, 3, *size, generator=generator)
        for pooled, expected in zip(session.run(None, {session.get_inputs()[0].name: x.numpy()}), Pooling()(x)):
            np.testing.assert_allclose(pooled, expected.numpy(), atol=1e-6)


def test_everything_travels_along(model_path: Path, onnx_path: Path) -> None:
    info, original = model_info(onnx_path), model_info(model_path)
    assert replace(info, export={}) == original
    assert (info.export["precision"], info.export["sha256"]) == ("fp32", file_sha256(model_path))
    assert info.export["parity"]["energy_max"] <= 1e-3
    content = onnx_path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content, "paths of the machine it was exported on"


def test_calibration_changes_an_exported_model(onnx_path: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "road.png"), photograph(64, 96)[0])
    out = tmp_path / "calibrated.onnx"
    assert main(["calibrate", str(tmp_path), "--model", str(onnx_path), "--out", str(out), "--alpha", "0.04"]) == 0
    assert model_info(out).threshold != model_info(onnx_path).threshold
    image = photograph(64, 96)[0]
    assert (AnomalyDetector.load(out)(image).energy == AnomalyDetector.load(onnx_path)(image).energy).all()


def test_the_command_compares_and_says_how_far(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In fp16, with a size of its own and average precision."""
    image = photograph(96, 160)[0]
    for folder, pixels in (("images", image), ("labels", np.eye(96, 160, dtype=np.uint8))):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "one.png"), pixels)
    out = tmp_path / "half.onnx"
    words = [str(model_path), str(out), "--precision", "fp16", "--input-size", "64", "96"]
    assert main(["export", *words, "--images", str(tmp_path / "images"), "--labelled", f"own={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "fp16" in said and "of the labels are equal" in said and "AP on 1 labelled images" in said
    info = model_info(out)
    assert info.input_size == [64, 96] and info.export["precision"] == "fp16"
    assert out.stat().st_size < 0.6 * model_path.stat().st_size
    assert AnomalyDetector.load(out, precision="fp16")(image).energy.shape == (96, 160)


def test_a_model_that_is_too_far_is_not_written(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A graph of other weights, so that the comparison itself is tried."""
    torch.manual_seed(1)
    network, info = build_network("deeplabv3plus", **TINY).eval(), model_info(model_path)
    content = to_onnx(network, info, "fp32")
    monkeypatch.setattr(exporting, "to_onnx", lambda *_: content)
    cv2.imwrite(str(tmp_path / "one.png"), photograph(64, 96)[0])
    out = tmp_path / "out" / "wrong.onnx"
    assert main(["export", str(model_path), str(out), "--images", str(tmp_path)]) == 1
    assert "was not written, because it deviates too far from PyTorch: an energy differs by" in capsys.readouterr().err
    assert not out.parent.exists()


def test_every_measure_can_fail() -> None:
    allowed = exporting.TOLERANCES["fp32"]
    good = Parity(1, 1e-4, 1e-6, 1.0, ap_torch=0.5, ap=0.501)
    assert not good.faults(allowed)
    for bad in (
        replace(good, energy_max=1.0),
        replace(good, energy_max=float("nan")),
        replace(good, energy_mean=0.01),
        replace(good, labels_equal=0.9),
        replace(good, ap=0.51),
    ):
        assert len(bad.faults(allowed)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "torch"}, "runs only on onnxruntime"),
        ({"device": "tpu"}, "There is no device 'tpu'"),
        ({"precision": "fp16"}, "computes in fp32. For fp16, export it with --precision fp16"),
        ({"input_size": (64, 96)}, "For another size, export it with --input-size 64 96"),
        ({"smoothing": False}, "Set smoothing to auto"),
    ],
)
def test_what_the_graph_cannot_do_is_an_error(onnx_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PebalError, match=message):
        AnomalyDetector.load(onnx_path, **options)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_a_device_that_the_package_has_not_is_named(onnx_path: Path, device: str) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("the installed ONNX Runtime has CUDA")
    with pytest.raises(
        PebalError, match=f"'{device}' is not available, because the installed package onnxruntime .*onnxruntime-gpu"
    ):
        AnomalyDetector.load(onnx_path, device=device)


def test_damaged_and_foreign_files_are_named(onnx_path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "cut.onnx"
    damaged.write_bytes(onnx_path.read_bytes()[:-1000])
    with pytest.raises(PebalError, match=r"cut\.onnx is damaged or is not an ONNX model"):
        AnomalyDetector.load(damaged)
    model = onnx.load(onnx_path)
    del model.metadata_props[:]
    with pytest.raises(PebalError, match="was not written by 'pebal export'"):
        read_metadata(model.SerializeToString(), "foreign.onnx")
    with pytest.raises(PebalError, match=r"needs the \.safetensors file"):
        load_model(onnx_path)


def test_auto_measures_where_both_can_and_says_so(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "NOMINAL_SIZE", (64, 96))
    detector = AnomalyDetector.load(model_path)
    assert detector.reason.startswith(f"The engine is {detector.engine_name}: ")
    assert "ms of torch on cpu" in detector.reason and "ms of onnxruntime on cpu" in detector.reason
    assert AnomalyDetector.load(model_path, engine="onnxruntime").engine_name == "onnxruntime"
    assert AnomalyDetector.load(model_path, engine="torch").reason == ""


def test_auto_takes_torch_where_the_exported_model_does_not_fit(model_path: Path, tmp_path: Path) -> None:
    half = AnomalyDetector.load(model_path, precision="bf16")
    assert half.engine_name == "torch" and "For bf16, export it" in half.reason
    other_size = AnomalyDetector.load(model_path, input_size=(64, 96))
    assert other_size.engine_name == "torch" and "--input-size 64 96" in other_size.reason
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(model_path.read_bytes())
    assert AnomalyDetector.load(alone).reason == ""
    with pytest.raises(PebalError, match=r"There is no alone\.onnx next to .*pebal export"):
        AnomalyDetector.load(alone, engine="onnxruntime")
    network, info = load_model(model_path)
    save_model(alone, network, replace(info, threshold=-1.0))
    alone.with_suffix(".onnx").write_bytes(model_path.with_suffix(".onnx").read_bytes())
    assert "was not made from the present alone.safetensors" in AnomalyDetector.load(alone).reason


TORCH = ("torch", "torchvision", "timm", "segmentation_models_pytorch", "safetensors", "onnx", "onnxscript")
"""What a machine that only runs exported models has no use for."""


def run_without(blocked: Sequence[str], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which these packages cannot be imported."""
    code = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Blocked())
{code}"""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=240)


COMMAND = "from pebal_core.commands.main import main\nsys.exit(main(sys.argv[1:]))"


def test_predict_needs_no_torch(onnx_path: Path, tmp_path: Path) -> None:
    image = photograph(64, 96)[0]
    cv2.imwrite(str(tmp_path / "road.png"), image[..., ::-1])
    words = [str(tmp_path / "road.png"), "--model", str(onnx_path), "--out", str(tmp_path / "out")]
    ran = run_without(TORCH, COMMAND, "predict", *words)
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_allclose(
        np.load(tmp_path / "out/energy/road.npy"), AnomalyDetector.load(onnx_path)(image).energy, atol=1e-4
    )


def test_the_node_needs_no_torch(onnx_path: Path) -> None:
    """All that the node imports, and the detector it makes."""
    pytest.importorskip("rclpy")
    code = """
import json
import pebal_ros.anomaly_node
from pebal_core.detector import AnomalyDetector
from pebal_core.engines import selection
detector = AnomalyDetector.load(sys.argv[1])
detector.warm_up(64, 96)
print(json.dumps([detector.engine_name, sorted(name for name in sys.modules if name.startswith("torch"))]))
"""
    ran = run_without(TORCH, code, str(onnx_path))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == ["onnxruntime", []]


def test_without_onnx_runtime_it_says_what_to_install(onnx_path: Path) -> None:
    ran = run_without(["onnxruntime"], COMMAND, "info", str(onnx_path))
    assert ran.returncode == 1
    assert ran.stderr.startswith("pebal info: ONNX Runtime is not installed. Run: pip install onnxruntime")
