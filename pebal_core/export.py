"""Exports a model to ONNX, with the whole path from an image's bytes to labels and energy in one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from .engines import InputSize
from .engines.torch import DTYPES, TorchEngine
from .errors import PebalError
from .files import write_atomically
from .metrics.pooled import PooledMetrics
from .model_file import file_sha256, load_model, onnx_with_info, resolve_model
from .model_info import ModelInfo
from .networks import SegmentationNetwork, upsample
from .networks.folding import fold, round_kernels

OPSET = 18
"""The first operator set whose Resize downscales with antialiasing."""
EXAMPLE = (2, 360, 500, 3)
"""Shape of the batch with which the graph is traced; the graph accepts other shapes as well."""

Labelled = tuple[np.ndarray, np.ndarray]
"""Image (H×W×3 uint8 RGB) and target (H×W uint8; 0 inlier, 1 anomaly, 255 void)."""


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed deviations of an exported model from PyTorch in fp32."""

    energy_max: float
    """Largest difference in energy of any pixel, in nats."""
    energy_mean: float
    """Largest mean absolute difference in energy, in nats."""
    labels_equal: float
    """Smallest share of pixels with equal labels."""
    ap: float = 0.005
    """Largest difference in average precision."""


TOLERANCES = {
    "fp32": Tolerance(energy_max=5e-3, energy_mean=1e-4, labels_equal=0.9995),
    # fp16 has 11 significant bits, so energies at edges, where the network is undecided, change far above average.
    "fp16": Tolerance(energy_max=np.inf, energy_mean=0.05, labels_equal=0.99),
}


@dataclass(frozen=True)
class Parity:
    """Deviations of an exported model from PyTorch in fp32, over all pixels of the compared images."""

    images: int
    """Number of compared images."""
    energy_max: float
    """Greatest difference of the energies in nats."""
    energy_mean: float
    """Mean of the absolute differences in nats."""
    labels_equal: float
    """Share of pixels with equal labels."""
    ap_torch: float | None = None
    """Average precision of PyTorch on the labelled images; None if there are none."""
    ap: float | None = None
    """Average precision of the exported model on the labelled images; None if there are none."""

    def faults(self, allowed: Tolerance) -> list[str]:
        """Describe each deviation that exceeds the tolerance.

        >>> Parity(1, energy_max=0.2, energy_mean=0.0, labels_equal=1.0).faults(TOLERANCES["fp32"])
        ['an energy differs by 0.2 nats (0.005 are allowed)']
        """
        found = []
        if not self.energy_max <= allowed.energy_max:
            found.append(f"an energy differs by {self.energy_max:.2g} nats ({allowed.energy_max:g} are allowed)")
        if not self.energy_mean <= allowed.energy_mean:
            found.append(f"energies differ by {self.energy_mean:.2g} nats on average ({allowed.energy_mean:g})")
        if not self.labels_equal >= allowed.labels_equal:
            found.append(f"{self.labels_equal:.2%} of the labels are equal ({allowed.labels_equal:.2%} must be)")
        if self.ap is not None and self.ap_torch is not None and not abs(self.ap - self.ap_torch) <= allowed.ap:
            found.append(f"AP goes from {self.ap_torch:.4f} to {self.ap:.4f} ({allowed.ap:g} is allowed)")
        return found


class _Network(nn.Module):
    """Computes fp32 logits, at the network's own resolution, from padded images."""

    def __init__(self, network: SegmentationNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        network = fold(network)
        if dtype != torch.float32:
            round_kernels(network, dtype)
        self.network, self.dtype = network.to(dtype), dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.network.head(self.network.trunk(images.to(self.dtype))).float()


class _WholePath(nn.Module):
    """The computation of `TorchEngine` in a form that can be exported as a graph.

    Args:
        network: the network, which is taken over, folded and converted to the precision.
        info: normalisation, input size and smoothing.
        precision: ``fp32`` or ``fp16``.
    """

    def __init__(self, network: SegmentationNetwork, info: ModelInfo, precision: str) -> None:
        super().__init__()
        self.stride = network.stride
        self.network = _Network(network, DTYPES[precision])
        self.input_size, self.smoothing = info.input_size, info.smoothing
        self.mean = nn.Buffer(255 * torch.tensor(info.mean).view(1, 3, 1, 1))
        self.scale = nn.Buffer(1 / (255 * torch.tensor(info.std).view(1, 3, 1, 1)))
        self.ones = nn.Buffer(torch.ones(1, info.num_outputs - 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute labels (N×H×W uint8) and energies (N×H×W float32) of images (N×H×W×3 uint8 RGB)."""
        height, width = images.shape[1:3]
        pixels = images.float().permute(0, 3, 1, 2)
        if self.input_size is not None:
            pixels = F.interpolate(pixels, self._seen(height, width), mode="bilinear", antialias=True)
        batch = (pixels - self.mean) * self.scale
        rows, columns = batch.shape[-2:]
        if self.stride > 1:
            batch = F.pad(batch, (0, -columns % self.stride, 0, -rows % self.stride), mode="replicate")
        labels, energy = self.read(self.network(batch)[:, :-1], batch.shape[-2:])
        labels, energy = labels[:, :rows, :columns], energy[:, :rows, :columns]
        if self.input_size is not None:
            labels = labels.index_select(1, _nearest(rows, height)).index_select(2, _nearest(columns, width))
            energy = F.interpolate(energy[:, None], (height, width), mode="bilinear")[:, 0]
        # torchvision's Gaussian is one convolution and thus one node of the graph, unlike the one in `scores`.
        return labels, gaussian_blur(energy[:, None], [7, 7], [1.0, 1.0])[:, 0] if self.smoothing else energy

    def _seen(self, height: int, width: int) -> list[Any]:
        """Height and width at which the network sees an image, as `network_size`, also of symbolic sides."""
        assert self.input_size is not None
        if len(self.input_size) == 2:
            return self.input_size
        longer = torch.sym_max(torch.sym_max(height, width), self.input_size[0])
        return [(side * self.input_size[0] + longer // 2) // longer for side in (height, width)]

    def read(self, logits: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Compute labels and energies at a size from the inlier logits N×K×h×w.

        The highest logit is subtracted before the upsampling, which is linear, so that no exponential exceeds 1. The
        sum is a product with ones, because ONNX Runtime multiplies matrices far faster than it sums over channels.
        """
        highest = logits.amax(1, keepdim=True)
        below = upsample(logits - highest, size)
        total = (self.ones @ below.exp().flatten(2)).view(-1, *size)
        energy = -(total.log() + upsample(highest, size)[:, 0])
        return below.argmax(1).to(torch.uint8), energy


def _nearest(source: int, target: int) -> Tensor:
    """Index of the nearest of ``source`` positions for each of ``target`` positions.

    This is the mode nearest-exact, which the exporter translates badly.
    """
    return ((torch.arange(target) + 0.5) * (source / target)).long()


def to_onnx(network: SegmentationNetwork, info: ModelInfo, precision: str) -> bytes:
    """Convert the whole path to an ONNX model for any batch and image size, verified by `onnx.checker`.

    Examples:
        >>> content = to_onnx(*load_model("starter"), "fp32")  # doctest: +SKIP
        >>> Path("starter.onnx").write_bytes(content)  # doctest: +SKIP
    """
    import onnx

    from .onnx_pooling import TRANSLATIONS

    dynamic = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        _WholePath(network, info, precision).eval(),
        (torch.zeros(EXAMPLE, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["labels", "energy"],
        dynamic_shapes={"images": {0: dynamic, 1: dynamic, 2: dynamic}},
        custom_translation_table=TRANSLATIONS,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for described in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del described.metadata_props[:]  # they hold the source location of each operation
        described.ClearField("doc_string")
    content = model.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    return content


def export(
    model: str | Path,
    out: Path,
    images: Sequence[np.ndarray],
    labelled: Sequence[Labelled] = (),
    input_size: InputSize | None = None,
    precision: str = "fp32",
) -> Parity:
    """Write a model as ONNX if its outputs agree with the PyTorch engine.

    Args:
        model: model file, or name of a shipped model.
        out: the .onnx file.
        images: H×W×3 uint8 RGB, on which the two are compared. They should be real photographs, because networks are
            unsure on noise.
        labelled: images with targets, on which AP is compared as well.
        input_size: (height, width) at which the network runs, or (longer side,), to which larger images are scaled
            down. None takes the model's input size; (0, 0) keeps the size of the image.
        precision: precision of the network, ``fp32`` or ``fp16``; everything else is fp32.

    Raises:
        PebalError: the exported model deviates too much from PyTorch, there are no images, or the file cannot be
            written.

    Examples:
        >>> photograph = cv2.imread("road.jpg")[:, :, ::-1]  # doctest: +SKIP
        >>> parity = export("starter", Path("starter.onnx"), [photograph])  # doctest: +SKIP
        >>> parity.labels_equal >= TOLERANCES["fp32"].labels_equal  # doctest: +SKIP
        True
    """
    from .engines.onnx import OnnxEngine

    if not images:
        raise PebalError("An export is compared with PyTorch on images; pass some with --images FOLDER.")
    path = resolve_model(model)
    network, info = load_model(path)
    if input_size is not None:
        info.input_size = list(input_size) if any(input_size) else None
    content = to_onnx(network, info, precision)
    info.export = {"precision": precision, "source": path.name, "sha256": file_sha256(path)}
    network, _ = load_model(path)
    size = None if info.input_size is None else tuple(info.input_size)
    torch_engine = TorchEngine(network, info, "cpu", "fp32", input_size=size, smoothing=info.smoothing)
    parity = compare(torch_engine, OnnxEngine(onnx_with_info(content, info), "cpu"), images, labelled)
    if faults := parity.faults(TOLERANCES[precision]):
        raise PebalError(f"{out} was not written, because it deviates too far from PyTorch: {'; '.join(faults)}.")
    info.export["parity"] = asdict(parity)
    write_atomically(out, onnx_with_info(content, info))
    return parity


def compare(torch_engine: Any, exported: Any, images: Sequence[np.ndarray], labelled: Sequence[Labelled]) -> Parity:
    """Compare both engines on the same images; each image is paired with its mirror image in a batch of two.

    Examples:
        >>> def one(images):
        ...     return np.zeros(images.shape[:3], np.uint8), np.zeros(images.shape[:3], np.float32)
        >>> def other(images):
        ...     return one(images)[0], one(images)[1] + 0.5
        >>> compare(one, other, [np.zeros((4, 6, 3), np.uint8)], [])
        Parity(images=1, energy_max=0.5, energy_mean=0.5, labels_equal=1.0, ap_torch=None, ap=None)
    """
    energy_max = energy_sum = 0.0
    equal = pixels = 0
    metrics = PooledMetrics(), PooledMetrics()
    for image, target in [*((image, None) for image in images), *labelled]:
        batch = np.stack([image, image[:, ::-1]])
        answers = [engine(batch) for engine in (torch_engine, exported)]
        difference = np.abs(answers[0][1] - answers[1][1])
        energy_max = max(energy_max, float(difference.max()))
        energy_sum += float(difference.sum(dtype=np.float64))
        equal += int(np.count_nonzero(answers[0][0] == answers[1][0]))
        pixels += difference.size
        if target is not None:
            for metric, (_, energy) in zip(metrics, answers, strict=True):
                metric.update(energy[0], target, name="a labelled image")
    parity = Parity(len(images) + len(labelled), energy_max, energy_sum / pixels, equal / pixels)
    if not labelled:
        return parity
    results = [metric.compute() for metric in metrics]
    if results[0].ap is None:
        raise PebalError(f"The labelled images give no AP: {results[0].undefined}.")
    return replace(parity, ap_torch=results[0].ap, ap=results[1].ap)
