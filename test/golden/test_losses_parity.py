"""Losses and their gradients against those of the public implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pebal_core.losses import LossTerms, pebal_loss

from .reference import deviation, every_file

VALUE_TOLERANCE = 1e-5
"""Relative."""
GRADIENT_TOLERANCE = 1e-4
"""Of the gradient's standard deviation; a detached penalty or another padding shows only below 4e-3."""

PARTS = {"total": "all", "energy": "all", "pal_inlier": "clean", "pal_outlier": "mixed"}
"""Value of the reference → the images it depends on."""


def terms_of(reference: np.lib.npyio.NpzFile, images: str) -> tuple[LossTerms, Tensor]:
    """Terms on a part of the batch, and the leaf (the whole batch's logits) to differentiate by."""
    logits = torch.from_numpy(reference["logits"]).requires_grad_()
    target, mixed = torch.from_numpy(reference["target"]), torch.from_numpy(reference["is_ood"])
    chosen = {"all": torch.ones_like(mixed), "clean": ~mixed, "mixed": mixed}[images]
    return pebal_loss(logits[chosen], target[chosen]), logits


@every_file("losses_seed*.npz")
@pytest.mark.parametrize("part", PARTS)
def test_value_and_gradient(path: Path, part: str) -> None:
    reference = np.load(path)
    terms, logits = terms_of(reference, PARTS[part])
    value = terms.classification if part.startswith("pal") else getattr(terms, part)
    assert value.item() == pytest.approx(float(reference[part]), rel=VALUE_TOLERANCE)
    value.backward()
    assert logits.grad is not None
    assert deviation(logits.grad, reference[f"{part}_grad"]) <= GRADIENT_TOLERANCE


@every_file("losses_seed*.npz")
def test_regularisers(path: Path) -> None:
    reference = np.load(path)
    terms, _ = terms_of(reference, "all")
    assert terms.smoothness.item() == pytest.approx(float(reference["smoothness"]), rel=VALUE_TOLERANCE)
    assert terms.sparsity.item() == pytest.approx(float(reference["sparsity"]), rel=VALUE_TOLERANCE)


@every_file("losses_seed*.npz")
def test_energy_of_a_batch_without_outliers(path: Path) -> None:
    reference = np.load(path)
    terms, _ = terms_of(reference, "clean")
    assert terms.energy.item() == pytest.approx(float(reference["energy_no_outlier"]), rel=VALUE_TOLERANCE)
