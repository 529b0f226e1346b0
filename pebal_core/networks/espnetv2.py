"""ESPNetv2 for semantic segmentation (Mehta et al., CVPR 2019), with the weight names of the EdgeNets checkpoints.

Unless stated otherwise, every convolution is followed by BatchNorm and PReLU and keeps the size at stride 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PebalError
from .base import SegmentationNetwork, upsample

BRANCHES = 4
"""Dilated branches of an EESP unit, and groups of its 1×1 convolutions."""
NARROW = (1, 1, 2, 3)
WIDE = (1, 2, 3, 4)
"""Dilations of the branches; the deepest level uses `NARROW` because its map is small."""
PYRAMID_SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
PYRAMID_MIN_SIDE = 5


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)


class _Conv(nn.Module):
    """A convolution with optional BatchNorm and PReLU, under the encoder's names (conv, bn, act)."""

    def __init__(self, convolution: nn.Conv2d, norm: bool = True, act: bool = True) -> None:
        super().__init__()
        self.conv = convolution
        self.bn = nn.BatchNorm2d(convolution.out_channels) if norm else nn.Identity()
        self.act = nn.PReLU(convolution.out_channels) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class _NormAct(nn.Module):
    """BatchNorm and PReLU, under the encoder's names (bn, act)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(x))


class _EESP(nn.Module):
    """Extremely efficient spatial pyramid of depth-wise dilated convolutions.

    The branches are summed cumulatively before they are concatenated, to avoid gridding artefacts. With stride 2 the
    unit ends after its last BatchNorm, because the surrounding down-sampler adds and activates. Its own ``module_act``
    then exists, as in the checkpoints, but is unused.
    """

    def __init__(self, inputs: int, outputs: int, dilations: tuple[int, ...], stride: int = 1) -> None:
        super().__init__()
        width = outputs // BRANCHES
        self.stride = stride
        self.proj_1x1 = _Conv(_conv(inputs, width, 1, groups=BRANCHES))
        self.spp_dw = nn.ModuleList(
            _Conv(_conv(width, width, 3, stride, groups=width, dilation=dilation), norm=False, act=False)
            for dilation in dilations
        )
        self.br_after_cat = _NormAct(outputs)
        self.conv_1x1_exp = _Conv(_conv(outputs, outputs, 1, groups=BRANCHES), act=False)
        self.module_act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.proj_1x1(x)
        sums = [self.spp_dw[0](reduced)]
        for branch in list(self.spp_dw)[1:]:
            sums.append(sums[-1] + branch(reduced))
        expanded = self.conv_1x1_exp(self.br_after_cat(torch.cat(sums, dim=1)))
        if self.stride == 2:
            return expanded
        return self.module_act(expanded + x if expanded.shape == x.shape else expanded)


def _halve(x: Tensor) -> Tensor:
    """Average 3×3 pixels at stride 2, including padded zeros."""
    return F.avg_pool2d(x, 3, stride=2, padding=1)


class _DownSampler(nn.Module):
    """Halves the resolution by concatenating the averaged input with a strided EESP and adding the downscaled image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.eesp = _EESP(inputs, outputs - inputs, WIDE, stride=2)
        self.inp_reinf = nn.Sequential(_Conv(_conv(3, 3, 3)), _Conv(_conv(3, outputs, 1), act=False))
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Compute features at half the resolution of `x`; `image` already has that resolution."""
        return self.act(torch.cat([_halve(x), self.eesp(x)], dim=1) + self.inp_reinf(image))


class _Encoder(nn.Module):
    """ESPNetv2 without its classifier; it returns features at strides 2, 4, 8 and 16."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        base = math.ceil(int(32 * scale) / 4) * 4
        if base <= 0:
            raise ValueError(f"scale must be positive, not {scale}")
        self.widths = (min(32, base), 2 * base, 4 * base, 8 * base)
        one, two, three, four = self.widths
        self.level1 = _Conv(_conv(3, one, 3, stride=2))
        self.level2_0 = _DownSampler(one, two)
        self.level3_0 = _DownSampler(two, three)
        self.level3 = nn.Sequential(*(_EESP(three, three, WIDE) for _ in range(3)))
        self.level4_0 = _DownSampler(three, four)
        self.level4 = nn.Sequential(*(_EESP(four, four, NARROW) for _ in range(7)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        quarter = _halve(_halve(images))
        eighth = _halve(quarter)
        one = self.level1(images)
        two = self.level2_0(one, quarter)
        three = self.level3(self.level3_0(two, eighth))
        four = self.level4(self.level4_0(three, _halve(eighth)))
        return one, two, three, four


def _norm_act(channels: int) -> nn.Sequential:
    """BatchNorm and PReLU."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.PReLU(channels))


class _ConvDec(nn.Module):
    """A convolution, BatchNorm and PReLU, under the decoder's name (cbr)."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.cbr = nn.Sequential(convolution, *_norm_act(convolution.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.cbr(x)


class _NormActDec(nn.Module):
    """BatchNorm and PReLU, under the decoder's name (br)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.br = _norm_act(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.br(x)


class _PyramidPool(nn.Module):
    """Depth-wise 3×3 convolutions at five scales of a narrow projection, merged by a grouped convolution.

    Args:
        inputs: number of input channels.
        width: number of channels of the projection.
        outputs: number of output channels.
        last: whether the module returns the logits; its 1×1 convolution then has a bias, and nothing follows it.
    """

    def __init__(self, inputs: int, width: int, outputs: int, last: bool = False) -> None:
        super().__init__()
        branches = len(PYRAMID_SCALES)
        self.projection_layer = _ConvDec(_conv(inputs, width, 1))
        self.stages = nn.ModuleList(_conv(width, width, 3, groups=width) for _ in PYRAMID_SCALES)
        self.merge_layer = nn.Sequential(
            _NormActDec(width * branches),
            nn.ChannelShuffle(branches),
            _ConvDec(_conv(width * branches, width, 3, groups=width)),
            nn.Conv2d(width, outputs, 1, bias=last),
        )
        self.br = nn.Identity() if last else _NormActDec(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.br(self.merge_layer(torch.cat(self.branches(x), dim=1)))

    def branches(self, x: Tensor) -> list[Tensor]:
        """Convolve the projection at each scale and resample the results to its size."""
        x = self.projection_layer(x)
        size = (x.shape[-2], x.shape[-1])
        branches = []
        for scale, stage in zip(PYRAMID_SCALES, self.stages, strict=True):
            height, width = (max(math.ceil(side * scale), PYRAMID_MIN_SIDE) for side in size)
            if scale > 1:
                branches.append(F.adaptive_avg_pool2d(stage(upsample(x, (height, width))), size))
            elif scale < 1:
                branches.append(upsample(stage(F.adaptive_avg_pool2d(x, (height, width))), size))
            else:
                branches.append(stage(x))
        return branches


class _SummedPyramid(nn.Module):
    """A faster `_PyramidPool` for inference, with the same output.

    After the shuffle, each group of the merging convolution holds one channel of every branch, so the convolution is a
    sum of depth-wise convolutions, one per branch. The BatchNorm of the branches is folded into their own convolutions.
    This is possible because there are only averages between the two, whose weights add up to one.

    Args:
        pool: the module, which is taken over; the BatchNorm after its merging convolution must be folded already.
    """

    def __init__(self, pool: _PyramidPool) -> None:
        super().__init__()
        norm, act = pool.merge_layer.get_submodule("0.br").children()
        merge, _, after = pool.merge_layer.get_submodule("2.cbr").children()
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        assert isinstance(act, nn.PReLU) and isinstance(merge, nn.Conv2d)
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        offset = norm.bias - norm.running_mean * factor
        width = merge.out_channels
        self.merges = nn.ModuleList()
        for number, stage in enumerate(pool.stages):
            assert isinstance(stage, nn.Conv2d)
            own = slice(number * width, (number + 1) * width)
            stage.weight = nn.Parameter(stage.weight * factor[own].view(-1, 1, 1, 1))
            stage.bias = nn.Parameter(offset[own].clone())
            bend, sums = nn.PReLU(width), _conv(width, width, 3, groups=width)
            bend.weight = nn.Parameter(act.weight[own].clone())
            sums.weight = nn.Parameter(merge.weight[:, number : number + 1].clone())
            sums.bias = merge.bias if number == 0 else None
            self.merges.append(nn.Sequential(bend, sums))
        self.last = nn.Sequential(after, pool.merge_layer[3], pool.br)
        del pool.merge_layer, pool.br
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        first, *others = [merge(branch) for merge, branch in zip(self.merges, self.pool.branches(x), strict=True)]
        return self.last(sum(others, first))


class _MergeEncoder(nn.Module):
    """Projects encoder features to the decoder's width, and weights each channel by a function of the global mean."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.wt_layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), _conv(inputs, outputs, 1), nn.Sigmoid())
        self.expansion_layer = _ConvDec(_conv(inputs, outputs, 3, groups=math.gcd(inputs, outputs)))

    def forward(self, x: Tensor) -> Tensor:
        return self.expansion_layer(x) * self.wt_layer(x)


class ESPNetv2(SegmentationNetwork):
    """ESPNetv2 with its segmentation decoder; it has 0.79 M parameters at scale 2.

    The logits have half the resolution, rounded up for odd sides. Any input size is accepted, because the decoder
    upsamples to the size of the encoder's features. For sides that are multiples of 16, this is plain doubling.

    Args:
        num_outputs: K + 1 channels.
        scale: width multiplier, 0.1 to 8; checkpoints exist for 0.5, 1.0, 1.25, 1.5 and 2.0.

    Raises:
        PebalError: the scale is invalid.

    Examples:
        >>> network = ESPNetv2(num_outputs=20, scale=2.0)
        >>> sum(parameter.numel() for parameter in network.parameters())
        789242
    """

    stride = 1
    head_prefixes = ("bu_dec_", "merge_enc_dec_", "bu_br_")
    logit_stride = 2

    def __init__(self, num_outputs: int = 20, scale: float = 2.0) -> None:
        super().__init__()
        if type(scale) not in (int, float) or not 0.1 <= scale <= 8:
            raise PebalError(f"The scale of an ESPNetv2 must be a number from 0.1 to 8, not {scale!r:.80}.")
        self.num_outputs = num_outputs
        self.base_net = _Encoder(scale)
        one, two, three, four = self.base_net.widths
        self.features = ((one, 2), (two, 4), (three, 8), (four, 16))
        width = min(num_outputs // 2, 16)
        self.bu_dec_l1 = _PyramidPool(four, width, 64)
        self.merge_enc_dec_l2 = _MergeEncoder(three, 64)
        self.bu_br_l2 = _norm_act(64)
        self.bu_dec_l2 = _PyramidPool(64, width, 48)
        self.merge_enc_dec_l3 = _MergeEncoder(two, 48)
        self.bu_br_l3 = _norm_act(48)
        self.bu_dec_l3 = _PyramidPool(48, width, 32)
        self.merge_enc_dec_l4 = _MergeEncoder(one, 32)
        self.bu_br_l4 = _norm_act(32)
        self.bu_dec_l4 = _PyramidPool(32, width, num_outputs, last=True)

    def fold_linear(self) -> None:
        for name in ("bu_dec_l1", "bu_dec_l2", "bu_dec_l3", "bu_dec_l4"):
            setattr(self, name, _SummedPyramid(getattr(self, name)))

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encoder features at strides 2, 4, 8 and 16."""
        return self.base_net(images)

    def head(self, features: tuple[Tensor, ...]) -> Tensor:
        one, two, three, four = features
        x = self.bu_dec_l1(four)
        x = self.bu_dec_l2(self.bu_br_l2(upsample(x, three.shape[-2:]) + self.merge_enc_dec_l2(three)))
        x = self.bu_dec_l3(self.bu_br_l3(upsample(x, two.shape[-2:]) + self.merge_enc_dec_l3(two)))
        return self.bu_dec_l4(self.bu_br_l4(upsample(x, one.shape[-2:]) + self.merge_enc_dec_l4(one)))
