"""The committed reference files follow from the plain implementation: nobody has changed a figure by hand."""

from __future__ import annotations

import numpy as np
import pytest

from . import plain
from .reference import OWN


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("losses_seed0.npz", plain.loss_reference),
        pytest.param("wr38_forward_seed5.npz", plain.forward_reference, marks=pytest.mark.slow),
    ],
)
def test_the_committed_file_is_what_the_plain_implementation_gives(name: str, made: plain.Make) -> None:
    stored, expected = np.load(OWN / name), made()
    assert set(stored) == set(expected)
    for key, value in expected.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(stored[key], value, rtol=1e-6, atol=1e-6 * np.abs(value).max())
        else:
            np.testing.assert_array_equal(stored[key], value)
