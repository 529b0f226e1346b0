"""Triton kernels for the layers on which cuDNN and PyTorch are slow in half precision and channels-last order.

These are depth-wise convolutions, BatchNorm, bilinear upsampling and adaptive average pooling. `FastLayers` replaces
the calls of PyTorch's functions, so networks need not know about the kernels. With TRITON_INTERPRET=1 the kernels also
run on the CPU.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# Triton infers the types of a kernel's arguments from each call.

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..networks import SegmentationNetwork
from ..networks.folding import pairs, replace
from .cuda import agree

VALUES = 1024
"""Number of output values that a program computes."""
MOST_CHANNELS = 64
"""Most channels that a program computes."""
LARGEST_DENSE = 1 << 18
"""Most weights of a grouped convolution, written as a dense one, up to which the dense one is used: cuDNN copies the
channels of each group, which takes longer than multiplying with zeros on tensor cores."""

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.PReLU)
"""Activations that the layers can take over."""


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


class FastLayers(TorchFunctionMode):
    """Inside this context, layers use the kernels above, and narrow grouped convolutions become dense ones.

    The result of each layer is compared with that of PyTorch when it first occurs with a shape.

    Args:
        network: a network on a GPU, ready for inference, whose weights do not change any more.

    Raises:
        RuntimeError: a result differs from that of PyTorch.

    Examples:
        >>> fast = FastLayers(network)  # doctest: +SKIP
        >>> with fast:  # doctest: +SKIP
        ...     logits = fast.network(images)
    """

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        self.network = copy.deepcopy(network, shared)
        """The same network with the same weights, without what the layers do as well: activations and paddings."""
        self._activations: dict[int, nn.Module] = {}
        self._padding: dict[int, tuple[int, int, int, int]] = {}
        """Both by the id of a layer's first tensor."""
        self._weights = set(shared)
        """The ids of its tensors; a weight that a layer computes anew for every image is none of them."""
        self._prepared: dict[int, Any] = {}
        """By the id of a tensor: what was computed from it and its neighbours."""
        self._checked: set[tuple[Any, ...]] = set()
        self._take_over()

    def _take_over(self) -> None:
        """Move activations and paddings from the network into its layers."""
        for module in self.network.modules():
            if isinstance(module, ACTIVATIONS) and not isinstance(module, nn.PReLU):
                module.inplace = False
        for layer, activation in pairs(self.network, (nn.Conv2d, nn.BatchNorm2d), ACTIVATIONS):
            if isinstance(layer, nn.BatchNorm2d):
                first = layer.running_mean
            else:
                first = layer.weight if layer.bias is not None or _is_depthwise(layer) else None
            if first is not None:
                self._activations[id(first)] = activation
                replace(self.network, activation, None)
        for module in self.network.modules():
            parts = [*module] if isinstance(module, nn.Sequential) else []
            if [type(part) for part in parts] == [nn.ZeroPad2d, nn.Conv2d] and _is_depthwise(parts[1]):
                self._padding[id(parts[1].weight)] = parts[0].padding
                replace(module, parts[0], None)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fast = FAST.get(function)
        result = fast(self, *args, **kwargs) if fast else None
        if result is None:
            return function(*args, **kwargs)
        x, *others = (argument for argument in (*args, *kwargs.values()) if isinstance(argument, Tensor))
        first = id(others[0]) if others else 0
        key = (function, first, tuple(x.shape), tuple(result.shape), x.dtype)
        if key not in self._checked:
            padded = F.pad(x, self._padding[first]) if first in self._padding else x
            expected = function(padded, *args[1:], **kwargs)
            if first in self._activations:
                expected = self._activations[first](expected)
            if not agree((result,), (expected,)):
                raise RuntimeError(f"the answer of {function.__name__} is not that of plain PyTorch")
            self._checked.add(key)
        return result

    def _once(self, tensor: Tensor, prepare: Callable[[], Any]) -> Any:
        if id(tensor) not in self._prepared:
            self._prepared[id(tensor)] = prepare()
        return self._prepared[id(tensor)]

    def _activation(self, first: Tensor, channels: int) -> Activation | None:
        """The activation that a layer has taken over."""
        module = self._activations.get(id(first))
        if module is None:
            return None
        if isinstance(module, nn.PReLU):
            slope = module.weight.detach().float().expand(channels).contiguous()
        else:
            slope = torch.zeros(channels, device=first.device)
        return Activation(slope, 6.0 if isinstance(module, nn.ReLU6) else math.inf)

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:  # fmt: skip
        if id(weight) not in self._weights:
            return None
        if groups == x.shape[1] == weight.shape[0] and groups > 1 and not isinstance(padding, str):
            taps, bend = self._once(
                weight, lambda: (weight[:, 0].permute(1, 2, 0).contiguous(), self._activation(weight, len(weight)))
            )
            down, right = _pair(padding)
            sides = self._padding.get(id(weight), (right, right, down, down))
            return depthwise(x, taps, bias, _pair(stride), sides, _pair(dilation), bend)
        narrow = groups > 1 and weight.numel() * groups <= LARGEST_DENSE
        if not narrow and bias is None:
            return None
        kernels, bend = self._once(
            weight, lambda: (dense(weight, groups) if narrow else weight, self._activation(weight, len(weight)))
        )
        y = torch.conv2d(x, kernels, None, stride, padding, dilation, 1 if narrow else groups)
        return y if bias is None else finish(y, None, bias, bend, in_place=True)

    def _normalise(
        self, x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False,
        momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor | None:  # fmt: skip
        if training or x.dim() != 4 or id(mean) not in self._weights:
            return None

        def prepare() -> tuple[Tensor, Tensor, Activation | None]:
            factor = (var.float() + eps).rsqrt() * (1 if weight is None else weight)
            offset = (0 if bias is None else bias) - mean * factor
            return factor.float(), offset.float(), self._activation(mean, len(mean))

        return finish(x, *self._once(mean, prepare))

    def _upsample(
        self, x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None,
        recompute_scale_factor: Any = None, antialias: bool = False,
    ) -> Tensor | None:  # fmt: skip
        if x.dim() != 4 or mode != "bilinear" or not align_corners or antialias:
            return None
        if size is None:
            size = [int(side * scale) for side, scale in zip(x.shape[-2:], _pair(scale_factor), strict=True)]
        return upsample(x, _pair(size))

    def _average(self, x: Tensor, size: Any) -> Tensor | None:
        size = _pair(size)
        if x.dim() != 4 or None in size or size == (1, 1):
            return None
        return average(x, size)


FAST: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv2d: FastLayers._convolve,
    F.batch_norm: FastLayers._normalise,
    F.interpolate: FastLayers._upsample,
    F.adaptive_avg_pool2d: FastLayers._average,
}


def _is_depthwise(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and 1 < layer.groups == layer.in_channels == layer.out_channels
        and not isinstance(layer.padding, str)
    )


def dense(weight: Tensor, groups: int) -> Tensor:
    """Weights of the convolution with one group that equals one with several groups.

    Examples:
        >>> dense(torch.tensor([[1.0], [2.0]]).view(2, 1, 1, 1), 2).view(2, 2)
        tensor([[1., 0.],
                [0., 2.]])
    """
    outputs, inputs, *kernel = weight.shape
    result = weight.new_zeros(groups, outputs // groups, groups, inputs, *kernel)
    for group, part in enumerate(weight.view(groups, outputs // groups, inputs, *kernel)):
        result[group, :, group] = part
    result = result.view(outputs, groups * inputs, *kernel)
    return result.contiguous(memory_format=torch.channels_last)


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if not isinstance(value, (tuple, list, torch.Size)) else (value[0], value[1])
