"""Runs a network on a GPU with the kernels of `layers`, which stand in for functions of PyTorch.

Networks need not know about the kernels, because `FastLayers` intercepts the calls of the functions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..networks import SegmentationNetwork
from ..networks.folding import pairs, replace
from . import layers
from .cuda import agree
from .layers import Activation

LARGEST_DENSE = 1 << 18
"""Most weights of a grouped convolution, written as a dense one, up to which the dense one is used: cuDNN copies the
channels of each group, which takes longer than multiplying with zeros on tensor cores."""

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.PReLU)
"""Activations that the layers can take over."""


class FastLayers(TorchFunctionMode):
    """Inside this context, layers use the kernels of `layers`, and narrow grouped convolutions become dense ones.

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
            return layers.depthwise(x, taps, bias, _pair(stride), sides, _pair(dilation), bend)
        narrow = groups > 1 and weight.numel() * groups <= LARGEST_DENSE
        if not narrow and bias is None:
            return None
        kernels, bend = self._once(
            weight, lambda: (dense(weight, groups) if narrow else weight, self._activation(weight, len(weight)))
        )
        y = torch.conv2d(x, kernels, None, stride, padding, dilation, 1 if narrow else groups)
        return y if bias is None else layers.finish(y, None, bias, bend, in_place=True)

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

        return layers.finish(x, *self._once(mean, prepare))

    def _upsample(
        self, x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None,
        recompute_scale_factor: Any = None, antialias: bool = False,
    ) -> Tensor | None:  # fmt: skip
        if x.dim() != 4 or mode != "bilinear" or not align_corners or antialias:
            return None
        if size is None:
            size = [int(side * scale) for side, scale in zip(x.shape[-2:], _pair(scale_factor), strict=True)]
        return layers.upsample(x, _pair(size))

    def _average(self, x: Tensor, size: Any) -> Tensor | None:
        size = _pair(size)
        if x.dim() != 4 or None in size or size == (1, 1):
            return None
        return layers.average(x, size)


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
