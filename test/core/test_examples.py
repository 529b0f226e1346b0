"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import pebal_core
from pebal_core import metrics, objects

INSIDE = [
    module.name
    for package in (metrics, objects)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]
MODULES = [
    "pebal_core", "pebal_core.adaptation.run", "pebal_core.class_list", "pebal_core.drift", "pebal_core.guarantee",
    "pebal_core.losses", "pebal_core.metrics", "pebal_core.objects", "pebal_core.risk_control", "pebal_core.scores",
    *INSIDE,
]  # fmt: skip
WITH_EXAMPLES = {
    "pebal_core.adaptation.run", "pebal_core.class_list",
    "pebal_core.drift", "pebal_core.guarantee", "pebal_core.losses", "pebal_core.metrics.calibration",
    "pebal_core.metrics.components", "pebal_core.metrics.objects", "pebal_core.metrics.pooled",
    "pebal_core.metrics.segmentation", "pebal_core.objects", "pebal_core.objects.ground", "pebal_core.objects.tracking",
    "pebal_core.risk_control", "pebal_core.scores",
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_every_example(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0 or name not in WITH_EXAMPLES, "the examples are gone"


def test_every_public_name_is_there() -> None:
    assert [name for name in pebal_core.__all__ if not hasattr(pebal_core, name)] == []
