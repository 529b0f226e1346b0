"""The files with reference values.

Those of this folder were made by `plain`, those of the folder that ``PEBAL_GOLDEN_DIR`` names, by default
``shared/golden`` beside the repository, by the public implementations. Every file of a known form in either is tried,
whatever its seed, size and batch.
"""

from __future__ import annotations

import os
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from .weights import drawn

OWN = Path(__file__).parent
FOLDER = Path(os.environ.get("PEBAL_GOLDEN_DIR", Path(__file__).resolve().parents[3] / "shared/golden"))
if "PEBAL_GOLDEN_DIR" in os.environ and not FOLDER.is_dir():
    raise FileNotFoundError(f"PEBAL_GOLDEN_DIR names {FOLDER}, which is not a folder")


def every_file(pattern: str, at_most: int | None = None) -> pytest.MarkDecorator:
    """Parametrise `path` over the reference files of this form; without any the test is skipped."""
    paths = [*sorted(OWN.glob(pattern)), *sorted(FOLDER.glob(pattern))][:at_most]
    if not paths:
        return pytest.mark.parametrize(
            "path", [pytest.param(None, marks=pytest.mark.skip(f"the data folder {FOLDER} has no {pattern}"))]
        )
    return pytest.mark.parametrize("path", paths, ids=[p.stem for p in paths])


def wide_resnet38_weights(reference: np.lib.npyio.NpzFile) -> dict[str, Tensor]:
    """State dict under our names."""
    seed, names = int(reference["seed"]), zip(reference["keys"].tolist(), reference["shapes"].tolist(), strict=True)
    weights = {key: drawn(seed, key, literal_eval(shape)) for key, shape in names}
    return {key.removeprefix("branch1."): torch.from_numpy(np.asarray(weight)) for key, weight in weights.items()}


def deviation(value: Tensor, expected: np.ndarray) -> float:
    """Greatest absolute difference in standard deviations of the expected values."""
    target = torch.from_numpy(expected)
    assert value.shape == target.shape
    return ((value - target).abs().max() / target.std()).item()
