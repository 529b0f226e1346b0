"""WideResNet-38 and ESPNetv2 beyond their reference values: sizes, scales, and the split into trunk and head."""

from __future__ import annotations

import pytest
import torch

from pebal_core.errors import PebalError
from pebal_core.networks import build_network

SIZES = [(64, 128), (360, 480), (101, 155), (33, 17), (1, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["deeplabv3plus_wide_resnet38", "espnetv2"])
def test_any_input_size(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = build_network(name).eval()
        images = torch.empty(2, 3, *size)
    half = tuple((side + 1) // 2 for side in size)
    assert network.head(network.trunk(images)).shape == (2, 20, *half)
    assert network(images).shape == (2, 20, *size)


@pytest.mark.parametrize("size", [(36, 52), (33, 17)])
def test_espnetv2_is_finite_on_sizes_off_the_grid(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = build_network("espnetv2", num_outputs=12, scale=0.5).eval()
    with torch.inference_mode():
        assert network(torch.randn(2, 3, *size)).isfinite().all()


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.25, 1.5, 2.0])
def test_espnetv2_scales(scale: float) -> None:
    with torch.device("meta"):
        network, full = build_network("espnetv2", scale=scale), build_network("espnetv2")
    assert network.state_dict().keys() == full.state_dict().keys()


@pytest.mark.parametrize("scale", [0.0, -1.0, 0.7, 9.0])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(PebalError, match="(?i)espnetv2"):
        build_network("espnetv2", scale=scale)


@pytest.mark.parametrize(
    ("name", "parameters", "trained"),
    [("deeplabv3plus_wide_resnet38", 137_104_192, 1_296_384), ("espnetv2", 789_242, 43_556)],
)
def test_size_of_network_and_head(name: str, parameters: int, trained: int) -> None:
    with torch.device("meta"):
        network = build_network(name)
    sizes = {key: p.numel() for key, p in network.named_parameters()}
    assert sum(sizes.values()) == parameters
    assert sum(size for key, size in sizes.items() if network.is_head(key)) == trained


def test_head_prefixes_are_what_the_head_uses() -> None:
    torch.manual_seed(0)
    network = build_network("espnetv2", scale=0.5)
    with torch.no_grad():
        features = network.trunk(torch.randn(2, 3, 64, 64))
    network.head(features).square().sum().backward()  # type: ignore[no-untyped-call]
    reached = {key for key, p in network.named_parameters() if p.grad is not None}
    assert reached == {key for key, _ in network.named_parameters() if network.is_head(key)}
