"""The faster network of a GPU, run by Triton's interpreter: each kernel, and a network that uses all of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pebal_core.engines.cuda import Guarded
from pebal_core.networks import SegmentationNetwork
from pebal_core.networks.folding import fold


@pytest.fixture(scope="module")
def layers() -> Iterator[ModuleType]:
    """Run on the CPU by Triton's interpreter, which is chosen when the kernels are defined."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in ("layers", "fast_layers"):
            patch.delitem(sys.modules, f"pebal_core.engines.{name}", raising=False)
        yield importlib.import_module("pebal_core.engines.layers")


@pytest.fixture(scope="module")
def fast_layers(layers: ModuleType) -> Any:
    return importlib.import_module("pebal_core.engines.fast_layers").FastLayers


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "dilation"),
    [
        ((2, 10, 7, 9), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        ((1, 70, 6, 13), (5, 5), (2, 2), (1, 2, 1, 2), (1, 1)),
        ((1, 3, 9, 9), (3, 3), (2, 1), (3, 3, 2, 2), (2, 3)),
        ((1, 16, 5, 40), (1, 7), (1, 1), (0, 0, 0, 0), (1, 1)),
    ],
)
@pytest.mark.parametrize("bent", [False, True])
def test_a_depthwise_convolution_is_that_of_pytorch(
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    bent: bool,
    layers: ModuleType,
) -> None:
    x, channels = random(*shape), shape[1]
    weight, bias, slope = random(channels, 1, *kernel), random(channels), random(channels).abs()
    expected = F.conv2d(F.pad(x, padding), weight, bias if bent else None, stride, 0, dilation, channels)
    if bent:
        expected = F.prelu(expected, slope).clamp(max=1.5)
    taps, activation = weight[:, 0].permute(1, 2, 0).contiguous(), layers.Activation(slope, 1.5) if bent else None
    found = layers.depthwise(x, taps, bias if bent else None, stride, padding, dilation, activation)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(14, 18), (10, 14), (1, 1), (7, 9), (3, 4), (5, 5)])
def test_resampling_is_that_of_pytorch(size: tuple[int, int], layers: ModuleType) -> None:
    x = random(2, 10, 7, 9)
    expected = F.interpolate(x, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(layers.upsample(x, size), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(layers.average(x, size), F.adaptive_avg_pool2d(x, size), atol=1e-5, rtol=0)


class Everything(SegmentationNetwork):
    """Every kind of layer that has a fast way, and some that must be left alone."""

    num_outputs, stride, head_prefixes, logit_stride = 6, 4, ("last.",), 2

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.deep = nn.Sequential(
            nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2, groups=8, bias=False)),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.grouped = nn.Sequential(nn.Conv2d(8, 12, 1, groups=4), nn.PReLU())
        self.same = nn.Conv2d(12, 12, 3, padding="same", groups=12)
        self.sum = nn.Sequential(nn.BatchNorm2d(12), nn.PReLU(12))
        self.last = nn.Conv2d(20, 6, 1)

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        fine = self.first(images)
        deep = self.grouped(self.deep(fine))
        deep = self.sum(deep + self.same(deep))
        context = F.interpolate(F.adaptive_avg_pool2d(deep, (3, 5)), scale_factor=2.0, mode="bilinear")
        return fine, deep + F.adaptive_avg_pool2d(context, 1)

    def head(self, features: tuple[Tensor, ...]) -> Tensor:
        fine, deep = features
        up = F.interpolate(deep, fine.shape[-2:], mode="bilinear", align_corners=True)
        sharpened = F.conv2d(up, self.last.weight[:, :12].mean(0).view(12, 1, 1, 1).exp(), groups=12)
        return self.last(torch.cat([fine, sharpened], dim=1))


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    torch.manual_seed(0)
    network = Everything()
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(4, 3, 32, 48))
    return fold(network)


def test_a_network_with_fast_layers_says_the_same(network: SegmentationNetwork, fast_layers: Any) -> None:
    fast = fast_layers(network)
    for dtype, shape in ((torch.float32, (1, 3, 24, 36)), (torch.float32, (2, 3, 16, 24))):
        images = torch.rand(shape, dtype=dtype)
        with torch.inference_mode():
            expected = network(images)
            with fast:
                found = fast.network(images)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            assert torch.equal(network(images), expected), "the network itself is not changed"
    assert len(fast._activations) == 4 and len(fast._padding) == 1
    names = {key[0].__name__ for key in fast._checked}
    assert names == {"conv2d", "batch_norm", "interpolate", "adaptive_avg_pool2d"}
    assert len(fast._prepared) == 6, "kept per weight of the network, not per weight that is computed anew"


def test_a_wrong_layer_leaves_the_plain_network(
    network: SegmentationNetwork, layers: ModuleType, fast_layers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = layers.upsample
    monkeypatch.setattr(layers, "upsample", lambda *arguments: 1.1 * right(*arguments))
    fast = fast_layers(network)

    def run(images: Any) -> tuple[Tensor, ...]:
        with fast:
            return (fast.network(images),)

    guarded = Guarded("The faster network", run, lambda images: (network(images),), compare=False)
    images = torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(guarded(images)[0], network(images))
    reason = "The faster network is off (RuntimeError: the answer of interpolate is not that of plain PyTorch)."
    assert guarded.reason == reason
