"""The PEBAL objective: abstention learning whose penalty comes from an energy-based model (Tian et al., ECCV 2022).

Notation: f = logits B×(K+1)×H×W of K inlier classes and, last, the abstention; p = softmax(f) over all K+1;
E = -log Σ_{k<K} exp f_k in nats. Labels are trainIds; 254 marks outlier pixels, 255 void.

    total = abstention + 0.1 · energy            energy = hinges + smoothness + sparsity

Every mean is pooled over all pixels of a group, not first per image, so each term is a ratio of sums that add up
over images. That is how the terms are computed: image by image, which bounds the memory to one image's maps, and
optionally summed over processes, which makes distributed training equal to one process on the joined batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .errors import PebalError
from .labels import OUTLIER, VOID
from .networks.base import upsample
from .scores import free_energy, gaussian_blur

OUTLIER_ABSTENTION_WEIGHT = 0.1
MIN_PROBABILITY = 1e-7
"""Floor under the logarithm on outlier pixels, as in the public code; their gradient ends there."""
MIN_PENALTY = 1e-6
"""Floor of the adaptive penalty: keeps log a finite where an energy crosses zero."""


@dataclass(frozen=True)
class LossConfig:
    """Which terms are trained, and their weights; the defaults are those of the public code.

    The ablation of the paper in these terms (each without regularisers: both weights 0):

    =====================  =====================================================================
    entropy maximisation   ``classification="cross_entropy", entropy_weight=…, energy_weight=0``
    abstention alone       ``penalty=…, hinge_weight=0``
    energy alone           ``classification="cross_entropy"``
    joint, fixed penalty   ``penalty=…``
    joint, adaptive        the defaults
    =====================  =====================================================================
    """

    classification: Literal["abstention", "abstention_eq3", "cross_entropy"] = "abstention"
    """On inlier pixels: the abstention loss as the public code has it; as eq. 3 of the paper prints it (logits in
    place of probabilities, nothing on outlier pixels); or cross-entropy over the K classes."""
    penalty: float | None = None
    """A fixed abstention penalty a > 0; None: adaptive, from the energy."""
    entropy_weight: float = 0.0
    """Entropy maximisation on outlier pixels (Chan et al., ICCV 2021)."""
    energy_weight: float = 0.1
    """Weight of the energy loss, its regularisers included."""
    hinge_weight: float = 1.0
    """Weight of the squared hinges inside the energy loss."""
    inlier_margin: float = -12.0
    """Inlier energies above it are pressed down, in nats."""
    outlier_margin: float = -6.0
    """Outlier energies below it are lifted, in nats."""
    smoothness_weight: float = 3e-6
    sparsity_weight: float = 5e-4

    def __post_init__(self) -> None:
        if self.penalty is not None and self.penalty <= 0:
            raise PebalError(f"The abstention penalty must be positive, not {self.penalty}; null makes it adaptive.")
        if self.inlier_margin > self.outlier_margin:
            raise PebalError(
                f"inlier_margin ({self.inlier_margin}) must not exceed outlier_margin ({self.outlier_margin})."
            )


class LossTerms(NamedTuple):
    """Scalars. Only `total` carries what is to be minimised; the mean energies are detached and for the log."""

    total: Tensor
    classification: Tensor
    """Abstention loss, or cross-entropy, with entropy maximisation where asked for."""
    energy: Tensor
    """Energy loss with its regularisers, before `LossConfig.energy_weight`."""
    smoothness: Tensor
    sparsity: Tensor
    mean_inlier_energy: Tensor
    """Nats; NaN in a batch without inlier pixels."""
    mean_outlier_energy: Tensor
    """Nats; NaN in a batch without outlier pixels."""


class LossSums(NamedTuple):
    """What the terms are made of: sums over pixels, and pixel counts, that add up over images and processes.

    Clean images hold no outlier pixel, mixed images do: the abstention loss averages over each kind separately.
    """

    clean_pixels: Tensor
    mixed_pixels: Tensor
    outlier_pixels: Tensor
    clean_classification: Tensor
    mixed_classification: Tensor
    outlier_abstention: Tensor
    outlier_entropy: Tensor
    inlier_hinge: Tensor
    outlier_hinge: Tensor
    squared_differences: Tensor
    squared_outlier_energy: Tensor
    inlier_energy: Tensor
    outlier_energy: Tensor


def pebal_loss(
    logits: Tensor,
    target: Tensor,
    config: LossConfig = LossConfig(),
    sum_over_processes: Callable[[Tensor], Tensor] | None = None,
) -> LossTerms:
    """The objective on a batch, in float32 whatever the precision of the logits (float64 stays).

    An empty group contributes zero: a batch without outliers, without inliers, or all void has finite terms.

    Args:
        logits: B×(K+1)×h×w. Where h×w differs from H×W they are upsampled here, one image at a time, so that the
            full-resolution logits of the batch never exist.
        target: B×H×W integers: trainIds below K, 254 outlier, 255 void; both sides at least 4. Not modified.
        config: terms and weights.
        sum_over_processes: differentiable sum of a vector over processes, such as
            `torch.distributed.nn.functional.all_reduce`; every process then gets the terms of the joined batch.

    Raises:
        PebalError: a label that the logits have no class for.
    """
    classes = logits.shape[1] - 1
    stray = target[((target < 0) | (target >= classes)) & (target != OUTLIER) & (target != VOID)]
    if stray.numel():
        raise PebalError(
            f"The target holds label {int(stray[0])}, but the network has {classes} classes (labels 0 to {classes - 1}; "
            f"{OUTLIER} outlier, {VOID} void): use the label map that belongs to the network."
        )
    sums = torch.stack(
        [
            # Recomputed in the backward pass: the maps of one image are cheap to make and dear to keep.
            checkpoint(image_sums, f, y, config, use_reentrant=False, preserve_rng_state=False)
            for f, y in zip(logits.unbind(), target.unbind(), strict=True)
        ]
    ).sum(0)
    if sum_over_processes is not None:
        sums = sum_over_processes(sums)
    return combine(LossSums(*sums.unbind()), config)


def image_sums(logits: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    """`LossSums` of one image, stacked. Shapes (K+1)×h×w and H×W."""
    with torch.autocast(logits.device.type, enabled=False):
        f = logits[None] if logits.dtype == torch.float64 else logits[None].float()
        f, y = upsample(f, target.shape), target[None]
        outlier = y == OUTLIER
        inlier = ~outlier & (y != VOID)
        # Relative to each pixel's greatest logit, which no probability depends on: the loss of a confident pixel is
        # otherwise lost in the rounding of large logits.
        peak = f.detach().amax(1)
        f = f - peak[:, None]
        log_inlier = -free_energy(f)
        energy = -(log_inlier + peak)
        label_logit = f.gather(1, y.where(inlier, 0).long()[:, None])[:, 0]
        zero = energy.new_zeros(())

        outlier_abstention = zero
        if config.classification == "cross_entropy":
            classification = cross_entropy(label_logit, log_inlier)
        elif config.classification == "abstention_eq3":
            log_a = log_penalty(energy, config.penalty)
            classification = abstention_eq3(label_logit + peak, f[:, -1] + peak, log_a)
        else:
            reserve = f[:, -1] - log_penalty(energy, config.penalty)
            log_sum = torch.logaddexp(log_inlier, f[:, -1])
            classification = abstention(label_logit, reserve, log_sum)
            chosen = f[:, :-1].movedim(1, -1)[outlier]
            outlier_abstention = floored_abstention(chosen, reserve[outlier], log_sum[outlier]).sum()

        mixed = outlier.any()
        pixels, total = inlier.sum().to(energy.dtype), masked_sum(classification, inlier)
        sums = LossSums(
            clean_pixels=pixels.where(~mixed, zero),
            mixed_pixels=pixels.where(mixed, zero),
            outlier_pixels=outlier.sum().to(energy.dtype),
            clean_classification=total.where(~mixed, zero),
            mixed_classification=total.where(mixed, zero),
            outlier_abstention=outlier_abstention,
            outlier_entropy=masked_sum(uniform_cross_entropy(f[:, :-1], log_inlier), outlier) if config.entropy_weight else zero,
            inlier_hinge=masked_sum((energy - config.inlier_margin).relu().square(), inlier),
            outlier_hinge=masked_sum((config.outlier_margin - energy).relu().square(), outlier),
            squared_differences=squared_differences(energy),
            squared_outlier_energy=masked_sum(energy.square(), outlier),
            inlier_energy=masked_sum(energy.detach(), inlier),
            outlier_energy=masked_sum(energy.detach(), outlier),
        )
        return torch.stack(sums)


def combine(sums: LossSums, config: LossConfig) -> LossTerms:
    """The terms of a batch from its sums."""
    inlier_pixels = sums.clean_pixels + sums.mixed_pixels
    has_outliers = sums.outlier_pixels > 0

    classification = (
        mean(sums.clean_classification, sums.clean_pixels)
        + mean(sums.mixed_classification, sums.mixed_pixels)
        + OUTLIER_ABSTENTION_WEIGHT * mean(sums.outlier_abstention, sums.outlier_pixels)
        + config.entropy_weight * mean(sums.outlier_entropy, sums.outlier_pixels)
    )
    hinges = mean(sums.inlier_hinge, inlier_pixels) + mean(sums.outlier_hinge, sums.outlier_pixels)
    smoothness = config.smoothness_weight * 0.5 * sums.squared_differences
    # β ‖E_out‖₂, one norm over all outlier pixels. The floor keeps the root's gradient finite at zero.
    norm = sums.squared_outlier_energy.clamp_min(torch.finfo(sums.squared_outlier_energy.dtype).tiny).sqrt()
    sparsity = config.sparsity_weight * norm.where(has_outliers, 0.0)
    # The public code halves the hinges only in the presence of outliers.
    energy = config.hinge_weight * torch.where(has_outliers, 0.5 * hinges, hinges) + smoothness + sparsity
    return LossTerms(
        total=classification + config.energy_weight * energy,
        classification=classification,
        energy=energy,
        smoothness=smoothness,
        sparsity=sparsity,
        mean_inlier_energy=sums.inlier_energy.detach() / inlier_pixels,
        mean_outlier_energy=sums.outlier_energy.detach() / sums.outlier_pixels,
    )


def log_penalty(energy: Tensor, fixed: float | None) -> Tensor:
    """log a: of the fixed penalty, or of a = Gaussian(E²), 7×7, σ 1. The gradient flows through a. B×H×W."""
    if fixed is not None:
        return torch.full_like(energy, math.log(fixed))
    return gaussian_blur(energy.square()).clamp_min(MIN_PENALTY).log()


def abstention(label_logit: Tensor, reserve: Tensor, log_sum: Tensor) -> Tensor:
    """-log(p_y + p_K / a) per pixel, with reserve = f_K - log a and log_sum = log Σ_{k≤K} exp f_k."""
    return log_sum - torch.logaddexp(label_logit, reserve)


def floored_abstention(inlier_logits: Tensor, reserve: Tensor, log_sum: Tensor) -> Tensor:
    """-1/K Σ_{k<K} log max(p_k + p_K / a, 1e-7) of N outlier pixels. Shapes N×K, N, N."""
    log_gain = torch.logaddexp(inlier_logits, reserve[:, None]) - log_sum[:, None]
    return -log_gain.clamp_min(math.log(MIN_PROBABILITY)).mean(1)


def abstention_eq3(label_logit: Tensor, abstention_logit: Tensor, log_a: Tensor) -> Tensor:
    """-log(f_y + f_K / a) per pixel, as printed: undefined where the sum is not positive, there floored."""
    return -(label_logit + abstention_logit * torch.exp(-log_a)).clamp_min(MIN_PROBABILITY).log()


def cross_entropy(label_logit: Tensor, log_inlier: Tensor) -> Tensor:
    """-log softmax(f[0..K-1])_y per pixel, with log_inlier = log Σ_{k<K} exp f_k."""
    return log_inlier - label_logit


def uniform_cross_entropy(inlier_logits: Tensor, log_inlier: Tensor) -> Tensor:
    """-1/K Σ_{k<K} log softmax(f[0..K-1])_k per pixel: least where the entropy is greatest."""
    return log_inlier - inlier_logits.mean(1)


def squared_differences(energy: Tensor) -> Tensor:
    """Σ over all pixels, void included, of the squared vertical and horizontal forward differences of E."""
    return energy.diff(dim=-2).square().sum() + energy.diff(dim=-1).square().sum()


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over a group of pixels, without a synchronising gather."""
    return values.where(mask, 0.0).sum()


def mean(total: Tensor, count: Tensor) -> Tensor:
    """Mean over a group; zero where the group is empty."""
    return total / count.clamp_min(1)
