"""Winograd's minimal filtering for wide 3×3 convolutions on the CPU, which needs a quarter of the multiplications.

It implements F(4×4, 3×3) of Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016), as three
matrix products. Tiles of 6×6 pixels are transformed (`INPUT`), multiplied with transformed kernels (`KERNEL`) by a
product over the channels for each of the 36 positions, and transformed back to 4×4 pixels (`OUTPUT`). oneDNN, which
PyTorch uses on CPUs, no longer has such a kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE, REACH = 4, 6
"""Sides of an output tile, and of the input tile from which it is computed."""

INPUT = torch.tensor(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
     [0, 4, 0, -5, 0, 1]], dtype=torch.float64)  # fmt: skip
KERNEL = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24  # fmt: skip
OUTPUT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    dtype=torch.float64)  # fmt: skip

BAND_BYTES = 64_000_000
"""Scratch memory of one transform; bands of tiles of this size are processed one after the other."""

LEAST_CHANNELS = 128
"""Narrower layers are faster as direct convolutions, because the transforms dominate."""

GREATEST_DILATION = 4
"""Largest dilation. Sides are padded to a multiple of 4 dilations, and beyond this the padding costs more than it
saves."""


class WinogradConv2d(nn.Module):
    """Replaces a 3×3 `nn.Conv2d` of stride 1 that keeps the size, with any dilation and any size, on the CPU only.

    Inputs and outputs are float32. Rounding errors are about 1e-5 of the output's standard deviation.

    Args:
        convolution: a float32 convolution for which `is_suited` holds.

    Examples:
        >>> convolution = nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False)
        >>> x = torch.rand(1, 128, 6, 9).contiguous(memory_format=torch.channels_last)
        >>> torch.allclose(WinogradConv2d(convolution)(x), convolution(x), atol=1e-4)
        True
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.dilation = int(convolution.dilation[0])
        taps = convolution.weight.detach().permute(2, 3, 1, 0).reshape(9, -1)
        transform = torch.kron(KERNEL, KERNEL).float()
        self.kernels = (transform @ taps).view(REACH**2, convolution.in_channels, convolution.out_channels)
        self.bias = None if convolution.bias is None else convolution.bias.detach().float()
        self.to_tiles = torch.kron(INPUT, INPUT).float()
        self.from_tiles = torch.kron(OUTPUT, OUTPUT).float()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve B×C×H×W to B×O×H×W, both in channels-last order."""
        batch, inputs, height, width = x.shape
        outputs, d = self.kernels.shape[2], self.dilation
        # Pixels that are d apart form a grid. Tile (r, c) of a grid covers rows 4·d·r + d·(0…3) + the grid's offset.
        rows, columns = -(-height // (TILE * d)), -(-width // (TILE * d))
        right, bottom = TILE * d * columns + d - width, TILE * d * rows + d - height
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, d, right, d, bottom))
        result = torch.empty(batch, TILE * d * rows, TILE * d * columns, outputs)
        tiles_per_row = batch * d * d * columns
        step = max(1, BAND_BYTES // (4 * REACH**2 * tiles_per_row * max(inputs, outputs)))
        for first in range(0, rows, step):
            band = min(step, rows - first)
            seen = _tiles(padded, REACH, d, first, band, columns)
            pixels = seen.reshape(-1, REACH**2, inputs)
            tiles = torch.bmm(self.to_tiles.expand(len(pixels), -1, -1), pixels)
            products = torch.bmm(tiles.transpose(0, 1), self.kernels).transpose(0, 1)
            values = torch.bmm(self.from_tiles.expand(len(pixels), -1, -1), products)
            if self.bias is not None:
                values += self.bias
            made = _tiles(result, TILE, d, first, band, columns)
            made.copy_(values.view(made.shape))
        return result[:, :height, :width].permute(0, 3, 1, 2)


def _tiles(image: Tensor, side: int, d: int, first: int, rows: int, columns: int) -> Tensor:
    """View of B×H×W×C as B×d×d×rows×columns×side×side×C, with tiles 4·d apart whose pixels are d apart."""
    b, y, x, c = image.stride()
    return image.as_strided(
        (image.shape[0], d, d, rows, columns, side, side, image.shape[3]),
        (b, y, x, TILE * d * y, TILE * d * x, d * y, d * x, c),
        image.storage_offset() + TILE * d * first * y,
    )


def is_suited(convolution: nn.Conv2d) -> bool:
    """Whether `WinogradConv2d` can replace a convolution and is faster.

    Examples:
        >>> is_suited(nn.Conv2d(128, 128, 3, padding=1)), is_suited(nn.Conv2d(128, 128, 3, padding=1, stride=2))
        (True, False)
    """
    return (
        min(convolution.in_channels, convolution.out_channels) >= LEAST_CHANNELS
        and convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and convolution.dilation[0] == convolution.dilation[1] <= GREATEST_DILATION
        and convolution.padding == convolution.dilation
    )


def use_winograd(network: nn.Module) -> None:
    """Replace every suitable convolution of a float32 network in place; afterwards it runs on the CPU only.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 128, 1))
        >>> use_winograd(network)
        >>> [type(layer).__name__ for layer in network]
        ['WinogradConv2d', 'Conv2d']
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and is_suited(child):
                setattr(parent, name, WinogradConv2d(child))
