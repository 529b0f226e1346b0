"""Checks of the inputs that all metrics share; the error messages name the frame."""

from __future__ import annotations

import numpy as np

from pebal_core.errors import PebalError


def check_sizes(name: str, what: str, array: np.ndarray, target: np.ndarray) -> None:
    """Refuse an array that differs in size from the label image.

    Args:
        name: name of the frame, for messages.
        what: name of the array in the plural, for messages.
        array: H×W.
        target: the label image, H×W.

    Raises:
        PebalError: the sizes differ.

    Examples:
        >>> check_sizes("a.png", "predicted labels", np.zeros((2, 3)), np.zeros((2, 4)))
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: a.png: the predicted labels are 2×3 (height×width) but the label image is 2×4.
    """
    if array.shape != target.shape:
        sizes = ["×".join(map(str, shape)) for shape in (array.shape, target.shape)]
        raise PebalError(f"{name}: the {what} are {sizes[0]} (height×width) but the label image is {sizes[1]}.")


def check_scores(name: str, score: np.ndarray, target: np.ndarray) -> None:
    """Refuse a score map that is not float32, differs in size from the label image, or holds a NaN.

    Raises:
        TypeError: the scores are not float32.
        PebalError: the sizes differ, or a score is NaN.

    Examples:
        >>> check_scores("a.png", np.array([[-3, np.nan]], np.float32), np.array([[0, 1]]))
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: a.png: 1 of 2 scores are NaN.
    """
    if score.dtype != np.float32:
        raise TypeError(f"scores must be float32, not {score.dtype}: conversion can merge distinct scores")
    check_sizes(name, "scores", score, target)
    if score.size and np.isnan(score.max()):
        raise PebalError(f"{name}: {np.count_nonzero(np.isnan(score))} of {score.size} scores are NaN.")
