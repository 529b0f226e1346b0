"""A middleware of the tests' own, a tiny model, and node processes that several tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]

# Before anything creates a participant: a domain that no robot and no second test run on this machine shares.
os.environ["ROS_DOMAIN_ID"] = str(20 + os.getpid() % 80)
for _variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
    os.environ[_variable] = str(REPOSITORY / "config" / "fastdds.xml")

pytest.importorskip("rclpy", reason="the ROS tests need rclpy")

from .harness import Inbox, Rig, TestCamera, start_rig, wait_until  # noqa: E402


def make_model(path: Path, decoder_channels: int) -> Path:
    """A network with random weights and no alarm threshold."""
    import torch

    from pebal_core.model_file import save_model
    from pebal_core.model_info import ModelInfo
    from pebal_core.networks import build_network

    torch.manual_seed(0)
    arguments: dict[str, Any] = {"encoder": "tu-tf_efficientnet_lite0", "decoder_channels": decoder_channels}
    network = build_network("deeplabv3plus", **arguments)
    save_model(path, network, ModelInfo("deeplabv3plus", arguments, energy_range=[-4.0, -2.0]))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny.safetensors", decoder_channels=16)


@pytest.fixture(scope="session")
def rig(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One node for all tests that need nothing special of it; it was there before any camera."""
    log = tmp_path_factory.mktemp("rig") / "log"
    with start_rig("/rig", log, {"model": tiny_model}) as rig:
        yield rig


@pytest.fixture
def camera(rig: Rig) -> Iterator[TestCamera]:
    """A reliable camera on `image` that the shared node has subscribed to."""
    camera = rig.client.camera()
    camera.wait_for_subscriber()
    yield camera
    camera.close()
    wait_until(lambda: rig.client.node.count_publishers("/rig/image") == 0)


@pytest.fixture
def labels(rig: Rig) -> Iterator[Inbox]:
    """A subscription to `labels` of the shared node."""
    inbox = rig.client.listen("labels")
    yield inbox
    inbox.close()
