"""Model files: complete round trip, and every damaged file ends in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pebal_core.errors import PebalError
from pebal_core.model_file import load_model, read_info, save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import build_network

TINY: dict[str, Any] = {"encoder": "resnet18", "decoder_channels": 16}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    info = ModelInfo("deeplabv3plus", TINY, threshold=-3.5, threshold_note="by hand", training={"data": "none"})
    save_model(path, build_network("deeplabv3plus", **TINY), info)
    return path


def test_everything_survives_the_round_trip(model_path: Path, tmp_path: Path) -> None:
    network, info = load_model(model_path)
    assert (info.threshold, info.threshold_note, info.training) == (-3.5, "by hand", {"data": "none"})
    again = tmp_path / "again.safetensors"
    save_model(again, network, info)
    copy, copied_info = load_model(again)
    assert copied_info == info
    image = torch.rand(1, 3, 64, 48)
    assert torch.equal(network(image), copy(image))


def test_half_precision_halves_the_file_and_keeps_the_logits(model_path: Path, tmp_path: Path) -> None:
    network, info = load_model(model_path)
    half = tmp_path / "half.safetensors"
    save_model(half, network, info, half=True)
    assert half.stat().st_size < 0.55 * model_path.stat().st_size
    image = torch.rand(1, 3, 64, 48)
    expected = network(image)
    assert (load_model(half)[0](image) - expected).abs().max() < 0.01 * expected.std()


def test_truncated_file_is_named(model_path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "cut.safetensors"
    damaged.write_bytes(model_path.read_bytes()[:-1000])
    with pytest.raises(PebalError, match=r"cut\.safetensors is not a complete safetensors file"):
        load_model(damaged)


def test_foreign_safetensors_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(1)}, foreign)
    with pytest.raises(PebalError, match="was not written by pebal"):
        load_model(foreign)


def test_weights_of_another_network_are_refused(model_path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    wider = ModelInfo("deeplabv3plus", {**TINY, "decoder_channels": 32})
    save_model(other, build_network("deeplabv3plus", **TINY), wider)
    with pytest.raises(PebalError, match="do not fit the network"):
        load_model(other)


def test_unknown_model_lists_the_shipped_ones() -> None:
    with pytest.raises(PebalError, match="There is no model 'nonesuch'.*starter"):
        load_model("nonesuch")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1, "unknown": 2}', '{"network": "x"}'])
def test_damaged_metadata_is_named(text: str) -> None:
    with pytest.raises(PebalError, match=r"metadata of m\.safetensors is damaged"):
        ModelInfo.from_json(text, Path("m.safetensors"))


def test_newer_format_asks_for_an_update() -> None:
    with pytest.raises(PebalError, match="newer version"):
        ModelInfo.from_json('{"format": 99}', Path("m.safetensors"))


def test_unwritable_folder_is_named(model_path: Path, tmp_path: Path) -> None:
    network, info = load_model(model_path)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(PebalError, match="could not be written"):
        save_model(tmp_path / "file" / "model.safetensors", network, info)


def test_unknown_network_and_arguments_are_named() -> None:
    with pytest.raises(PebalError, match="Unknown network 'segformer'.*deeplabv3plus"):
        build_network("segformer")
    with pytest.raises(PebalError, match="cannot be built with"):
        build_network("deeplabv3plus", wings=2)


def test_info_is_read_without_weights(model_path: Path) -> None:
    assert read_info(model_path).network == "deeplabv3plus"
