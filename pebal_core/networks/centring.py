"""Convolutions in a short floating-point type that round less: their inputs are centred first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import round_kernels

LEAST_CHANNELS = 128
"""Convolutions with fewer channels, of input or output, take little time and stay in float32."""

SAMPLING = 4
"""A channel's mean is taken over every fourth pixel of every fourth row."""


class CentredConv2d(nn.Module):
    """Takes the place of an `nn.Conv2d`: takes and answers float32, multiplies in a short type.

    A convolution is linear, so that of an image is that of its channels' means, here in float32, plus that of what
    differs from them, in the short type. After a ReLU the means are large: without them input, kernel and output round
    less. The means' convolution is not constant where the padding is reached.
    """

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        """`convolution`: in float32, without groups."""
        super().__init__()
        self.taps = convolution.weight.detach().permute(2, 3, 0, 1).flatten(0, 2).clone()  # k²·O×C
        self.bias = convolution.bias
        convolution.bias = None
        round_kernels(convolution, dtype)
        self.convolution = convolution.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W → B×O×h×w."""
        seen = x[:, :, ::SAMPLING, ::SAMPLING].contiguous(memory_format=torch.channels_last)
        means = seen.mean((2, 3))
        # Operations on two types at once would be several times slower.
        differences = (x - means[:, :, None, None]).to(self.convolution.weight.dtype)
        return self.convolution(differences).float().add_(self._of_means(means, x.shape[2:]))

    def _of_means(self, means: Tensor, size: torch.Size) -> Tensor:
        """B×C → B×O×h×w, or B×O×1×1 where no padding makes a difference."""
        c = self.convolution
        taps = (means @ self.taps.T).view(len(means), *c.kernel_size, c.out_channels).permute(0, 3, 1, 2)
        if c.kernel_size == (1, 1):
            return taps if self.bias is None else taps + self.bias[:, None, None]
        batch = len(means)
        ones = torch.ones(1, batch, *size)
        bias = None if self.bias is None else self.bias.repeat(batch)
        kernels = taps.flatten(0, 1)[:, None]
        result = F.conv2d(ones, kernels, bias, c.stride, c.padding, c.dilation, groups=batch)
        return result.view(batch, c.out_channels, *result.shape[2:])


def use_centring(network: nn.Module, dtype: torch.dtype) -> None:
    """Let every wide convolution of a network in float32 multiply in a shorter type, in place; all else stays."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and is_suited(child):
                setattr(parent, name, CentredConv2d(child, dtype))


def is_suited(convolution: nn.Conv2d) -> bool:
    """Whether `CentredConv2d` can take the place of a convolution, and gains by it."""
    return (
        min(convolution.in_channels, convolution.out_channels) >= LEAST_CHANNELS
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
    )
