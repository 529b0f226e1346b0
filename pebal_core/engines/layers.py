"""Triton kernels for the layers on which cuDNN and PyTorch are slow in half precision and channels-last order.

These are depth-wise convolutions, BatchNorm, biases and activations, bilinear upsampling and adaptive average pooling.
`FastLayers` uses them. With TRITON_INTERPRET=1 the kernels also run on the CPU.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# Triton infers the types of a kernel's arguments from each call.

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES = 1024
"""Number of output values that a program computes."""
MOST_CHANNELS = 64
"""Most channels that a program computes."""


@triton.jit  # type: ignore[untyped-decorator]
def _depthwise(
    x, taps, bias, y, height, width, channels, out_height, out_width,
    down: tl.constexpr, right: tl.constexpr, top: tl.constexpr, left: tl.constexpr,
    dilation_y: tl.constexpr, dilation_x: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    slope, biased: tl.constexpr, bent: tl.constexpr, cap: tl.constexpr, pixels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """A depth-wise convolution with its activation, N×H×W×C in memory."""
    channel_blocks = (channels + block - 1) // block
    part = tl.program_id(0)
    column = (part // channel_blocks) * pixels + tl.arange(0, pixels)
    channel = (part % channel_blocks) * block + tl.arange(0, block)
    row, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    real = channel < channels
    total = tl.full([pixels, block], 0, tl.float32)
    if biased:
        total += tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    for i in tl.static_range(rows):
        at_row = row * down - top + i * dilation_y
        for j in tl.static_range(columns):
            at_column = column * right - left + j * dilation_x
            inside = (at_column >= 0) & (at_column < width) & (at_row >= 0) & (at_row < height)
            where = ((image * height + at_row) * width + at_column)[:, None] * channels + channel[None, :]
            value = tl.load(x + where, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32)
            tap = tl.load(taps + (i * columns + j) * channels + channel, mask=real, other=0.0).to(tl.float32)
            total += value * tap[None, :]
    if bent:
        share = tl.load(slope + channel, mask=real, other=0.0).to(tl.float32)[None, :]
        total = tl.where(total > 0, tl.minimum(total, cap), total * share)
    where = ((image * out_height + row) * out_width + column)[:, None] * channels + channel[None, :]
    tl.store(y + where, total.to(y.dtype.element_ty), mask=(column < out_width)[:, None] & real[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _finish(
    x, factor, offset, slope, y, count, scaled: tl.constexpr, bent: tl.constexpr, cap: tl.constexpr,
    channels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Multiply by a factor, add an offset and activate, N×H×W×C in memory."""
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < count
    channel = index % channels
    value = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
    if scaled:
        value *= tl.load(factor + channel, mask=inside, other=0.0)
    value += tl.load(offset + channel, mask=inside, other=0.0).to(tl.float32)
    if bent:
        share = tl.load(slope + channel, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(value > 0, tl.minimum(value, cap), value * share)
    tl.store(y + index, value.to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _upsample(
    x, y, height, width, channels, out_height, out_width, row_step, column_step, pixels: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Upsample bilinearly with aligned corners, N×H×W×C in memory."""
    channel_blocks = (channels + block - 1) // block
    part = tl.program_id(0)
    column = (part // channel_blocks) * pixels + tl.arange(0, pixels)
    channel = (part % channel_blocks) * block + tl.arange(0, block)
    row, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    inside = (column < out_width)[:, None] & (channel < channels)[None, :]
    at_row, at_column = row.to(tl.float32) * row_step, column.to(tl.float32) * column_step
    top, left = tl.minimum(at_row.to(tl.int32), height - 1), tl.minimum(at_column.to(tl.int32), width - 1)
    down, right = at_row - top.to(tl.float32), (at_column - left.to(tl.float32))[:, None]
    first = (image * height + top) * width
    second = (image * height + tl.minimum(top + 1, height - 1)) * width
    near = left[:, None] * channels + channel[None, :]
    far = tl.minimum(left + 1, width - 1)[:, None] * channels + channel[None, :]
    a = tl.load(x + first * channels + near, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + first * channels + far, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(x + second * channels + near, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(x + second * channels + far, mask=inside, other=0.0).to(tl.float32)
    value = (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d)
    where = ((image * out_height + row) * out_width + column)[:, None] * channels + channel[None, :]
    tl.store(y + where, value.to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _average(
    x, y, height, width, channels, out_height, out_width, rows: tl.constexpr, columns: tl.constexpr,
    pixels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Average over adaptive windows of at most ``rows`` × ``columns`` pixels, N×H×W×C in memory."""
    channel_blocks = (channels + block - 1) // block
    part = tl.program_id(0)
    column = (part // channel_blocks) * pixels + tl.arange(0, pixels)
    channel = (part % channel_blocks) * block + tl.arange(0, block)
    row, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    real = (column < out_width)[:, None] & (channel < channels)[None, :]
    top, bottom = row * height // out_height, ((row + 1) * height + out_height - 1) // out_height
    left, right = column * width // out_width, ((column + 1) * width + out_width - 1) // out_width
    total = tl.full([pixels, block], 0, tl.float32)
    for i in range(rows):
        for j in range(columns):
            inside = (left + j < right) & (top + i < bottom)
            where = ((image * height + top + i) * width + left + j)[:, None] * channels + channel[None, :]
            total += tl.load(x + where, mask=real & inside[:, None], other=0.0).to(tl.float32)
    total = total / ((bottom - top) * (right - left)).to(tl.float32)[:, None]
    where = ((image * out_height + row) * out_width + column)[:, None] * channels + channel[None, :]
    tl.store(y + where, total.to(y.dtype.element_ty), mask=real)


class Activation(NamedTuple):
    """An activation whose result is x · ``slope`` below zero, and at most ``cap`` above."""

    slope: Tensor
    """One value per channel."""
    cap: float


def depthwise(
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: Activation | None = None,
) -> Tensor:
    """Compute a convolution with one group per channel.

    Args:
        x: N×C×H×W.
        taps: the weights, rows × columns × C.
        bias: C values.
        stride: pixels down and right from one output to the next.
        padding: zeros at the left, right, top and bottom, as in `torch.nn.functional.pad`.
        dilation: pixels down and right from one tap to the next.
        activation: what is applied to the result.

    Examples:
        >>> x, taps = torch.ones(1, 8, 6, 9, device="cuda"), torch.ones(3, 3, 8, device="cuda")  # doctest: +SKIP
        >>> depthwise(x, taps, padding=(1, 1, 1, 1))[0, 0, 0, 0].item()  # doctest: +SKIP
        4.0
    """
    rows, columns, channels = taps.shape
    left, right, top, bottom = padding
    height, width = x.shape[-2:]
    size = (
        (height + top + bottom - dilation[0] * (rows - 1) - 1) // stride[0] + 1,
        (width + left + right - dilation[1] * (columns - 1) - 1) // stride[1] + 1,
    )
    x, y = _channels_last(x), _empty(x, size)
    grid, blocks = _blocks(y)
    with torch.cuda.device_of(x):
        _depthwise[grid](
            x, taps, taps if bias is None else bias, y, height, width, channels, *size, *stride, top, left, *dilation,
            rows, columns, taps if activation is None else activation.slope, bias is not None, activation is not None,
            math.inf if activation is None else activation.cap, **blocks,
        )  # fmt: skip
    return y


def finish(
    x: Tensor, factor: Tensor | None, offset: Tensor, activation: Activation | None = None, in_place: bool = False
) -> Tensor:
    """Multiply x, N×C×H×W, by a factor and add an offset, both with one value per channel, and activate the result.

    Examples:
        >>> factor, offset = torch.tensor([0.5], device="cuda"), torch.tensor([1.0], device="cuda")  # doctest: +SKIP
        >>> finish(torch.full((1, 1, 1, 2), 4.0, device="cuda"), factor, offset)  # doctest: +SKIP
        tensor([[[[3., 3.]]]], device='cuda:0')
    """
    x = _channels_last(x)
    y = x if in_place else torch.empty_like(x)
    with torch.cuda.device_of(x):
        _finish[(triton.cdiv(x.numel(), VALUES),)](
            x, offset if factor is None else factor, offset, offset if activation is None else activation.slope, y,
            x.numel(), factor is not None, activation is not None, math.inf if activation is None else activation.cap,
            channels=x.shape[1], block=VALUES,
        )  # fmt: skip
    return y


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute `torch.nn.functional.interpolate` with ``mode="bilinear"`` and ``align_corners=True``.

    Examples:
        >>> x = torch.tensor([[[[0.0, 3.0]]]], device="cuda")  # doctest: +SKIP
        >>> upsample(x, (1, 4)).flatten().tolist()  # doctest: +SKIP
        [0.0, 1.0, 2.0, 3.0]
    """
    x, y = _channels_last(x), _empty(x, size)
    steps = [(i - 1) / (o - 1) if o > 1 else 0.0 for i, o in zip(x.shape[-2:], size, strict=True)]
    grid, blocks = _blocks(y)
    with torch.cuda.device_of(x):
        _upsample[grid](x, y, *x.shape[-2:], x.shape[1], *size, *steps, **blocks)
    return y


def average(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute `torch.nn.functional.adaptive_avg_pool2d`.

    Examples:
        >>> average(torch.ones(1, 3, 5, 7, device="cuda"), (2, 3)).shape  # doctest: +SKIP
        torch.Size([1, 3, 2, 3])
    """
    x, y = _channels_last(x), _empty(x, size)
    # A window starts in the middle of a pixel unless the sides divide, and then covers up to two pixels more.
    windows = [side // o if side % o == 0 else side // o + 2 for side, o in zip(x.shape[-2:], size, strict=True)]
    grid, blocks = _blocks(y)
    with torch.cuda.device_of(x):
        _average[grid](x, y, *x.shape[-2:], x.shape[1], *size, *windows, **blocks)
    return y


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(x: Tensor, size: Any) -> Tensor:
    shape = (x.shape[0], x.shape[1], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _blocks(y: Tensor) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Grid of programs, and pixels and channels of each, for an output N×C×H×W."""
    count, channels, height, width = y.shape
    block = min(MOST_CHANNELS, triton.next_power_of_2(channels))
    pixels = min(VALUES // block, triton.next_power_of_2(width))
    return (triton.cdiv(width, pixels) * triton.cdiv(channels, block), height, count), {
        "pixels": pixels,
        "block": block,
    }
