"""Folds operations that do not depend on the image, which makes inference cheaper with the same output."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .base import SegmentationNetwork

TRACE_SIDE = 64
"""Side in pixels of the image on which the network is traced; it is small and a multiple of every stride."""


def fold(network: SegmentationNetwork) -> SegmentationNetwork:
    """Merge linear layers, and replace paddings that depend on the image size by constants.

    A BatchNorm, for example, is merged into a convolution if it is the only consumer of the convolution's output.
    Afterwards the network can be used for inference only, and its state dict fits no model file.

    Args:
        network: a network on the CPU, which is changed in place and put into eval mode.

    Examples:
        >>> from pebal_core.networks import build_network
        >>> network = build_network("espnetv2", num_outputs=6, scale=0.5).eval()
        >>> images = torch.rand(1, 3, 64, 64)
        >>> expected = network(images)
        >>> torch.allclose(fold(network)(images), expected, atol=1e-4)
        True
    """
    network.eval()
    with torch.no_grad():
        for convolution, norm in pairs(network, (nn.Conv2d,), (nn.BatchNorm2d,)):
            if norm.track_running_stats:
                _merge(convolution, norm)
                replace(network, norm, nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else None)
        network.fold_linear()
    for module in list(network.modules()):
        if isinstance(module, Conv2dSame):
            replace(network, module, _fixed_padding(module))
    return network.requires_grad_(False)


def round_kernels(network: nn.Module, dtype: torch.dtype) -> None:
    """Round the kernels to a shorter type such that the rounding errors within each kernel cancel.

    Neighbouring pixels are alike, so the sum of a kernel's taps matters most. It drifts if each tap is rounded
    independently. Here the rounding error of each tap is added to the next one.

    Args:
        network: a float32 network, whose kernels hold values of ``dtype`` afterwards.
        dtype: the shorter type.

    Examples:
        >>> convolution = nn.Conv2d(1, 1, 3)
        >>> _ = nn.init.constant_(convolution.weight, 1 / 3)
        >>> convolution.weight.half().float().sum().item()  # each tap is rounded independently
        2.999267578125
        >>> round_kernels(convolution, torch.float16)
        >>> convolution.weight.sum().item()
        3.0
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        taps = module.weight.data.flatten(2)
        error = torch.zeros_like(taps[..., 0])
        for tap in taps.unbind(-1):
            wanted = tap + error
            tap.copy_(wanted.to(dtype))
            error = wanted - tap


def pairs(
    network: SegmentationNetwork, makers: tuple[type[nn.Module], ...], users: tuple[type[nn.Module], ...]
) -> list[tuple[Any, Any]]:
    """Find layers whose output is used by one other layer and nothing else, by running the network once.

    Args:
        network: a network in eval mode.
        makers: types of the first layers.
        users: types of the second layers.

    Examples:
        >>> from pebal_core.networks import build_network
        >>> network = build_network("espnetv2", num_outputs=6, scale=0.5).eval()
        >>> len(pairs(network, (nn.Conv2d,), (nn.BatchNorm2d,)))
        47
    """
    uses = _Uses()
    made_by: dict[int, nn.Module] = {}
    found: list[tuple[nn.Module, nn.Module, int]] = []
    calls: Counter[nn.Module] = Counter()

    def after(module: nn.Module, _: Any, output: Tensor) -> None:
        uses.kept.append(output)
        made_by[id(output)] = module
        calls[module] += 1

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        if id(inputs[0]) in made_by:
            found.append((made_by[id(inputs[0])], module, id(inputs[0])))

    hooks = []
    for module in network.modules():
        if isinstance(module, makers):
            hooks.append(module.register_forward_hook(after))
        if isinstance(module, users):
            hooks.append(module.register_forward_pre_hook(before))
    images = torch.zeros(1, 3, TRACE_SIDE, TRACE_SIDE)
    weight = next(network.parameters(), images)
    try:
        with torch.no_grad(), uses:
            network(images.to(weight))
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (maker, user) for maker, user, output in found if uses.count[output] == 1 and calls[maker] == calls[user] == 1
    ]


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that use each tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[int] = Counter()
        self.kept: list[Tensor] = []
        """References that keep tensors alive, so that no id is reused."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.count[id(leaf)] += 1
                self.kept.append(leaf)
        return function(*args, **(kwargs or {}))


def _merge(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _fixed_padding(convolution: Conv2dSame) -> nn.Module:
    """Replace TensorFlow's "same" padding by a constant.

    The padding is constant for even sides, and the input of a trunk is always a multiple of its stride.
    """
    before, after = [], []
    for kernel, stride, dilation in zip(convolution.kernel_size, convolution.stride, convolution.dilation, strict=True):
        total = max((kernel - 1) * dilation + 1 - stride, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        (convolution.kernel_size[0], convolution.kernel_size[1]),
        (convolution.stride[0], convolution.stride[1]),
        0,
        (convolution.dilation[0], convolution.dilation[1]),
        convolution.groups,
        bias=convolution.bias is not None,
        device="meta",
    )
    plain.weight, plain.bias = convolution.weight, convolution.bias
    if before == after:
        plain.padding = (before[0], before[1])
        # nn.Conv2d derives this from the padding. Only other padding modes use it, but it is kept consistent.
        plain._reversed_padding_repeated_twice = [before[1], before[1], before[0], before[0]]
        return plain
    return nn.Sequential(nn.ZeroPad2d((before[1], after[1], before[0], after[0])), plain)


def replace(network: nn.Module, old: nn.Module, new: nn.Module | None) -> None:
    """Put a module in the place of another one, or nothing.

    Examples:
        >>> network = nn.Sequential(nn.ReLU(), nn.PReLU())
        >>> replace(network, network[0], None)
        >>> network
        Sequential(
          (0): Identity()
          (1): PReLU(num_parameters=1)
        )
    """
    for parent in network.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, nn.Identity() if new is None else new)
