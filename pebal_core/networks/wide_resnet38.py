"""DeepLabV3+ with WideResNet-38, the network of the PEBAL paper, with the weight names of its public checkpoints.

WideResNet-38 was published by Wu et al., Wider or Deeper (2016), and DeepLabV3+ by Chen et al., ECCV 2018. Their
combination and the names in the state dict come from NVIDIA's semantic-segmentation models, on which PEBAL builds.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .base import SegmentationNetwork, upsample

ASPP_RATES = (12, 24, 36)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)


def _bn_relu(channels: int) -> nn.Sequential:
    """The activation before every convolution of the trunk (``bnN.0`` holds the statistics)."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class _ResidualBlock(nn.Module):
    """Pre-activation residual block with kernels 3×3-3×3 for two widths, or 1×1-3×3-1×1 for three.

    A projection shortcut takes the activated input, an identity shortcut the raw input. A strided block applies its
    stride in its first 3×3 convolution and in the projection.
    """

    def __init__(
        self, inputs: int, widths: tuple[int, ...], stride: int = 1, dilation: int = 1, drop: float = 0.0
    ) -> None:
        super().__init__()
        bottleneck = len(widths) == 3
        self.bn1 = _bn_relu(inputs)
        if bottleneck:
            layers: list[tuple[str, nn.Module]] = [
                ("conv1", _conv(inputs, widths[0], 1)),
                ("bn2", _bn_relu(widths[0])),
                ("conv2", _conv(widths[0], widths[1], 3, stride, dilation)),
                ("bn3", _bn_relu(widths[1])),
                ("dropout", nn.Dropout2d(drop)),
                ("conv3", _conv(widths[1], widths[2], 1)),
            ]
        else:
            layers = [
                ("conv1", _conv(inputs, widths[0], 3, stride, dilation)),
                ("bn2", _bn_relu(widths[0])),
                ("conv2", _conv(widths[0], widths[1], 3, 1, dilation)),
            ]
        self.convs = nn.Sequential(OrderedDict(layers))
        self.proj_conv = None
        if stride != 1 or inputs != widths[-1]:
            self.proj_conv = _conv(inputs, widths[-1], 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.bn1(x)
        shortcut = x if self.proj_conv is None else self.proj_conv(activated)
        return self.convs(activated) + shortcut


def _stage(
    blocks: int, inputs: int, widths: tuple[int, ...], stride: int = 1, dilation: int = 1, drop: float = 0.0
) -> nn.Sequential:
    """A sequence of blocks ``block1``, ``block2``, …, of which only the first may stride or change the width."""
    first = _ResidualBlock(inputs, widths, stride, dilation, drop)
    others = (_ResidualBlock(widths[-1], widths, 1, dilation, drop) for _ in range(blocks - 1))
    return nn.Sequential(OrderedDict((f"block{i}", block) for i, block in enumerate([first, *others], start=1)))


class _AtrousPyramid(nn.Module):
    """ASPP with the global mean, a 1×1 convolution, and 3×3 convolutions at three rates, concatenated in this order."""

    def __init__(self, inputs: int, width: int = 256) -> None:
        super().__init__()
        branches = [_conv(inputs, width, 1), *(_conv(inputs, width, 3, dilation=rate) for rate in ASPP_RATES)]
        self.features = nn.ModuleList(nn.Sequential(branch, *_bn_relu(width)) for branch in branches)
        self.img_conv = nn.Sequential(_conv(inputs, width, 1), *_bn_relu(width))

    def forward(self, x: Tensor) -> Tensor:
        image = self.img_conv(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return torch.cat([image, *(branch(x) for branch in self.features)], dim=1)


class _OpenBlock(nn.Module):
    """A bottleneck without its last two 1×1 convolutions, which are merged into the following linear layers."""

    def __init__(self, block: _ResidualBlock) -> None:
        super().__init__()
        self.bn1, self.convs = block.bn1, block.convs[:-1]

    def forward(self, x: Tensor) -> Tensor:
        """The inputs of the omitted last convolution and of the omitted projection, concatenated."""
        activated = self.bn1(x)
        return torch.cat([self.convs(activated), activated], dim=1)


class DeepLabV3PlusWideResNet38(SegmentationNetwork):
    """The paper's network with 137.10 M parameters, of which PEBAL trains the 1,296,384 of ``final``.

    The logits have half the resolution, rounded up for odd sides. Any input size is accepted.

    Args:
        num_outputs: K + 1 channels.

    Examples:
        >>> with torch.device("meta"):  # without memory for its weights
        ...     network = DeepLabV3PlusWideResNet38()
        >>> sum(weight.numel() for weight in network.parameters())
        137104192
    """

    stride = 1
    head_prefixes = ("final.",)
    features = ((304, 2),)
    logit_stride = 2

    def __init__(self, num_outputs: int = 20) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.mod1 = nn.Sequential(OrderedDict(conv1=_conv(3, 64, 3)))
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.mod2 = _stage(3, 64, (128, 128))
        self.pool3 = nn.MaxPool2d(3, stride=2, padding=1)
        self.mod3 = _stage(3, 128, (256, 256))
        self.mod4 = _stage(6, 256, (512, 512), stride=2)
        self.mod5 = _stage(3, 512, (512, 1024), dilation=2)
        self.mod6 = _stage(1, 1024, (512, 1024, 2048), dilation=4, drop=0.3)
        self.mod7 = _stage(1, 2048, (1024, 2048, 4096), dilation=4, drop=0.5)
        self.aspp = _AtrousPyramid(4096)
        self.bot_fine = _conv(128, 48, 1)
        self.bot_aspp = _conv(1280, 256, 1)
        self.final = nn.Sequential(
            _conv(48 + 256, 256, 3), *_bn_relu(256), _conv(256, 256, 3), *_bn_relu(256), _conv(256, num_outputs, 1)
        )

    def fold_linear(self) -> None:
        """Merge the end of mod7 into the ASPP, which saves a tenth of the computation; there are only sums between."""
        block = self.mod7.get_submodule("block1")
        assert isinstance(block, _ResidualBlock) and block.proj_conv is not None
        last = torch.cat([block.convs.get_parameter("conv3.weight"), block.proj_conv.weight], dim=1)[..., 0, 0]
        for first, *_ in [self.aspp.img_conv, *self.aspp.features]:
            outputs, inputs, *kernel = first.weight.shape
            taps = first.weight.movedim(1, 3).reshape(-1, inputs) @ last
            first.weight = nn.Parameter(taps.view(outputs, *kernel, -1).movedim(3, 1))
            first.in_channels = last.shape[1]
        self.mod7.block1 = _OpenBlock(block)

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute fine features and context, concatenated to B×304×H/2×W/2."""
        fine = self.mod2(self.pool2(self.mod1(images)))
        x = self.mod4(self.mod3(self.pool3(fine)))
        x = self.mod7(self.mod6(self.mod5(x)))
        context = self.bot_aspp(self.aspp(x))
        return (torch.cat([self.bot_fine(fine), upsample(context, fine.shape[-2:])], dim=1),)

    def head(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.final(features[0])
