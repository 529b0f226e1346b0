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
WITH_EXAMPLES = {
    "pebal_core.adaptation.run", "pebal_core.class_list", "pebal_core.commands.suggest_margins",
    "pebal_core.data.anomaly_sets", "pebal_core.data.scenes", "pebal_core.data.sequences", "pebal_core.detector",
    "pebal_core.drift", "pebal_core.errors", "pebal_core.export",
    "pebal_core.files", "pebal_core.guarantee", "pebal_core.installation",
    "pebal_core.integrity", "pebal_core.losses", "pebal_core.metrics.alarms", "pebal_core.metrics.calibration",
    "pebal_core.metrics.components", "pebal_core.metrics.objects", "pebal_core.metrics.pages",
    "pebal_core.metrics.pooled", "pebal_core.metrics.score_counts", "pebal_core.metrics.segmentation",
    "pebal_core.metrics.sequences", "pebal_core.model_file", "pebal_core.model_folders", "pebal_core.networks",
    "pebal_core.networks.smp", "pebal_core.objects", "pebal_core.objects.finding", "pebal_core.objects.ground",
    "pebal_core.objects.ignoring", "pebal_core.objects.rules", "pebal_core.objects.tracking",
    "pebal_core.outputs.sighting", "pebal_core.ranges", "pebal_core.render", "pebal_core.risk_control",
    "pebal_core.scores", "pebal_core.training.stream", "pebal_ros.mailbox", "pebal_ros.stream_statistics",
}  # fmt: skip
MODULES = sorted({"pebal_core", "pebal_core.metrics", *INSIDE, *WITH_EXAMPLES})


@pytest.mark.parametrize("name", MODULES)
def test_every_example(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0 or name not in WITH_EXAMPLES, "the examples are gone"


def test_every_public_name_is_there_and_has_an_example() -> None:
    public = {name: getattr(pebal_core, name, None) for name in pebal_core.__all__}
    assert [name for name, value in public.items() if value is None] == []
    without = [name for name, value in public.items() if callable(value) and ">>>" not in (value.__doc__ or "")]
    assert set(without) <= {"PebalError"}
