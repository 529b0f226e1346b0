"""Fixtures that every part of the test suite uses, and what may be skipped."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

FOLDERS = {"golden": ("golden",), "ros": ("ros", "slow")}
"""Markers of all tests in a folder."""

SHARED = Path(__file__).resolve().parents[2] / "shared"

MAY_BE_SKIPPED = (
    # No version of these for the tested environment, or too large for it.
    "ray is not installed",
    "rerun-sdk is not installed",
    # Of a ROS 2 installation; the tested environment has wheels of rclpy alone.
    "could not import 'cv_bridge'",
    "not every version of cv_bridge reads it",
    "tf2_ros is not installed",
    "vision_msgs is not installed",
    "vision_msgs is installed",
    "rviz2 is installed",
    "needs ros2 launch and a sourced workspace",
    "needs launch_testing and a sourced workspace",
    # Of the machine.
    "this machine has no GPU",
    "Triton comes with PyTorch for CUDA alone",
    "the installed ONNX Runtime has CUDA",
)
"""How the reasons begin for which a test may be skipped where the folder ``shared`` is, as it is in CI. Anything else
that is missing there is an error of the environment, which a green run would hide."""

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in FOLDERS.get(item.path.parent.name, ()):
            item.add_marker(marker)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return without_silent_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return without_silent_skip((yield))


def without_silent_skip(report: Report) -> Report:
    """The report, or a failure in place of a skip that the folder ``shared`` makes unnecessary."""
    if SHARED.is_dir() and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(MAY_BE_SKIPPED):
            report.outcome = "failed"
            report.longrepr = f"Skipped, though {SHARED} exists, for a reason that test/conftest.py lacks: {reason}"
    return report


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder ``shared`` beside the repository, with data sets, weights and reference values.

    A test that asks for it is skipped where the folder is absent: nothing of it is part of the repository.
    """
    if not SHARED.is_dir():
        pytest.skip(f"the data folder {SHARED} is absent")
    return SHARED


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, prepared outliers and a small model for the tests of training, which only read them."""
    from .core.training import make_workshop  # PyTorch takes seconds to import, and many tests do without

    return make_workshop(tmp_path_factory.mktemp("workshop"))
