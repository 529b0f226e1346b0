"""The base class of all segmentation networks of the project."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import PebalError


class SegmentationNetwork(nn.Module, ABC):
    """A network with K inlier classes and one abstention channel (the last), split into a trunk and a head.

    PEBAL fine-tunes the head and leaves the trunk unchanged, so the two are separate calls. The split also lets a
    caller keep the logits at the network's own resolution and upsample only the part that it needs.

    Examples:
        >>> class OneLayer(SegmentationNetwork):
        ...     num_outputs, stride, head_prefixes, logit_stride = 20, 1, ("classify.",), 1
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.classify = nn.Conv2d(3, 20, 1)
        ...     def trunk(self, images):
        ...         return (images,)
        ...     def head(self, features):
        ...         return self.classify(features[0])
        >>> OneLayer()(torch.zeros(1, 3, 32, 48)).shape
        torch.Size([1, 20, 32, 48])
    """

    num_outputs: int
    """K + 1: the inlier classes and the abstention channel."""
    stride: int
    """`trunk` needs inputs whose sides are multiples of this; `forward` pads to it."""
    head_prefixes: tuple[str, ...]
    """State-dict prefixes of the parameters that belong to the head."""
    features: tuple[tuple[int, int], ...] = ()
    """Channels and stride of each tensor that `trunk` returns, (0, 0) for one that is no map of the image. If it is
    empty, an `AnomalyBranch` cannot be added."""
    logit_stride: int = 4
    """Stride of the logits that `head` returns."""

    @abstractmethod
    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute features of normalised images B×3×H×W."""

    @abstractmethod
    def head(self, features: tuple[Tensor, ...]) -> Tensor:
        """Compute logits B×(K+1)×h×w at the network's own resolution."""

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits B×(K+1)×H×W of normalised images B×3×H×W of any size."""
        height, width = images.shape[-2:]
        images = self.pad(images)
        logits = upsample(self.head(self.trunk(images)), images.shape[-2:])
        return logits[..., :height, :width]

    def pad(self, images: Tensor) -> Tensor:
        """Pad images B×3×H×W by repeating the last row and column until both sides are multiples of `stride`."""
        height, width = images.shape[-2:]
        padding = (0, -width % self.stride, 0, -height % self.stride)
        return F.pad(images, padding, mode="replicate") if any(padding) else images

    def fold_linear(self) -> None:
        """Merge further linear operations in place, after every BatchNorm was folded into its convolution."""

    def is_head(self, name: str) -> bool:
        """Whether the parameter or buffer of this state-dict name belongs to the head."""
        return name.startswith(self.head_prefixes)


class CountsOnCpu(TorchFunctionMode):
    """Makes `torch.linspace` return real numbers inside ``torch.device("meta")``.

    Libraries use it to set the dropout of each layer and read its values immediately.

    Examples:
        >>> with torch.device("meta"), CountsOnCpu():
        ...     torch.linspace(0, 1, 3).tolist()
        [0.0, 0.5, 1.0]
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        more = {"device": "cpu"} if function is torch.linspace else {}
        return function(*args, **{**more, **(kwargs or {})})


class _Parts(nn.Module):
    """A network that returns the outputs of both trunk and head."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        features = self.network.trunk(images)
        return features, self.network.head(features)


def measure(network: SegmentationNetwork, height: int, width: int) -> None:
    """Set the `features` and the `logit_stride` of a network by running it on PyTorch's meta device, without memory.

    Args:
        network: the network.
        height: height of the test image in pixels, a multiple of the network's stride.
        width: width of the test image in pixels, a multiple of the network's stride.

    Raises:
        PebalError: the network does not return K + 1 logits per pixel.

    Examples:
        >>> from pebal_core.networks import build_network
        >>> network = build_network("espnetv2", scale=0.5)
        >>> measure(network, 64, 128)
        >>> network.features, network.logit_stride
        (((16, 2), (32, 4), (64, 8), (128, 16)), 2)
    """
    parts, training = _Parts(network), network.training
    state = [*parts.named_parameters(), *parts.named_buffers()]
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in state}
    with torch.no_grad(), torch.device("meta"):
        features, logits = torch.func.functional_call(parts.eval(), meta, (torch.empty(1, 3, height, width),))
    network.train(training)
    if logits.dim() != 4 or logits.shape[1] != network.num_outputs:
        raise PebalError(f"it gives {tuple(logits.shape)} for an image instead of {network.num_outputs} maps of logits")
    network.features = tuple((x.shape[1], height // x.shape[2]) if x.dim() == 4 else (0, 0) for x in features)
    network.logit_stride = height // logits.shape[2]


def upsample(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Upsample logits B×C×h×w to H×W bilinearly with aligned corners, as in the training of every network here.

    Examples:
        >>> upsample(torch.tensor([[[[0.0, 3.0]]]]), (1, 4))
        tensor([[[[0., 1., 2., 3.]]]])
    """
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=True)
