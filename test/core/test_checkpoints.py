"""Third-party checkpoints: every layout by its content, and every file that is none in one sentence."""

from __future__ import annotations

import hashlib
import os
import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pebal_core.checkpoints import ESPNETV2, WIDE_RESNET38, load_checkpoint, read_checkpoint
from pebal_core.commands.main import main
from pebal_core.errors import PebalError
from pebal_core.model_file import load_model
from pebal_core.networks import build_network

CLASSIFIER = "final.6.weight"


def entries(network: str, outputs: int, **arguments: Any) -> dict[str, Tensor]:
    """A state dict of the network whose n-th tensor holds the number n throughout.

    Every tensor is one stored number, expanded: a checkpoint of 137 M parameters takes some hundred kilobytes.
    """
    with torch.device("meta"):
        names = build_network(network, num_outputs=outputs, **arguments).state_dict()
    return {name: torch.tensor(n, dtype=like.dtype).expand(like.shape) for n, (name, like) in enumerate(names.items())}


def wide_resnet38(outputs: int) -> dict[str, Tensor]:
    return entries("deeplabv3plus_wide_resnet38", outputs)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def nvidia() -> dict[str, Any]:
    extra = {"criterion.weight": torch.ones(19), "dsn.0.weight": torch.ones(3), "final2.0.weight": torch.ones(2)}
    return {
        "state_dict": prefixed("module.", wide_resnet38(19) | extra),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 174,
        "mean_iu": np.float64(0.8146),
        "command": "train.py",
    }


def pebal() -> dict[str, Any]:
    return {"model": prefixed("branch1.", wide_resnet38(20)), "optimizer": {}, "epoch": 39, "iteration": 370}


LAYOUTS: dict[str, Callable[[], object]] = {
    "NVIDIA": nvidia,
    "PEBAL": pebal,
    "plain": lambda: wide_resnet38(20),
    "DataParallel around PEBAL": lambda: {"model": prefixed("module.branch1.", wide_resnet38(20))},
    "compiled, in a Lightning module": lambda: {
        "state_dict": prefixed("model._orig_mod.module.", wide_resnet38(20)),
        "hyper_parameters": Namespace(lr=1e-5, miou=np.float32(0.8)),
    },
}


def save(content: object, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_wide_resnet38(layout: str, zipped: bool, tmp_path: Path) -> None:
    path = save(LAYOUTS[layout](), tmp_path / "any_name.bin", _use_new_zipfile_serialization=zipped)
    state, family, arguments, _ = read_checkpoint(path)
    assert (family, arguments) == (WIDE_RESNET38, {})
    expected = wide_resnet38(20)
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        rows = slice(0, 19) if name == CLASSIFIER else ...
        assert torch.equal(state[name][rows], tensor[rows]), name


def test_the_abstention_row_follows_from_its_seed(tmp_path: Path) -> None:
    path = save(nvidia(), tmp_path / "cityscapes_best.pth")
    first, again, other = (read_checkpoint(path, seed) for seed in (3, 3, 4))
    assert first.layout.endswith("abstention row drawn (Kaiming normal, seed 3)")
    row = first.state_dict[CLASSIFIER][19]
    assert torch.equal(row, again.state_dict[CLASSIFIER][19])
    assert not torch.equal(row, other.state_dict[CLASSIFIER][19])
    assert row.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.15)
    assert "drawn" not in read_checkpoint(save(pebal(), tmp_path / "best_ad_ckpt.pth")).layout


def test_tensors_of_a_gpu_are_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        path = save(pebal(), tmp_path / "gpu.pth", _use_new_zipfile_serialization=False)
    assert b"cuda:0" in path.read_bytes()
    assert {tensor.device.type for tensor in read_checkpoint(path).state_dict.values()} == {"cpu"}


def test_scale_of_espnetv2_is_recognised(tmp_path: Path) -> None:
    for scale in (0.5, 1.0, 1.25, 1.5, 2.0):
        path = save(entries("espnetv2", 20, scale=scale), tmp_path / f"{scale}.pth")
        _, family, arguments, _ = read_checkpoint(path)
        assert (family, arguments) == (ESPNETV2, {"scale": scale})


def test_loaded_network_is_independent_of_the_file(tmp_path: Path) -> None:
    path = save(entries("espnetv2", 20, scale=0.5), tmp_path / "net.pth")
    network, info = load_checkpoint(path, source="here", licence="MIT")
    assert not network.training
    assert (info.network, info.network_args, info.licence) == ("espnetv2", {"scale": 0.5}, "MIT")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (info.origin["file"], info.origin["sha256"], info.origin["source"]) == ("net.pth", digest, "here")
    path.unlink()
    for n, tensor in enumerate(network.state_dict().values()):
        assert tensor.is_contiguous() and (tensor == n).all()


def test_convert_writes_a_model_file(shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The public checkpoint fits its network name by name, and the model file says where it came from."""
    checkpoint = shared_dir / "weights/espnetv2_s_2.0_city_1024x512.pth"
    out = tmp_path / "espnetv2.safetensors"
    assert main(["convert", str(checkpoint), str(out), "--source", "EdgeNets", "--licence", "MIT"]) == 0
    network, info = load_model(out)
    original = torch.load(checkpoint, map_location="cpu", weights_only=True)
    assert network.state_dict().keys() == original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in network.state_dict().items())
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (info.origin["sha256"], info.origin["source"], info.licence) == (digest, "EdgeNets", "MIT")
    assert digest in capsys.readouterr().out


# -- files that cannot be converted -----------------------------------------------------------------------------


class Touch:
    """Pickled, it is a shell command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


EVIL: dict[str, Callable[[dict[str, object], Path], object]] = {
    "zip": lambda content, path: torch.save(content, path),
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content["hook"], protocol=2)),
}


@pytest.mark.parametrize("form", EVIL)
def test_code_is_never_executed(form: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    pickle.loads(pickle.dumps(Touch(marker)))
    assert marker.exists(), "the trap itself must work"
    marker.unlink()

    EVIL[form]({"state_dict": wide_resnet38(20), "hook": Touch(marker)}, tmp_path / "evil.pth")
    with pytest.raises(PebalError, match=r"evil\.pth refers to Python code \(posix\.system\), which is never"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not marker.exists()


def test_a_recent_pickle_is_refused_without_executing_it(tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Touch(marker), protocol=5))
    with pytest.raises(PebalError, match=r"evil\.pth is damaged or is not a PyTorch checkpoint"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    path = save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(PebalError, match=r"refers to Python code \(torch\.nn\.modules\.linear\.Linear\)"):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_named(share: float, zipped: bool, tmp_path: Path) -> None:
    path = save(entries("espnetv2", 20, scale=0.5), tmp_path / "cut.pth", _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(PebalError, match=r"cut\.pth is damaged or is not a PyTorch checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(99), b"<html>404</html>", os.urandom(4096)])
def test_a_file_of_another_kind_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(PebalError, match=r"other\.pth is damaged or is not a PyTorch checkpoint"):
        read_checkpoint(path)


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


def voc_espnetv2() -> dict[str, Tensor]:
    return entries("espnetv2", 21)


UNFIT: dict[str, tuple[Callable[[], object], str]] = {
    "another network": (
        lambda: {"state_dict": {"layer1.0.conv1.weight": torch.ones(2, 2)}},
        r"another network \(its weights start with 'layer1\.0\.conv1\.weight'\)",
    ),
    "no dictionary": (lambda: torch.ones(3), "contains no weights"),
    "no weights": (lambda: {"epoch": 3, "model": {}}, "contains no weights"),
    "two networks": (
        lambda: prefixed("module.", wide_resnet38(20)) | wide_resnet38(20),
        "several networks",
    ),
    "other classes": (lambda: wide_resnet38(11), "with 11 outputs instead of 19 or 20"),
    "no classifier": (lambda: without(wide_resnet38(20), CLASSIFIER), "with 0 outputs"),
    "other classes, ESPNetv2": (voc_espnetv2, "ESPNetv2 with 21 outputs instead of 20"),
    "missing": (
        lambda: without(wide_resnet38(20), "bot_fine.weight"),
        r"1 entries are missing; the first is 'bot_fine",
    ),
    "unknown": (
        lambda: wide_resnet38(20) | {"extra.weight": torch.ones(2)},
        r"1 entries are unknown; the first is 'extra",
    ),
    "another shape": (
        lambda: wide_resnet38(20) | {"bot_fine.weight": torch.ones(48, 64, 1, 1)},
        r"1 entries are of another shape; the first is 'bot_fine",
    ),
    "scalar classifier": (lambda: wide_resnet38(20) | {CLASSIFIER: torch.ones(())}, "with 0 outputs"),
    "flat classifier": (lambda: wide_resnet38(19) | {CLASSIFIER: torch.ones(19)}, "of another shape"),
    "odd width": (
        lambda: entries("espnetv2", 20) | {"base_net.level2_0.act.weight": torch.ones(7)},
        "espnetv2|ESPNetv2",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_named(case: str, tmp_path: Path) -> None:
    make, message = UNFIT[case]
    path = save(make(), tmp_path / "unfit.pth")
    with pytest.raises(PebalError, match=message) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_convert_ends_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, out = tmp_path / "missing.pth", tmp_path / "out.safetensors"
    assert main(["convert", str(missing), str(out)]) == 1
    assert capsys.readouterr().err == f"pebal convert: There is no checkpoint '{missing}'.\n"
    assert main(["convert", str(missing), str(tmp_path / "out.pth")]) == 1
    assert "must end in .safetensors" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
