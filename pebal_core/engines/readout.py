"""Computes labels and energy at the size of the image from logits at the network's own resolution.

On the CPU, the K channels are upsampled band by band in buffers that stay in the processor's cache. On a GPU they are
upsampled in the registers of one kernel. The K channels therefore never exist at full resolution as a whole.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.base import upsample
from ..scores import free_energy, gaussian_blur
from .cuda import Function, Guarded

BAND_VALUES = 1 << 19
"""Values of one band over all channels (two megabytes). Smaller bands need more calls, larger ones leave the cache."""

LOG2_E = math.log2(math.e)


class Readout:
    """Upsamples logits (bilinear, aligned corners) and computes energy and argmax; reuses its buffers between calls.

    Examples:
        >>> logits = torch.zeros(1, 3, 2, 2)  # two classes and the abstention
        >>> logits[0, 1, 0] = 4
        >>> labels, energy = Readout()(logits, padded=(4, 4), size=(4, 3))
        >>> energy[0, :, 0]
        tensor([-4.0181, -2.7338, -1.5673, -0.6931])
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._on_device: Function = read_plainly
        self._blur: Function = lambda energy: (gaussian_blur(energy),)

    def use_kernels(self) -> None:
        """On a GPU, use fused kernels that write no full-resolution logits, if they can be compiled."""

        def read(*arguments: Any) -> tuple[Tensor, ...]:
            from . import kernels

            return kernels.read(*arguments)

        def blur(energy: Tensor) -> tuple[Tensor, ...]:
            from . import kernels

            return (kernels.blur(energy),)

        self._on_device = Guarded("The fused readout", read, self._on_device)
        self._blur = Guarded("The fused Gaussian", blur, self._blur)

    @property
    def guarded(self) -> list[Guarded]:
        """The kernels in use; the `reason` of each is set if it was switched off."""
        return [part for part in (self._on_device, self._blur) if isinstance(part, Guarded)]

    def smooth(self, energy: Tensor) -> Tensor:
        """Apply the 7×7 Gaussian (sigma 1, reflected borders) to energies N×H×W; on the CPU it uses OpenCV."""
        if energy.device.type != "cpu":
            (energy,) = self._blur(energy)
            return energy
        return torch.from_numpy(np.stack([smooth_array(image) for image in energy.numpy()]))

    def __call__(self, logits: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Compute labels and energies of a batch.

        Args:
            logits: N×(K+1)×h×w; the last channel is the abstention.
            padded: (height, width) to upsample to.
            size: (H, W) of the part to return, which starts at the upper left corner.

        Returns:
            Labels N×H×W uint8 and unsmoothed energies N×H×W float32 in nats.
        """
        height, width = size
        if logits.device.type != "cpu":
            labels, energy = self._on_device(logits, padded, size)
            return labels, energy
        labels = torch.empty((len(logits), height, width), dtype=torch.uint8)
        energy = torch.empty((len(logits), height, width))
        for i, image in enumerate(logits[:, :-1].float()):
            self._read(image, padded, labels[i], energy[i])
        return labels, energy

    def _read(self, logits: Tensor, padded: tuple[int, int], labels: Tensor, energy: Tensor) -> None:
        """Compute labels and energy (H×W) of one image from its logits (K×h×w).

        The columns are upsampled first, while there are few rows; then every output row is a mixture of two rows. Let m
        be the highest logit. f - m is exactly 0 for the highest class and negative for the others, so its sign bit
        tells the two apart when it is read as an integer. The maximum over k of (bits of f - m) | (K - 1 - k) therefore
        equals K - 1 - label, and a vectorised maximum replaces a slow argmax. Logits are scaled to base 2 because
        PyTorch's exp2 is three times as fast as its exp.
        """
        count, rows, _ = logits.shape
        height, width = labels.shape
        wide = F.interpolate((logits * LOG2_E).transpose(0, 1), padded[1], mode="linear", align_corners=True)[
            ..., :width
        ]
        wide = wide.contiguous()
        step = (rows - 1) / (padded[0] - 1) if padded[0] > 1 else 0.0
        position = torch.arange(height, dtype=torch.float32) * step
        above = position.long().clamp_(max=rows - 1)
        below = (above + 1).clamp_(max=rows - 1)
        share = (position - above).view(-1, 1, 1)
        rank = torch.arange(count - 1, -1, -1, dtype=torch.int32).view(1, -1, 1)
        band = max(1, BAND_VALUES // (count * width))
        buffers = self._buffers_for((band, count, width))
        for start in range(0, height, band):
            stop = min(start + band, height)
            values, other = (buffer[: stop - start] for buffer in buffers)
            torch.index_select(wide, 0, above[start:stop], out=values)
            torch.index_select(wide, 0, below[start:stop], out=other)
            values.lerp_(other, share[start:stop])
            highest = values.amax(1, keepdim=True)
            values.sub_(highest)
            bits = torch.bitwise_or(values.view(torch.int32), rank, out=other.view(torch.int32))
            labels[start:stop] = (count - 1) - bits.amax(1).clamp_(0, count - 1)
            total = torch.sum(values.exp2_(), 1, out=energy[start:stop])
            total.log2_().add_(highest[:, 0]).mul_(-1 / LOG2_E)

    def _buffers_for(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if shape not in self._buffers:
            self._buffers = {shape: (torch.empty(shape), torch.empty(shape))}
        return self._buffers[shape]


def read_plainly(logits: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute the same as `Readout` from full-resolution logits; arguments and results are those of `Readout`.

    Examples:
        >>> logits = torch.zeros(1, 3, 2, 2)  # two classes and the abstention
        >>> logits[0, 1, 0] = 4
        >>> labels, energy = read_plainly(logits, padded=(4, 4), size=(4, 3))
        >>> labels[0, :, 0], energy[0, :, 0]
        (tensor([1, 1, 1, 0], dtype=torch.uint8), tensor([-4.0181, -2.7338, -1.5673, -0.6931]))
    """
    full = upsample(logits.float(), padded)[..., : size[0], : size[1]]
    return full[:, :-1].argmax(dim=1).to(torch.uint8), free_energy(full)


def smooth_array(energy: np.ndarray) -> np.ndarray:
    """Apply the 7×7 Gaussian (sigma 1, reflected borders) to one energy map H×W.

    Examples:
        >>> energy = np.zeros((9, 9), np.float32)
        >>> energy[4, 4] = 1
        >>> smooth_array(energy)[4, 2:5].round(2)
        array([0.02, 0.1 , 0.16], dtype=float32)
    """
    return cv2.GaussianBlur(energy, (7, 7), 1.0, borderType=cv2.BORDER_REFLECT_101)
