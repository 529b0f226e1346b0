"""A frozen segmentation network with a trainable anomaly branch beside its head."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PebalError
from .base import SegmentationNetwork, upsample

FINEST = 4
"""Stride of the branch's output; finer features are averaged down to it."""
LEVELS = (4, 8, 16)
"""Strides of the branch's own levels."""
STRIDES = (1, 2, 4, 8, 16, 32)
"""Strides of the feature maps that the branch can use."""
DILATIONS = {4: (1, 2), 8: (1, 2), 16: (1, 2, 4)}
"""Dilations of the blocks of each level."""


class AnomalyBranch(SegmentationNetwork):
    """A frozen network whose logits a small branch shifts, depending on how unknown a pixel looks.

    With f the logits of the frozen network, K the index of its abstention, and (δ, r) the two maps of the branch:

        f'_k = f_k + δ  for k < K,      f'_K = f_K + r,      hence  E' = E - δ

    A shift of all K class logits changes no class probability. The labels therefore equal those of the frozen network
    for any weights of the branch, while any energy can be reached. The branch starts at δ = r = 0. Its inputs are the
    features that the trunk computes anyway and the certainty of the frozen head, which consists of its logits, their
    log-sum-exp and their entropy. The idea of keeping the segmentation and learning the anomalies beside it comes from
    Liu et al., Residual Pattern Learning (ICCV 2023).

    As a `SegmentationNetwork`, its trunk is everything that is frozen, and its head is the branch, which fine-tuning
    trains.

    Args:
        network: a network that declares its `features`; its weights are never changed.
        width: channels of the branch.

    Raises:
        PebalError: the network declares no features.

    Examples:
        >>> from pebal_core.networks import build_network
        >>> network = build_network("espnetv2", num_outputs=6, scale=0.5).eval()
        >>> branched = AnomalyBranch(network, width=16).eval()
        >>> images = torch.rand(1, 3, 32, 48)
        >>> torch.allclose(branched(images), network(images), atol=1e-5)  # until it is trained
        True
    """

    head_prefixes = ("branch.",)

    def __init__(self, network: SegmentationNetwork, width: int = 48) -> None:
        super().__init__()
        self.used = [n for n, (channels, stride) in enumerate(network.features) if channels and stride in STRIDES]
        if not self.used or network.logit_stride not in STRIDES:
            raise PebalError(
                f"An anomaly branch needs the features of a trunk, and {type(network).__name__} declares none; start "
                f"from the plain segmentation network."
            )
        self.network = network
        self.num_outputs, self.stride, self.logit_stride = network.num_outputs, network.stride, network.logit_stride
        self.features = (*network.features, (network.num_outputs, network.logit_stride))
        certainty = (network.num_outputs + 2, FINEST)
        self.branch = _Branch((*(network.features[n] for n in self.used), certainty), width)

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of the frozen network, followed by its logits."""
        features = self.network.trunk(images)
        return (*features, self.network.head(features))

    def head(self, features: tuple[Tensor, ...]) -> Tensor:
        *maps, logits = features
        fine = _bring(logits, self.network.logit_stride, FINEST)
        shift = self.branch([*(maps[n] for n in self.used), certainty_of(fine)])
        shift = upsample(shift, logits.shape[-2:])
        return torch.cat([logits[:, :-1] + shift[:, :1], logits[:, -1:] + shift[:, 1:]], dim=1)

    def fold_linear(self) -> None:
        self.network.fold_linear()


def certainty_of(logits: Tensor) -> Tensor:
    """Append log Σ exp and the entropy of the K class logits to the logits B×(K+1)×h×w; returns B×(K+3)×h×w.

    Examples:
        >>> certainty_of(torch.zeros(1, 3, 1, 1)).flatten().tolist()  # two classes: both are log 2
        [0.0, 0.0, 0.0, 0.6931471824645996, 0.6931471824645996]
    """
    log_sum = torch.logsumexp(logits[:, :-1], dim=1, keepdim=True)
    log_probability = logits[:, :-1] - log_sum
    entropy = -(log_probability.exp() * log_probability).sum(1, keepdim=True)
    return torch.cat([logits, log_sum, entropy], dim=1)


def _bring(x: Tensor, stride: int, wanted: int) -> Tensor:
    """Resample a map from one stride to another; both are powers of two."""
    if stride > wanted:
        return F.interpolate(x, scale_factor=float(stride // wanted), mode="bilinear", align_corners=True)
    while stride < wanted:
        x, stride = _halve(x), 2 * stride
    return x


def _halve(x: Tensor) -> Tensor:
    """Average 3×3 pixels at stride 2; odd sides are rounded up, as in strided convolutions."""
    return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)


class _Branch(nn.Module):
    """Computes two maps at stride 4 from feature maps, by going down to stride 16 for context and up again.

    At stride 4, which takes most of the time, it has half the width.

    Args:
        inputs: channels and stride of each feature map. One map must have stride 4; strides are powers of two up to 32.
        width: number of inner channels.
    """

    def __init__(self, inputs: tuple[tuple[int, int], ...], width: int) -> None:
        super().__init__()
        self.given = tuple(stride for _, stride in inputs)
        self.strides = tuple(min(max(stride, FINEST), LEVELS[-1]) for stride in self.given)
        widths = {level: width // 2 if level == FINEST else width for level in LEVELS}
        self.projections = nn.ModuleList(
            _conv_norm(channels, widths[stride]) for (channels, _), stride in zip(inputs, self.strides, strict=True)
        )
        steps = list(itertools.pairwise(LEVELS))
        self.down = nn.ModuleList(_conv_norm(widths[fine], widths[coarse]) for fine, coarse in steps)
        self.up = nn.ModuleList(_conv_norm(widths[coarse], widths[fine]) for fine, coarse in steps)
        self.bends = nn.ModuleList(nn.PReLU(widths[level]) for level in LEVELS)
        self.levels = nn.ModuleList(
            nn.Sequential(*(_SeparableBlock(widths[level], dilation) for dilation in DILATIONS[level]))
            for level in LEVELS
        )
        self.out = nn.Sequential(nn.PReLU(widths[FINEST]), nn.Conv2d(widths[FINEST], 2, 1))
        for parameter in self.out[1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The shifts δ of the class logits and r of the abstention, B×2×h×w at stride 4."""
        sums: dict[int, Tensor] = {}
        for x, given, stride, project in zip(maps, self.given, self.strides, self.projections, strict=True):
            # The projection runs on fewer pixels after downsampling and before upsampling.
            projected = _bring(project(_bring(x, min(given, stride), stride)), max(given, stride), stride)
            sums[stride] = sums[stride] + projected if stride in sums else projected
        down = [self.bends[0](sums[FINEST])]
        for level, narrow, bend in zip(LEVELS[1:], self.down, list(self.bends)[1:], strict=True):
            finer = narrow(_halve(down[-1]))
            down.append(bend(finer + sums[level] if level in sums else finer))
        up = self.levels[-1](down[-1])
        for x, widen, blocks in reversed(list(zip(down, self.up, self.levels, strict=False))):
            up = blocks(x + upsample(widen(up), x.shape[-2:]))
        return self.out(up)


def _conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    """A 1×1 convolution followed by BatchNorm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class _SeparableBlock(nn.Module):
    """A residual block of a depth-wise 3×3 convolution, BatchNorm, PReLU, a 1×1 convolution and BatchNorm."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            *_conv_norm(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convs(x)
