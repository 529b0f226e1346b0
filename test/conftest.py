"""Fixtures that every part of the test suite uses."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDERS = {"golden": ("golden",), "ros": ("ros", "slow")}
"""Markers of all tests in a folder."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in FOLDERS.get(item.path.parent.name, ()):
            item.add_marker(marker)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder ``shared`` beside the repository, with data sets, weights and reference values.

    A test that asks for it is skipped where the folder is absent: nothing of it is part of the repository.
    """
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"the data folder {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, prepared outliers and a small model for the tests of training, which only read them."""
    from .core.training import make_workshop  # PyTorch takes seconds to import, and many tests do without

    return make_workshop(tmp_path_factory.mktemp("workshop"))
