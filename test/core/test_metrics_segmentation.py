"""Per-class IoU from the streamed confusion matrix equals scikit-learn's Jaccard score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, jaccard_score

from pebal_core.errors import PebalError
from pebal_core.metrics.segmentation import SegmentationMetrics

CLASSES = ("road", "car", "sky", "person")

pixels = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 1, 2, 255])), min_size=1, max_size=30)


def arrays(pixels: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    labels, target = np.array(pixels, np.uint8).T
    return labels.reshape(1, -1), target.reshape(1, -1)


@settings(max_examples=60, deadline=None)
@given(st.lists(pixels, min_size=1, max_size=4))
def test_equals_scikit_learn(frames: list[list[tuple[int, int]]]) -> None:
    metrics, rest = SegmentationMetrics(CLASSES), SegmentationMetrics(CLASSES)
    for i, frame in enumerate(frames):
        (metrics if i % 2 else rest).update(*arrays(frame), name=f"{i}.png")
    metrics.merge(SegmentationMetrics.from_state(rest.state_dict()))
    result = metrics.compute()

    labels, target = np.array([pixel for frame in frames for pixel in frame if pixel[1] != 255]).reshape(-1, 2).T
    assert (result.images, result.pixels) == (len(frames), len(target))
    if len(target) == 0:
        assert (result.miou, result.accuracy) == (None, None)
        return
    np.testing.assert_array_equal(metrics.confusion, confusion_matrix(target, labels, labels=range(4)))
    expected = jaccard_score(target, labels, labels=range(4), average=None, zero_division=0)
    present = sorted({*target.tolist(), *labels.tolist()})
    assert [i for i, iou in enumerate(result.iou) if iou is not None] == present
    assert [result.iou[i] for i in present] == pytest.approx(expected[present])
    assert result.miou == pytest.approx(expected[present].mean())
    assert result.accuracy == pytest.approx(np.mean(labels == target))
    assert result.miou_of(present[:1]) == pytest.approx(expected[present[0]])


def test_a_class_that_never_occurs_has_no_iou_and_does_not_lower_the_mean() -> None:
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(np.array([[0, 0, 1, 3]]), np.array([[0, 1, 1, 255]]), name="a.png")
    result = metrics.compute()
    assert result.iou == (0.5, 0.5, None, None)
    assert result.miou == 0.5
    assert result.miou_of([2, 3]) is None


def test_a_prediction_outside_the_labelled_classes_counts_against_it() -> None:
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(np.array([[0, 2]]), np.array([[0, 0]]), name="a.png")
    assert metrics.compute().iou == (0.5, None, 0.0, None)


@pytest.mark.parametrize(
    ("labels", "target", "message"),
    [
        (
            [[0, 1]],
            [[0, 4]],
            r"a\.png: the label image has 1 pixels with the values 4; .* 0 to 3, void is 255",
        ),
        ([[7, 1]], [[0, 1]], r"a\.png: the prediction has 1 pixels with the values 7"),
        ([[0, 1]], [[0, -1]], r"a\.png: the label image has 1 pixels with the values -1"),
        ([[0, 1]], [[0]], r"a\.png: the predicted labels are 1×2 .* label image is 1×1"),
    ],
)
def test_bad_input_names_the_frame(labels: list[list[int]], target: list[list[int]], message: str) -> None:
    metrics = SegmentationMetrics(CLASSES)
    with pytest.raises(PebalError, match=message):
        metrics.update(np.array(labels), np.array(target), name="a.png")
    assert metrics.compute().images == 0


def test_any_prediction_at_void_pixels_is_ignored() -> None:
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(np.array([[0, 19]], np.uint8), np.array([[0, 255]], np.uint8), name="a.png")
    assert metrics.compute().miou == 1.0


def test_state_survives_a_file(tmp_path: Path) -> None:
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(np.array([[0, 1]]), np.array([[0, 0]]), name="a.png")
    np.savez(tmp_path / "a.npz", **metrics.state_dict())  # type: ignore[arg-type]
    with np.load(tmp_path / "a.npz") as state:
        assert SegmentationMetrics.from_state(state).compute() == metrics.compute()


def test_other_classes_do_not_merge() -> None:
    with pytest.raises(ValueError, match="cannot merge"):
        SegmentationMetrics(CLASSES).merge(SegmentationMetrics(CLASSES[:2]))
