"""The expected calibration error equals torchmetrics' and the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_calibration_error

from pebal_core.errors import PebalError
from pebal_core.metrics.calibration import CalibrationMetrics

pixels = st.lists(
    st.tuples(st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.sampled_from([0, 1, 255])),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(pixels, min_size=1, max_size=4), st.sampled_from([1, 5, 15]))
def test_equals_the_definition(frames: list[list[tuple[float, int]]], bins: int) -> None:
    metrics, rest = CalibrationMetrics(bins), CalibrationMetrics(bins)
    for i, frame in enumerate(frames):
        confidence = np.array([[c for c, _ in frame]], np.float32)
        target = np.array([[t for _, t in frame]], np.uint8)
        (metrics if i % 2 else rest).update(confidence, np.zeros_like(target), target, name=f"{i}.png")
    metrics.merge(CalibrationMetrics.from_state(rest.state_dict()))
    result = metrics.compute()

    known = [(np.float32(c), t == 0) for frame in frames for c, t in frame if t != 255]
    assert (result.images, result.pixels) == (len(frames), len(known))
    if not known:
        assert result.ece is None
        return
    edges = np.linspace(0, 1, bins + 1)
    expected = 0.0
    for m in range(bins):
        inside = [(c, right) for c, right in known if edges[m] < c <= edges[m + 1] or (m == 0 and c == 0)]
        assert result.bin_pixels[m] == len(inside)
        if inside:
            confidence, accuracy = np.mean(np.array(inside, float), axis=0)
            assert (result.bin_confidence[m], result.bin_accuracy[m]) == pytest.approx((confidence, accuracy))
            expected += len(inside) / len(known) * abs(accuracy - confidence)
        else:
            assert (result.bin_confidence[m], result.bin_accuracy[m]) == (None, None)
    assert result.ece == pytest.approx(expected)


def test_equals_torchmetrics() -> None:
    generator = np.random.default_rng(0)
    probability = generator.random((64, 64), np.float32)
    target = (generator.random((64, 64)) < probability**2).astype(np.uint8)
    labels = (probability > 0.5).astype(np.uint8)
    metrics = CalibrationMetrics(15)
    metrics.update(np.maximum(probability, 1 - probability), labels, target, name="a.png")
    # torchmetrics takes the confidence in class 1: give it the confidence in the prediction, and whether it is right.
    confidence, right = torch.tensor(np.maximum(probability, 1 - probability)), torch.tensor(labels == target)
    expected = binary_calibration_error(confidence, right.int(), n_bins=15)
    assert metrics.compute().ece == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf])
def test_what_is_no_probability_is_refused_with_the_name(value: float) -> None:
    confidence, target = np.full((2, 3), 0.5, np.float32), np.zeros((2, 3), np.uint8)
    confidence[1, 1] = value
    with pytest.raises(PebalError, match=r"a\.png: 1 confidences are not between 0 and 1"):
        CalibrationMetrics().update(confidence, target, target, name="a.png")
    target[1, 1] = 255  # void: whatever stands there
    CalibrationMetrics().update(confidence, target, target, name="a.png")


def test_sizes_that_differ_are_refused_with_the_name() -> None:
    confidence, target = np.full((2, 3), 0.5, np.float32), np.zeros((2, 2), np.uint8)
    with pytest.raises(PebalError, match=r"a\.png: the confidences are 2×3"):
        CalibrationMetrics().update(confidence, target, target, name="a.png")
