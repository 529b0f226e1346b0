"""What every segmentation network of the project offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import PebalError


class SegmentationNetwork(nn.Module, ABC):
    """K inlier classes + one abstention channel (the last), split into a trunk and a head.

    PEBAL fine-tunes the head and leaves the trunk as it was, so the two are separate calls; the split also lets
    a caller keep the logits at the network's own resolution and upsample only what it needs.
    """

    num_outputs: int
    """K + 1: the inlier classes and the abstention channel."""
    stride: int
    """`trunk` needs sides that are multiples of this; `forward` pads to it."""
    head_prefixes: tuple[str, ...]
    """State-dict prefixes of the parameters that belong to the head."""
    features: tuple[tuple[int, int], ...] = ()
    """Channels and stride of each tensor that `trunk` gives, (0, 0) for one that is no map of the image; empty: an
    `AnomalyBranch` cannot use them."""
    logit_stride: int = 4
    """Stride of what `head` gives."""

    @abstractmethod
    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of normalised images B×3×H×W."""

    @abstractmethod
    def head(self, features: tuple[Tensor, ...]) -> Tensor:
        """Logits B×(K+1)×h×w at the network's own resolution."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits B×(K+1)×H×W of normalised images B×3×H×W of any size."""
        height, width = images.shape[-2:]
        images = self.pad(images)
        logits = upsample(self.head(self.trunk(images)), images.shape[-2:])
        return logits[..., :height, :width]

    def pad(self, images: Tensor) -> Tensor:
        """Images B×3×H×W with the last row and column repeated until both sides are multiples of `stride`."""
        height, width = images.shape[-2:]
        padding = (0, -width % self.stride, 0, -height % self.stride)
        return F.pad(images, padding, mode="replicate") if any(padding) else images

    def fold_linear(self) -> None:
        """Merge further linear operations in place, after every BatchNorm was folded into its convolution."""

    def is_head(self, name: str) -> bool:
        """Whether the parameter or buffer of this state-dict name belongs to the head."""
        return name.startswith(self.head_prefixes)


class CountsOnCpu(TorchFunctionMode):
    """Inside ``torch.device("meta")``, `torch.linspace` gives numbers all the same.

    Libraries draw up the dropout of each layer with it, and read the numbers at once.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        more = {"device": "cpu"} if function is torch.linspace else {}
        return function(*args, **{**more, **(kwargs or {})})


class _Parts(nn.Module):
    """A network whose answer is what the trunk and what the head gives."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        features = self.network.trunk(images)
        return features, self.network.head(features)


def measure(network: SegmentationNetwork, height: int, width: int) -> None:
    """Set the `features` and the `logit_stride` of a network from what it gives on PyTorch's meta device, in no memory.

    Args:
        height: of the image that is tried, in pixels: a multiple of the network's stride.
        width: likewise.

    Raises:
        PebalError: it gives no K + 1 logits for each pixel.
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
    """Bilinear to H×W with aligned corners, as every network here was trained."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=True)
