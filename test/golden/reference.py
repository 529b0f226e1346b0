"""The files with reference values, and the rule from which the weights behind them follow.

They are looked for in the folder that ``PEBAL_GOLDEN_DIR`` names, by default ``shared/golden`` beside the repository.
Every file of a known form there is tried, whatever its seed, size and batch.
"""

from __future__ import annotations

import os
import zlib
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

SHARED = Path(__file__).resolve().parents[3] / "shared"
FOLDER = Path(os.environ.get("PEBAL_GOLDEN_DIR", SHARED / "golden"))
if "PEBAL_GOLDEN_DIR" in os.environ and not FOLDER.is_dir():
    raise FileNotFoundError(f"PEBAL_GOLDEN_DIR names {FOLDER}, which is not a folder")


def every_file(pattern: str, at_most: int | None = None) -> pytest.MarkDecorator:
    """Parametrise `path` over the reference files of this form; without any the test is skipped."""
    paths = sorted(FOLDER.glob(pattern))[:at_most]
    if not paths:
        return pytest.mark.parametrize(
            "path", [pytest.param(None, marks=pytest.mark.skip(f"no {pattern} in {FOLDER}"))]
        )
    return pytest.mark.parametrize("path", paths, ids=[p.stem for p in paths])


def wide_resnet38_weights(reference: np.lib.npyio.NpzFile) -> dict[str, Tensor]:
    """State dict under our names, drawn from the file's seed and each name's checksum."""
    seed, state = int(reference["seed"]), {}
    for key, text in zip(reference["keys"].tolist(), reference["shapes"].tolist(), strict=True):
        shape = literal_eval(text)
        kind = key.rsplit(".", 1)[-1]
        x = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape, dtype=np.float32)
        if kind == "num_batches_tracked":
            x = np.zeros(shape, np.int64)
        elif kind == "running_var":
            x = 0.5 + np.abs(x)
        elif kind == "running_mean" or (len(shape) == 1 and kind != "weight"):
            x = 0.1 * x
        elif len(shape) == 1:
            x = 1 + 0.1 * x
        else:
            x *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
            if key.endswith("final.6.weight"):
                x *= 0.01
        state[key.removeprefix("branch1.")] = torch.from_numpy(np.asarray(x))
    return state


def deviation(value: Tensor, expected: np.ndarray) -> float:
    """Greatest absolute difference in standard deviations of the expected values."""
    target = torch.from_numpy(expected)
    assert value.shape == target.shape
    return ((value - target).abs().max() / target.std()).item()
