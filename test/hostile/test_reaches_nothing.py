"""No file makes the program go to the network, open another file, start a process or import a module."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from pebal_core.benchmark.evaluate import peak_memory_mb
from pebal_core.detector import AnomalyDetector
from pebal_core.errors import PebalError
from pebal_core.model_file import METADATA_KEY, load_model, resolve_model
from pebal_core.networks import build_network

from .watch import watched

FOREIGN = [
    "tu-hf-hub:timm/resnet18.a1_in1k",
    "tu-hf_hub:timm/resnet18",
    "tu-HF-HUB:x/y",
    "tu-local-dir:/etc",
    "tu-timm/resnet18",
    "tu-/etc/passwd",
    "tu-../../x",
    "tu-resnet18.a1_in1k",
    "hf-hub:x/y",
    "smp-hub:x/y",
    "https://example.org/x",
    "tu-",
    "",
    "resnet18:x",
    None,
    7,
    ["resnet18"],
    {"class_path": "os.system"},
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def with_info(path: Path, **changes: Any) -> Path:
    """The starter with another description."""
    with safe_open(resolve_model("starter"), framework="numpy") as archive:
        tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        metadata = dict(archive.metadata())
    info = json.loads(metadata[METADATA_KEY])
    metadata[METADATA_KEY] = json.dumps({**info, **changes})
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("encoder", FOREIGN, ids=str)
def test_an_encoder_comes_from_the_installed_libraries(encoder: Any, tmp_path: Path) -> None:
    path = with_info(tmp_path / "m.safetensors", network_args={"encoder": encoder})
    with watched() as watch, pytest.raises(PebalError, match="There is no encoder") as refused:
        load_model(path)
    assert len(str(refused.value).splitlines()) == 1
    assert watch.reached == [] and set(watch.opened) <= {str(path)}


@pytest.mark.parametrize("name", ["pretrained_cfg", "checkpoint_path", "encoder_weights", "cache_dir", "weights"])
def test_no_other_argument_reaches_the_libraries(name: str, tmp_path: Path) -> None:
    path = with_info(tmp_path / "m.safetensors", network_args={"encoder": "resnet18", name: "/etc/passwd"})
    with watched() as watch, pytest.raises(PebalError, match="cannot be built with"):
        load_model(path)
    assert watch.reached == [] and set(watch.opened) <= {str(path)}


@pytest.mark.parametrize(
    "changes",
    [
        {"output_stride": 3},
        {"output_stride": "16"},
        {"decoder_channels": 10**9},
        {"decoder_channels": -1},
        {"decoder_channels": 2.5},
        {"decoder_channels": True},
    ],
    ids=str,
)
def test_every_number_of_a_network_has_its_range(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PebalError, match=next(iter(changes))):
        load_model(with_info(tmp_path / "m.safetensors", network_args={"encoder": "resnet18", **changes}))
    with pytest.raises(PebalError, match="scale of an ESPNetv2"):
        build_network("espnetv2", scale=1e9)


def test_a_network_larger_than_its_file_is_never_made(tmp_path: Path) -> None:
    """Six billion parameters would take 27 GB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_memory_mb()
    for encoder in ("tu-vit_7b_patch16_dinov3", "tu-eva_giant_patch14_224", "tu-convnextv2_huge"):
        with pytest.raises(PebalError):
            load_model(with_info(tmp_path / "m.safetensors", network_args={"encoder": encoder}))
    assert peak_memory_mb() - before < 2000


BAD_INFO: list[dict[str, Any]] = [
    {"network": "os.system"},
    {"network": ""},
    {"network": 3},
    {"network": "\x1b[31m"},
    {"network_args": []},
    {"network_args": {"network": "kept_classes", "own_trunk": True}, "network": "kept_classes"},
    {"class_names": []},
    {"class_names": "road"},
    {"class_names": ["a"] * 255},
    {"class_names": ["[/red]"]},
    {"class_names": ["\x1b[2J"]},
    {"class_names": [None]},
    {"palette": [[0, 0]]},
    {"palette": [[0, 0, 256]]},
    {"palette": 5},
    {"mean": [0, 0]},
    {"mean": ["a", 0, 0]},
    {"mean": [float("nan")] * 3},
    {"std": [0, 1, 1]},
    {"std": None},
    {"input_size": [0, 5]},
    {"input_size": [-1, -1]},
    {"input_size": [50000, 50000]},
    {"input_size": [64.0, 64]},
    {"input_size": "big"},
    {"smoothing": "yes"},
    {"threshold": float("inf")},
    {"threshold": 10**400},
    {"threshold": "0"},
    {"threshold": True},
    {"energy_range": [0, 0]},
    {"energy_range": [1, 0]},
    {"energy_range": [float("nan"), 0]},
    {"threshold_note": 3},
    {"training": []},
    {"licence": {}},
    {"origin": None},
    {"export": "fp32"},
    {"format": 99},
    {"format": "x"},
    {"format": None},
]


@pytest.mark.parametrize("changes", BAD_INFO, ids=lambda changes: f"{changes!s:.60}")
def test_every_value_of_a_description_is_checked(changes: dict[str, Any], tmp_path: Path) -> None:
    path = with_info(tmp_path / "m.safetensors", **changes)
    with watched() as watch, pytest.raises(PebalError) as refused:
        load_model(path)
    assert len(str(refused.value).splitlines()) == 1
    assert watch.reached == [] and set(watch.opened) <= {str(path)}


def test_what_is_fine_opens_nothing_but_the_model(tmp_path: Path) -> None:
    path = with_info(tmp_path / "m.safetensors")
    load_model(path)  # imports what loading needs
    with watched() as watch:
        AnomalyDetector.load(path, "torch", "cpu")(np.zeros((32, 32, 3), np.uint8))
    allowed = {str(path), "/sys/fs/cgroup/cpu.max"}
    opened = {name for name in watch.opened if not name.startswith("/proc")}
    # Versions of installed packages are read from their metadata, and Python looks for that in its own archive, too.
    installed = {name for name in opened if name.endswith(("dist-info/METADATA", ".zip"))}
    assert watch.reached == [] and opened - installed <= allowed


def test_every_kind_of_encoder_is_built_without_network_or_files() -> None:
    for encoder in (
        "resnet18",
        "mit_b0",
        "tu-tf_efficientnet_lite0",
        "tu-mobilenetv3_small_050",
        "timm-efficientnet-b0",
    ):
        build_network("deeplabv3plus", encoder=encoder)  # imports
        with watched() as watch:
            build_network("deeplabv3plus", encoder=encoder)
        assert watch.reached == [] and watch.opened == [], encoder


# ---- ONNX ----


@pytest.fixture(scope="module")
def onnx_graph() -> Any:
    """A graph from images to labels and energy that holds one tensor."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    h, t = onnx.helper, onnx.TensorProto
    weight = onnx.numpy_helper.from_array(np.ones((3, 3), np.float32), "weight")
    nodes = [
        h.make_node("Cast", ["images"], ["pixels"], to=t.FLOAT),
        h.make_node("MatMul", ["pixels", "weight"], ["mixed"]),
        h.make_node("ReduceSum", ["mixed", "axes"], ["energy"], keepdims=0),
        h.make_node("Cast", ["energy"], ["labels"], to=t.UINT8),
    ]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("images", t.UINT8, ["n", "h", "w", 3])],
        [
            h.make_tensor_value_info("labels", t.UINT8, ["n", "h", "w"]),
            h.make_tensor_value_info("energy", t.FLOAT, ["n", "h", "w"]),
        ],
        [weight, onnx.numpy_helper.from_array(np.array([3]), "axes")],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10)


def onnx_file(path: Path, model: Any) -> Path:
    from pebal_core.model_info import ModelInfo

    info = ModelInfo("espnetv2", export={"precision": "fp32"})
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=info.to_json())
    path.write_bytes(model.SerializeToString())
    return path


def copy_of(model: Any) -> Any:
    new = type(model)()
    new.CopyFrom(model)
    return new


def test_external_data_of_an_onnx_file_is_never_opened(onnx_graph: Any, tmp_path: Path) -> None:
    fine = onnx_file(tmp_path / "fine.onnx", copy_of(onnx_graph))
    detector = AnomalyDetector.load(fine)
    assert detector(np.ones((16, 16, 3), np.uint8)).energy.max() == 9, "the trap itself must work"
    (tmp_path / "weights.bin").write_bytes(np.full(9, 2, np.float32).tobytes())
    for location in ("weights.bin", "/etc/passwd", "../../etc/passwd", f"{tmp_path}/weights.bin"):
        model = copy_of(onnx_graph)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        tensor.external_data.add(key="location", value=location)
        path = onnx_file(tmp_path / "m.onnx", model)
        for load in (lambda path=path: AnomalyDetector.load(path), lambda path=path: _benchmark(path)):
            with watched() as watch, pytest.raises(PebalError, match="other files, which are never opened"):
                load()
            assert set(watch.opened) <= {str(path)} and watch.reached == []


def _benchmark(path: Path) -> None:
    from pebal_core.benchmark.onnx_logits import load_onnx

    load_onnx(path)


def test_external_data_is_found_wherever_it_hides(onnx_graph: Any, tmp_path: Path) -> None:
    import onnx

    hidden = onnx.TensorProto(dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="weights.bin")
    branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["c"], value=hidden)], "b", [], [])
    nodes = [
        onnx.helper.make_node("Constant", [], ["c"], value=hidden),
        onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch),
        onnx.helper.make_node("Loop", [], ["y"], body=branch),
    ]
    for node in nodes:
        model = copy_of(onnx_graph)
        model.graph.node.append(node)
        with pytest.raises(PebalError, match="other files, which are never opened"):
            AnomalyDetector.load(onnx_file(tmp_path / "m.onnx", model))
    model = copy_of(onnx_graph)
    model.functions.append(onnx.helper.make_function("d", "f", [], ["c"], nodes[:1], []))
    with pytest.raises(PebalError, match="other files, which are never opened"):
        AnomalyDetector.load(onnx_file(tmp_path / "m.onnx", model))


def test_compiled_parts_and_foreign_graphs_are_refused(onnx_graph: Any, tmp_path: Path) -> None:
    import onnx

    model = copy_of(onnx_graph)
    model.graph.node.append(
        onnx.helper.make_node(
            "EPContext", [], ["c"], domain="com.microsoft", ep_cache_context="/etc/passwd", embed_mode=0
        )
    )
    with pytest.raises(PebalError, match="compiled part"):
        AnomalyDetector.load(onnx_file(tmp_path / "m.onnx", model))
    model = copy_of(onnx_graph)
    model.graph.output.pop()
    with pytest.raises(PebalError, match="does not compute labels and energy from images"):
        AnomalyDetector.load(onnx_file(tmp_path / "m.onnx", model))
    assert "EPContext" not in sys.modules
