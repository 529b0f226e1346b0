"""The PEBAL objective: abstention learning with a penalty from the free energy (Tian et al., ECCV 2022).

Notation: f = logits B×(K+1)×H×W of K inlier classes and, last, the abstention; p = softmax(f) over all K+1;
E = -log Σ_{k<K} exp f_k in nats. Labels are trainIds; 254 marks outlier pixels, 255 void.

    total = abstention + 0.1 · energy            energy = hinges + smoothness + sparsity

Every mean is pooled over all pixels of a group rather than averaged per image first, so each term is a ratio of
sums over images. The sums are computed image by image, which bounds the scratch memory. They can also be summed over
processes, which makes distributed training equivalent to a single process on the joined batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .errors import PebalError
from .labels import OUTLIER, VOID
from .networks.base import upsample
from .ranges import NATS, WEIGHT, check_ranges
from .scores import gaussian_blur

OUTLIER_ABSTENTION_WEIGHT = 0.1
MIN_PROBABILITY = 1e-7
"""Lower bound of the logarithm's argument on outlier pixels, as in the public code; below it the gradient is zero."""


@dataclass(frozen=True)
class LossConfig:
    """The terms of the objective and their weights; the defaults are those of the public code.

    The variants of the paper's ablation are selected as follows; both regulariser weights at 0 give each variant
    without regularisers.

    =====================  =====================================================================
    entropy maximisation   ``classification="cross_entropy", entropy_weight=…, energy_weight=0``
    abstention alone       ``penalty=…, hinge_weight=0``
    energy alone           ``classification="cross_entropy"``
    joint, fixed penalty   ``penalty=…``
    joint, adaptive        the defaults
    =====================  =====================================================================

    Examples:
        >>> LossConfig(penalty=6.0, smoothness_weight=0, sparsity_weight=0).energy_weight
        0.1
    """

    classification: Literal["abstention", "abstention_eq3", "cross_entropy"] = "abstention"
    """The abstention loss as in the public code; the loss as printed in eq. 3 of the paper (logits in place of
    probabilities, and no term on outlier pixels); or cross-entropy of the inlier pixels over the K classes."""
    penalty: float | None = None
    """A fixed abstention penalty a > 0; None computes it adaptively from the energy."""
    penalty_floor: float = 1e-6
    """Lower bound of the adaptive penalty. With this default, as in the public code, the objective is not bounded from
    below: for a < 1 the loss -log(p_y + p_K / a) rewards abstaining everywhere at an energy of zero. A floor of 1
    removes that minimum and changes nothing where |E| > 1."""
    entropy_weight: float = 0.0
    """Weight of entropy maximisation on outlier pixels (Chan et al., ICCV 2021)."""
    energy_weight: float = 0.1
    """Weight of the energy loss, including its regularisers."""
    hinge_weight: float = 1.0
    """Weight of the squared hinges inside the energy loss."""
    inlier_margin: float = -12.0
    """Inlier energies above this margin, in nats, are pushed down."""
    outlier_margin: float = -6.0
    """Outlier energies below this margin, in nats, are pushed up."""
    smoothness_weight: float = 3e-6
    sparsity_weight: float = 5e-4

    def __post_init__(self) -> None:
        check_ranges(
            self,
            None,
            penalty=WEIGHT,
            penalty_floor=WEIGHT,
            inlier_margin=NATS,
            outlier_margin=NATS,
            entropy_weight=WEIGHT,
            energy_weight=WEIGHT,
            hinge_weight=WEIGHT,
            smoothness_weight=WEIGHT,
            sparsity_weight=WEIGHT,
        )
        if self.penalty is not None and self.penalty <= 0:
            raise PebalError(f"The abstention penalty must be positive, not {self.penalty}; null makes it adaptive.")
        if self.penalty_floor <= 0:
            raise PebalError(f"penalty_floor must be positive, not {self.penalty_floor}.")
        if self.inlier_margin > self.outlier_margin:
            raise PebalError(f"inlier_margin ({self.inlier_margin}) exceeds outlier_margin ({self.outlier_margin}).")


class LossTerms(NamedTuple):
    """Terms of the objective as scalars. Training minimises `total`; the mean energies are detached, for logging."""

    total: Tensor
    classification: Tensor
    """Abstention loss or cross-entropy, including entropy maximisation if it is enabled."""
    energy: Tensor
    """Energy loss with its regularisers, before `LossConfig.energy_weight`."""
    smoothness: Tensor
    sparsity: Tensor
    mean_inlier_energy: Tensor
    """Mean in nats; NaN in a batch without inlier pixels."""
    mean_outlier_energy: Tensor
    """Mean in nats; NaN in a batch without outlier pixels."""


class _LossSums(NamedTuple):
    """Sums over pixels and pixel counts from which the terms are computed; they add up over images and processes.

    Clean images hold no outlier pixel; mixed images do. The abstention loss averages over each kind separately.
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
    weights: Tensor | None = None,
) -> LossTerms:
    """Compute the objective on a batch, in float32 for any precision of the logits except float64, which is kept.

    An empty group contributes zero, so a batch without outliers, without inliers, or with only void has finite terms.

    Args:
        logits: B×(K+1)×h×w. If h×w differs from H×W, they are upsampled here, image by image, which takes less memory
            than upsampling the whole batch first.
        target: B×H×W integers, which are trainIds below K, 254 for outliers and 255 for void; H and W are at least 4.
            It is not modified.
        config: terms and weights.
        sum_over_processes: differentiable sum of a vector over processes, such as
            `torch.distributed.nn.functional.all_reduce`; every process then gets the terms of the joined batch.
        weights: B×H×W positive weights of the pixels in every mean over a group; None weights all equally. The
            regularisers are not weighted.

    Raises:
        PebalError: the target holds a label for which the logits have no class.

    Examples:
        >>> import torch
        >>> logits = torch.zeros(1, 4, 4, 4)  # three classes and the abstention
        >>> logits[:, 0] = 15
        >>> target = torch.zeros(1, 4, 4, dtype=torch.long)
        >>> terms = pebal_loss(logits, target)  # confident and correct
        >>> round(terms.mean_inlier_energy.item(), 3), round(terms.energy.item(), 3)
        (-15.0, 0.0)
        >>> target[0, :2] = OUTLIER
        >>> terms = pebal_loss(logits, target)  # equally confident on outliers, ½ (-6 + 15)² plus the sparsity
        >>> round(terms.energy.item(), 2)
        40.52
    """
    classes = logits.shape[1] - 1
    stray = target[((target < 0) | (target >= classes)) & (target != OUTLIER) & (target != VOID)]
    if stray.numel():
        raise PebalError(
            f"The target contains the label {int(stray[0])}, but the network has {classes} classes (labels 0 to "
            f"{classes - 1}; {OUTLIER} outlier, {VOID} void). Use the label map that belongs to the network."
        )
    pixel_weights = [None] * len(logits) if weights is None else weights.unbind()
    images = zip(logits.unbind(), target.unbind(), pixel_weights, strict=True)
    sums = torch.stack([_image_sums(f, y, config, w) for f, y, w in images]).sum(0)
    if sum_over_processes is not None:
        sums = sum_over_processes(sums)
    return _combine(_LossSums(*sums.unbind()), config)


def _image_sums(logits: Tensor, target: Tensor, config: LossConfig, weights: Tensor | None = None) -> Tensor:
    """Compute the `_LossSums` of one image, stacked to a vector.

    Args:
        logits: (K+1)×h×w.
        target: H×W integers.
        config: terms and weights.
        weights: H×W weights of the pixels; None weights all equally.
    """
    with torch.autocast(logits.device.type, enabled=False):
        f = logits[None] if logits.dtype == torch.float64 else logits[None].float()
        f, y = upsample(f, target.shape), target[None]
        outlier = y == OUTLIER
        inlier = ~outlier & (y != VOID)
        energy, log_others, f_y, f_abstain = PixelMaps.apply(f, y.where(inlier, 0).long()[:, None])
        f_outlier = f.movedim(1, -1)[outlier]
        zero = energy.new_zeros(())

        weight = torch.ones_like(energy) if weights is None else weights[None].to(energy.dtype)
        outlier_abstention = zero
        if config.classification == "cross_entropy":
            classification = _cross_entropy(f_y, log_others)
        elif config.classification == "abstention_eq3":
            classification = _abstention_eq3(f_y, f_abstain, _log_penalty(energy, config))
        else:
            reserve = f_abstain - _log_penalty(energy, config)
            classification = _abstention(f_y, torch.logaddexp(log_others, f_abstain), reserve)
            outlier_abstention = (weight[outlier] * _floored_abstention(f_outlier, reserve[outlier])).sum()

        mixed = outlier.any()
        pixels, total = _masked_sum(weight, inlier), _masked_sum(weight * classification, inlier)
        sums = _LossSums(
            clean_pixels=pixels.where(~mixed, zero),
            mixed_pixels=pixels.where(mixed, zero),
            outlier_pixels=_masked_sum(weight, outlier),
            clean_classification=total.where(~mixed, zero),
            mixed_classification=total.where(mixed, zero),
            outlier_abstention=outlier_abstention,
            outlier_entropy=(
                (weight[outlier] * _uniform_cross_entropy(f_outlier)).sum() if config.entropy_weight else zero
            ),
            inlier_hinge=_masked_sum(weight * (energy - config.inlier_margin).relu().square(), inlier),
            outlier_hinge=_masked_sum(weight * (config.outlier_margin - energy).relu().square(), outlier),
            squared_differences=_squared_differences(energy),
            squared_outlier_energy=_masked_sum(energy.square(), outlier),
            inlier_energy=_masked_sum(weight * energy.detach(), inlier),
            outlier_energy=_masked_sum(weight * energy.detach(), outlier),
        )
        return torch.stack(sums)


def _combine(sums: _LossSums, config: LossConfig) -> LossTerms:
    """Compute the terms of a batch from its sums."""
    inlier_pixels = sums.clean_pixels + sums.mixed_pixels
    has_outliers = sums.outlier_pixels > 0

    classification = (
        _mean(sums.clean_classification, sums.clean_pixels)
        + _mean(sums.mixed_classification, sums.mixed_pixels)
        + OUTLIER_ABSTENTION_WEIGHT * _mean(sums.outlier_abstention, sums.outlier_pixels)
        + config.entropy_weight * _mean(sums.outlier_entropy, sums.outlier_pixels)
    )
    hinges = _mean(sums.inlier_hinge, inlier_pixels) + _mean(sums.outlier_hinge, sums.outlier_pixels)
    smoothness = config.smoothness_weight * 0.5 * sums.squared_differences
    # β ‖E_out‖₂ is one norm over all outlier pixels. The lower bound keeps the gradient of the root finite at zero.
    norm = sums.squared_outlier_energy.clamp_min(torch.finfo(sums.squared_outlier_energy.dtype).tiny).sqrt()
    sparsity = config.sparsity_weight * norm.where(has_outliers, 0.0)
    # Like the public code, halve the hinges only if there are outliers.
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


def _log_penalty(energy: Tensor, config: LossConfig) -> Tensor:
    """Logarithm of the penalty a, B×H×W.

    a is the fixed penalty, or E² smoothed by a 7×7 Gaussian with σ = 1. The gradient flows through a.
    """
    if config.penalty is not None:
        return torch.full_like(energy, math.log(config.penalty))
    return gaussian_blur(energy.square()).clamp_min(config.penalty_floor).log()


def _abstention(f_y: Tensor, log_others: Tensor, reserve: Tensor) -> Tensor:
    """Abstention loss -log(p_y + p_K / a) per pixel.

    It is computed as log(1 + Σ_{k≠y} exp(f_k - f_y)) - log(1 + exp(f_K - log a - f_y)), which keeps the small losses
    and gradients of confident pixels exact. All tensors have the same shape.

    Args:
        f_y: logit of the label.
        log_others: log Σ exp f_k over all other channels, including the abstention.
        reserve: f_K - log a.
    """
    return F.softplus(log_others - f_y) - F.softplus(reserve - f_y)


def _floored_abstention(f: Tensor, reserve: Tensor) -> Tensor:
    """Abstention loss -1/K Σ_{k<K} log max(p_k + p_K / a, 1e-7) of N outlier pixels.

    `f` is N×(K+1), and `reserve` (f_K - log a) and the result have N elements.
    """
    log_gain = torch.logaddexp(f[:, :-1], reserve[:, None]) - f.logsumexp(1, keepdim=True)
    return -log_gain.clamp_min(math.log(MIN_PROBABILITY)).mean(1)


def _abstention_eq3(f_y: Tensor, f_abstain: Tensor, log_a: Tensor) -> Tensor:
    """Loss -log(f_y + f_K / a) per pixel, as printed in the paper; sums that are not positive are clamped."""
    return -(f_y + f_abstain * torch.exp(-log_a)).clamp_min(MIN_PROBABILITY).log()


def _cross_entropy(f_y: Tensor, log_others: Tensor) -> Tensor:
    """Cross-entropy -log softmax(f[0..K-1])_y per pixel; `log_others` covers the K - 1 other inlier classes."""
    return F.softplus(log_others - f_y)


def _uniform_cross_entropy(f: Tensor) -> Tensor:
    """Cross-entropy with the uniform distribution, -1/K Σ_{k<K} log softmax(f[0..K-1])_k, of N outlier pixels.

    `f` is N×(K+1). The loss is smallest where the entropy is greatest.
    """
    return -f[:, :-1].log_softmax(1).mean(1)


def _squared_differences(energy: Tensor) -> Tensor:
    """Sum of the squared vertical and horizontal forward differences of E (…×H×W) over all pixels, including void."""
    return energy.diff(dim=-2).square().sum() + energy.diff(dim=-1).square().sum()


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over a group of pixels, without a gather, which would synchronise with the device."""
    return values.where(mask, 0.0).sum()


def _mean(total: Tensor, count: Tensor) -> Tensor:
    """Mean over a group; zero if the group is empty."""
    return total / count.clamp_min(1)


class PixelMaps(torch.autograd.Function):
    """The four maps from which all inlier terms are computed, in one pass over the channels in each direction.

    forward(f B×(K+1)×H×W, label B×1×H×W) returns E, log Σ_{k<K, k≠y} exp f_k, f_y and f_K, each B×H×W. It keeps one
    copy of f for the backward pass, where autograd would keep or allocate several for each map.

    Examples:
        >>> logits = torch.tensor([1.0, 2.0, 0.5]).view(1, 3, 1, 1)  # two classes and the abstention
        >>> label = torch.zeros(1, 1, 1, 1, dtype=torch.long)
        >>> [round(value.item(), 3) for value in PixelMaps.apply(logits, label)]
        [-2.313, 2.0, 1.0, 0.5]
    """

    @staticmethod
    def forward(ctx: Any, f: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        inlier_logits = f[:, :-1]
        peak = inlier_logits.amax(1, keepdim=True)
        others = (inlier_logits - peak).exp_()
        own = others.gather(1, label)
        others.scatter_(1, label, 0.0)
        rest = others.sum(1, keepdim=True).clamp_min_(torch.finfo(f.dtype).tiny)
        ctx.save_for_backward(others, own, rest, label)
        maps = (-(peak + (rest + own).log()), peak + rest.log(), f.gather(1, label), f[:, -1:].clone())
        return tuple(m[:, 0] for m in maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        others, own, rest, label = ctx.saved_tensors
        grad_energy, grad_rest, grad_label, grad_abstain = (g[:, None] for g in grads)
        per_exp = -grad_energy / (rest + own)
        grad = torch.cat([others * (per_exp + grad_rest / rest), grad_abstain], dim=1)
        return grad.scatter_(1, label, per_exp * own + grad_label), None
