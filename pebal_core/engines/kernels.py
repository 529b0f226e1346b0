"""Triton kernels that compute labels and energy from logits on a GPU in one pass.

Each output pixel interpolates its four neighbouring logits in registers, one class after the other. The K channels
never exist at full resolution, so 5 bytes are written per pixel instead of 80 more. With TRITON_INTERPRET=1 the kernels
also run on the CPU.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# Triton infers the types of a kernel's arguments from each call.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..scores import GAUSSIAN

BLOCK = 256
"""Number of pixels of one row that a program computes."""


@triton.jit  # type: ignore[untyped-decorator]
def _read(
    logits, labels, energy, rows, columns, height, width, row_step, column_step,
    image_stride, class_stride, row_stride, column_stride, classes: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Accumulate the maximum, its class, and the sum of exponentials relative to the maximum, over the classes."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    y = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    inside = x < width
    at_row = y.to(tl.float32) * row_step
    at_column = x.to(tl.float32) * column_step
    top = tl.minimum(at_row.to(tl.int32), rows - 1)
    left = tl.minimum(at_column.to(tl.int32), columns - 1)
    down = at_row - top.to(tl.float32)
    right = at_column - left.to(tl.float32)
    first_row = logits + image * image_stride + top.to(tl.int64) * row_stride
    second_row = logits + image * image_stride + tl.minimum(top + 1, rows - 1).to(tl.int64) * row_stride
    near = left.to(tl.int64) * column_stride
    far = tl.minimum(left + 1, columns - 1).to(tl.int64) * column_stride
    highest = tl.full([block], -float("inf"), tl.float32)
    total = tl.full([block], 0, tl.float32)
    label = tl.full([block], 0, tl.int32)
    for k in range(classes):
        a = tl.load(first_row + near + k * class_stride, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(first_row + far + k * class_stride, mask=inside, other=0.0).to(tl.float32)
        c = tl.load(second_row + near + k * class_stride, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(second_row + far + k * class_stride, mask=inside, other=0.0).to(tl.float32)
        value = (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d)
        peak = tl.maximum(highest, value)
        total = total * tl.exp(highest - peak) + tl.exp(value - peak)
        label = tl.where(value > highest, k, label)
        highest = peak
    pixel = (image * height + y) * width + x
    tl.store(labels + pixel, label.to(tl.uint8), mask=inside)
    tl.store(energy + pixel, -(highest + tl.log(total)), mask=inside)


@triton.jit
def _reflect(i, size):
    """Mirror an index at both borders, without repeating the border pixels."""
    i = tl.where(i < 0, -i, i)
    return tl.where(i >= size, 2 * size - 2 - i, i)


@triton.jit  # type: ignore[untyped-decorator]
def _blur(
    energy, blurred, height, width, w0: tl.constexpr, w1: tl.constexpr, w2: tl.constexpr, w3: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Blur with 7×7 taps, of weights w0 w1 w2 w3 w2 w1 w0 along both axes; the cache serves repeated reads."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    y = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    inside = x < width
    total = tl.full([block], 0, tl.float32)
    for i in tl.static_range(7):
        row = energy + (image * height + _reflect(y + i - 3, height)) * width
        across = tl.full([block], 0, tl.float32)
        for j in tl.static_range(7):
            value = tl.load(row + _reflect(x + j - 3, width), mask=inside, other=0.0)
            across += (w3 if j == 3 else w2 if j == 2 or j == 4 else w1 if j == 1 or j == 5 else w0) * value
        total += (w3 if i == 3 else w2 if i == 2 or i == 4 else w1 if i == 1 or i == 5 else w0) * across
    tl.store(blurred + (image * height + y) * width + x, total, mask=inside)


def read(logits: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute labels (N×H×W uint8) and energies (N×H×W float32) from logits of any strides and floating-point type.

    The arguments are those of `Readout`.

    Examples:
        >>> logits = torch.zeros(1, 20, 32, 64, device="cuda")  # doctest: +SKIP
        >>> labels, energy = read(logits, padded=(128, 256), size=(120, 250))  # doctest: +SKIP
        >>> labels.shape, round(energy[0, 0, 0].item(), 4)  # doctest: +SKIP
        (torch.Size([1, 120, 250]), -2.9444)
    """
    count, channels, rows, columns = logits.shape
    labels = torch.empty((count, *size), dtype=torch.uint8, device=logits.device)
    energy = torch.empty((count, *size), device=logits.device)
    row_step, column_step = ((i - 1) / (o - 1) if o > 1 else 0.0 for i, o in zip((rows, columns), padded, strict=True))
    with torch.cuda.device_of(logits):
        _read[_grid(count, size)](
            logits, labels, energy, rows, columns, *size, row_step, column_step, *logits.stride(),
            classes=channels - 1, block=BLOCK,
        )  # fmt: skip
    return labels, energy


def blur(energy: Tensor) -> Tensor:
    """Apply the 7×7 Gaussian (sigma 1, reflected borders) to energies N×H×W float32 with sides of at least 4.

    Examples:
        >>> blur(torch.ones(1, 64, 96, device="cuda"))[0, 0, 0].item()  # doctest: +SKIP
        1.0
    """
    energy = energy.contiguous()
    blurred = torch.empty_like(energy)
    count, height, width = energy.shape
    with torch.cuda.device_of(energy):
        _blur[_grid(count, (height, width))](energy, blurred, height, width, *GAUSSIAN[:4], block=BLOCK)
    return blurred


def _grid(count: int, size: tuple[int, int]) -> tuple[int, int, int]:
    return -(-size[1] // BLOCK), size[0], count
