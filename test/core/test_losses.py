"""The objective: against its equations written out, and its behaviour on every kind of batch."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.multiprocessing.spawn import spawn

from pebal_core.errors import PebalError
from pebal_core.labels import OUTLIER, VOID
from pebal_core.losses import LossConfig, LossTerms, PixelMaps, pebal_loss
from pebal_core.networks import upsample
from pebal_core.scores import gaussian_blur

VARIANTS = {
    "paper's training": LossConfig(),
    "eq. 3 as printed": LossConfig(classification="abstention_eq3"),
    "joint, fixed penalty": LossConfig(penalty=6.0),
    "penalty of at least 1": LossConfig(penalty_floor=1.0),
    "joint, no regularisers": LossConfig(smoothness_weight=0, sparsity_weight=0),
    "abstention alone": LossConfig(penalty=6.0, hinge_weight=0),
    "energy alone": LossConfig(classification="cross_entropy"),
    "entropy maximisation": LossConfig(classification="cross_entropy", entropy_weight=0.5, energy_weight=0),
}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())

DIFFERENTIATED = ("total", "classification", "energy", "smoothness", "sparsity")


def random_batch(
    seed: int, batch: int = 3, classes: int = 5, size: tuple[int, int] = (9, 7), scale: float = 4.0
) -> tuple[Tensor, Tensor]:
    """float64 logits, and targets whose images hold no, some and only special labels in turn."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, classes + 1, *size, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (batch, *size), generator=generator)
    special = torch.rand(batch, *size, generator=generator)
    target[special < 0.2] = VOID
    target[1::2][special[1::2] > 0.6] = OUTLIER
    return logits, target


def written_out(f: Tensor, y: Tensor, config: LossConfig) -> Tensor:
    """The total as the equations say it, without regard for memory, speed or rounding."""
    classes = f.shape[1] - 1
    inlier, outlier = y < OUTLIER, y == OUTLIER
    energy = -f[:, :-1].exp().sum(1).log()
    a = gaussian_blur(energy**2).clamp_min(config.penalty_floor)
    if config.penalty is not None:
        a = torch.full_like(energy, config.penalty)
    one_hot = F.one_hot(y.where(inlier, 0), classes).movedim(-1, 1)
    p = f.softmax(1)
    if config.classification == "cross_entropy":
        p = f[:, :-1].softmax(1)
        loss = -(p * one_hot).sum(1).log()
    elif config.classification == "abstention_eq3":
        loss = -((f[:, :-1] * one_hot).sum(1) + f[:, -1] / a).clamp_min(1e-7).log()
    else:
        loss = -((p[:, :-1] * one_hot).sum(1) + p[:, -1] / a).log()

    mixed = outlier.flatten(1).any(1)
    total = f.new_zeros(())
    for group in (~mixed, mixed):
        if inlier[group].any():
            total = total + loss[group][inlier[group]].mean()
    if config.classification == "abstention" and outlier.any():
        gain = (p[:, :-1] + (p[:, -1] / a)[:, None]).movedim(1, -1)[outlier]
        total = total - 0.1 * gain.clamp_min(1e-7).log().mean()
    if config.entropy_weight and outlier.any():
        total = total - config.entropy_weight * p.movedim(1, -1)[outlier].log().mean()

    hinge = F.relu(energy[inlier] + 12).square().mean() if inlier.any() else 0
    if outlier.any():
        hinge = 0.5 * (hinge + F.relu(-6 - energy[outlier]).square().mean())
    differences = (energy[:, 1:] - energy[:, :-1]).square().sum()
    differences = differences + (energy[:, :, 1:] - energy[:, :, :-1]).square().sum()
    smoothness = config.smoothness_weight / 2 * differences
    sparsity = config.sparsity_weight * energy[outlier].norm()
    return total + config.energy_weight * (config.hinge_weight * hinge + smoothness + sparsity)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


@every_variant
@pytest.mark.parametrize("seed", range(3))
def test_total_and_gradient_follow_the_equations(config: LossConfig, seed: int) -> None:
    logits, target = random_batch(seed)
    logits.requires_grad_()
    ours, expected = pebal_loss(logits, target, config).total, written_out(logits, target, config)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient(ours, logits), gradient(expected, logits), rtol=1e-8, atol=1e-9)


def test_pixel_maps_gradient() -> None:
    logits, target = random_batch(0, batch=1, size=(4, 5))
    label = target.where(target < OUTLIER, 0)[:, None]
    assert gradcheck(PixelMaps.apply, (logits.requires_grad_(), label))


def test_parts_make_up_the_total() -> None:
    logits, target = random_batch(1)
    terms = pebal_loss(logits, target)
    torch.testing.assert_close(terms.total, terms.classification + 0.1 * terms.energy)
    regularisers = pebal_loss(logits, target, LossConfig(hinge_weight=0)).energy
    torch.testing.assert_close(regularisers, terms.smoothness + terms.sparsity)
    energy = -logits[:, :-1].logsumexp(1)
    torch.testing.assert_close(terms.mean_inlier_energy, energy[target < OUTLIER].mean())
    torch.testing.assert_close(terms.mean_outlier_energy, energy[target == OUTLIER].mean())


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Any labels, sizes from the smallest on, logits far beyond what a softmax in float32 stands."""
    batch, classes = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    height, width = draw(st.integers(4, 8)), draw(st.integers(4, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 200.0, 1e4]))
    logits = scale * torch.randn(batch, classes + 1, height, width, generator=generator)
    labels = draw(st.lists(st.sampled_from([*range(classes), OUTLIER, VOID]), min_size=1, max_size=4))
    target = torch.tensor(labels)[torch.randint(len(labels), (batch, height, width), generator=generator)]
    precision = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    return logits.to(precision), target.to(draw(st.sampled_from([torch.int64, torch.uint8])))


@given(batches(), st.sampled_from(list(VARIANTS.values())))
@settings(deadline=None, max_examples=200)
def test_finite_and_pure(batch: tuple[Tensor, Tensor], config: LossConfig) -> None:
    logits, target = batch[0].requires_grad_(), batch[1]
    before = target.clone()
    terms = pebal_loss(logits, target, config)
    assert torch.equal(target, before)
    assert all(term.dtype == torch.float32 for term in terms)
    assert all(getattr(terms, name).isfinite() for name in DIFFERENTIATED)
    assert terms.mean_inlier_energy.isfinite() == bool((target < OUTLIER).any())
    assert terms.mean_outlier_energy.isfinite() == bool((target == OUTLIER).any())
    assert gradient(terms.total, logits).isfinite().all()


@given(batches(), st.sampled_from(list(VARIANTS.values())), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_order_of_images_is_irrelevant(batch: tuple[Tensor, Tensor], config: LossConfig, random: Random) -> None:
    logits, target = batch[0].double(), batch[1]
    order = list(range(len(target)))
    random.shuffle(order)
    terms, shuffled = pebal_loss(logits, target, config), pebal_loss(logits[order], target[order], config)
    torch.testing.assert_close(shuffled, terms, rtol=1e-9, atol=1e-12, equal_nan=True)


@given(batches(), st.floats(-50, 50))
@settings(deadline=None, max_examples=50)
def test_labels_of_void_pixels_reach_no_mean(batch: tuple[Tensor, Tensor], shift: float) -> None:
    """A void pixel acts through the smoothness and the blurred penalty alone."""
    logits, target = batch[0].double(), batch[1]
    config = LossConfig(penalty=6.0, smoothness_weight=0)
    changed = logits + shift * (target == VOID)[:, None]
    torch.testing.assert_close(
        pebal_loss(changed, target, config), pebal_loss(logits, target, config), rtol=1e-12, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("gap", [200.0, 1000.0])
def test_large_gaps_keep_value_and_gradient(gap: float) -> None:
    """A confidently wrong pixel: -log(p_y + p_K / a) is the gap, and its slope 1, where softmax is 0 in float32."""
    logits = torch.zeros(1, 4, 6, 6)
    logits[:, 1] = gap
    logits[:, 3] = -gap
    logits.requires_grad_()
    term = pebal_loss(logits, torch.zeros(1, 6, 6, dtype=torch.long)).classification
    assert term.item() == pytest.approx(gap)
    slope = gradient(term, logits)
    assert slope[:, 0].sum().item() == pytest.approx(-1)
    assert slope[:, 1].sum().item() == pytest.approx(1)


def test_one_image_with_an_outlier() -> None:
    logits, target = random_batch(2, batch=1)
    target[0, :3] = OUTLIER
    logits.requires_grad_()
    terms = pebal_loss(logits, target)
    assert terms.total.isfinite() and gradient(terms.total, logits).isfinite().all()


@pytest.mark.parametrize("label", [OUTLIER, VOID])
def test_a_batch_without_inliers(label: int) -> None:
    logits, _ = random_batch(3)
    logits.requires_grad_()
    terms = pebal_loss(logits, torch.full((3, 9, 7), label))
    assert gradient(terms.total, logits).isfinite().all()
    assert terms.mean_inlier_energy.isnan()
    if label == VOID:
        torch.testing.assert_close(terms.total, 0.1 * terms.smoothness)


def test_outliers_halve_the_hinges() -> None:
    logits, target = random_batch(4)
    target[target == OUTLIER] = VOID
    logits[0, :, 0, 0] = -100.0  # an energy so far above the margin that the pixel's own hinge is zero
    target[0, 0, 0] = VOID
    config = LossConfig(smoothness_weight=0, sparsity_weight=0)
    clean = pebal_loss(logits, target, config).energy
    target[0, 0, 0] = OUTLIER
    torch.testing.assert_close(pebal_loss(logits, target, config).energy, 0.5 * clean)


def test_half_precision_is_computed_in_float32() -> None:
    """The blur is a convolution, which autocast would run in bfloat16."""
    logits, target = random_batch(5)
    half = logits.bfloat16()
    expected = pebal_loss(half.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(pebal_loss(half, target), expected, rtol=0, atol=0)


@every_variant
def test_coarse_logits_are_upsampled_as_the_network_does(config: LossConfig) -> None:
    logits, _ = random_batch(6, size=(5, 4))
    _, target = random_batch(6, size=(9, 7))
    logits.requires_grad_()
    coarse = pebal_loss(logits, target, config).total
    full = pebal_loss(upsample(logits, (9, 7)), target, config).total
    torch.testing.assert_close(coarse, full)
    torch.testing.assert_close(gradient(coarse, logits), gradient(full, logits))


@pytest.mark.parametrize("label", [5, 19, 200, -1])
def test_a_label_without_a_class_is_named(label: int) -> None:
    logits, target = random_batch(0)
    target[1, 2, 3] = label
    with pytest.raises(PebalError, match=rf"label {label}, .* 5 classes"):
        pebal_loss(logits, target)


def test_a_floor_of_one_bounds_the_objective_below() -> None:
    """Without it, abstaining everywhere at an energy of zero beats any classification."""
    classes = 19
    logits = torch.full((2, classes + 1, 8, 8), -math.log(classes))
    logits[:, -1] = 30.0
    target = torch.zeros(2, 8, 8, dtype=torch.long)
    target[1, :4] = OUTLIER
    assert pebal_loss(logits, target).classification < -20
    assert 0 <= pebal_loss(logits, target, LossConfig(penalty_floor=1.0)).classification < 1e-6


@pytest.mark.parametrize(
    "values", [{"penalty_floor": 0.0}, {"penalty": 0.0}, {"penalty": -1.0}, {"inlier_margin": -3.0}]
)
def test_impossible_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(PebalError):
        LossConfig(**values)  # type: ignore[arg-type]


def _one_of_two(rank: int, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    logits, target = random_batch(7, batch=4)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)  # stands for a parameter all images share
    mine = slice(2 * rank, 2 * rank + 2)
    terms = pebal_loss(scale * logits[mine], target[mine], sum_over_processes=differentiable.all_reduce)
    slope = gradient(terms.total, scale)
    dist.all_reduce(slope)  # what DistributedDataParallel does, which then divides by the number of processes
    torch.save((tuple(terms), slope / 2), f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    logits, target = random_batch(7, batch=4)
    assert [bool((t == OUTLIER).any()) for t in target] == [False, True, False, True]
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    expected = pebal_loss(scale * logits, target)
    slope = gradient(expected.total, scale)
    spawn(_one_of_two, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in (0, 1):
        terms, averaged = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(LossTerms(*terms), expected)
        torch.testing.assert_close(averaged, slope)
