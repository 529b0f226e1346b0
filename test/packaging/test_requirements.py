"""What a start says where a package is missing, too old, or made for another NumPy."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from pebal_core.errors import PebalError
from pebal_core.installation import explained_imports

ROOT = Path(__file__).resolve().parents[2]
OLD = "__version__ = '{}'"
MISSING = "raise ModuleNotFoundError(\"No module named '{0}'\", name='{0}')"
OPENCV = (
    "The package opencv-python-headless is too old, because 4.6.0 is installed and 4.8 or newer is needed. "
    "Run: pip install 'opencv-python-headless>=4.8'"
)
NEEDED = next(
    requirement.partition(">=")[2].strip()
    for requirement in importlib.metadata.requires("pebal_ros") or []
    if requirement.startswith("jsonargparse") and "extra" not in requirement
)
JSONARGPARSE = (
    f"The package jsonargparse is missing ({NEEDED} or newer is needed). Run: pip install 'jsonargparse>={NEEDED}'"
)
TORCH = (
    "The package torch is too old, because 1.13.1 is installed and 2.4 or newer is needed. "
    "Run: pip install 'torch>=2.4'"
)


@pytest.mark.parametrize(
    ("program", "module", "source", "sentence"),
    [
        (["wrappers/ros/camera_player"], "cv2", OLD.format("4.6.0"), f"camera_player: {OPENCV}"),
        (["wrappers/core/predict", "x", "--out", "y"], "cv2", OLD.format("4.6.0"), f"pebal predict: {OPENCV}"),
        (
            ["-m", "pebal_core", "predict", "x", "--out", "y"], "jsonargparse", MISSING.format("jsonargparse"),
            f"pebal predict: {JSONARGPARSE}",
        ),
        (["wrappers/core/info", "starter"], "rclpy", MISSING.format("rclpy"), ""),
        (
            ["wrappers/ros/anomaly_node"], "rclpy", MISSING.format("rclpy"),
            "anomaly_node: The ROS package rclpy is missing. Source your installation of ROS 2",
        ),
        (["wrappers/ros/anomaly_node"], "torch", OLD.format("1.13.1"), TORCH),
        (
            ["wrappers/ros/anomaly_node"], "torch", MISSING.format("torch"),
            "The package torch is missing (2.4 or newer is needed). Run: pip install 'torch>=2.4'",
        ),
    ],
)  # fmt: skip
def test_a_start_says_which_package_to_install(
    tmp_path: Path, program: list[str], module: str, source: str, sentence: str
) -> None:
    (tmp_path / f"{module}.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, *program]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    said = [line for line in result.stderr.splitlines() if not line.startswith(("[INFO]", "[WARN]"))]
    assert result.returncode == (1 if sentence else 0), result.stderr
    assert len(said) == bool(sentence) and all(sentence in line for line in said), result.stderr


def test_only_what_was_imported_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "__version__", "4.6.0")
    monkeypatch.delitem(sys.modules, "cv2")
    with explained_imports():
        pass
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    with pytest.raises(PebalError, match="opencv-python-headless is too old"), explained_imports():
        pass


def test_a_package_made_for_numpy_1_is_named() -> None:
    sentence = r"^cv_bridge was compiled for NumPy 1 .* Run: pip install 'numpy<2'"
    with pytest.raises(PebalError, match=sentence), explained_imports():
        raise ImportError("numpy.core.multiarray failed to import", name="cv_bridge")


def test_an_error_of_our_own_stays_what_it_is() -> None:
    with pytest.raises(AttributeError, match="no such"), explained_imports():
        raise AttributeError("no such attribute")
