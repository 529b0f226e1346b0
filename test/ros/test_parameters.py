"""The parameter table: what it refuses, what it declares, what "auto" becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pebal_core.errors import PebalError
from pebal_core.model_info import ModelInfo
from pebal_core.objects import ObjectRules
from pebal_ros.parameters import PARAMETERS, Settings, refusal

from .harness import REPOSITORY

TABLE = {spec.name: spec for spec in PARAMETERS}
DEFAULTS = {spec.name: spec.default for spec in PARAMETERS}


def test_defaults_are_acceptable_and_names_unique() -> None:
    assert len(TABLE) == len(PARAMETERS)
    for spec in PARAMETERS:
        assert spec.refusal(spec.default) is None, spec.name
        assert spec.description.endswith("."), spec.name


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("overlay_alpha", 1.5, "overlay_alpha must lie between 0 and 1, not 1.5"),
        ("overlay_alpha", 1, "overlay_alpha takes a number, not 1: write 1.0"),
        ("overlay_alpha", float("nan"), "overlay_alpha must be finite"),
        ("max_rate", -0.1, "max_rate must lie between 0 and 1000"),
        ("threshold", "high", "threshold takes a number or 'auto', not 'high'"),
        ("threshold", True, "threshold takes a number or 'auto'"),
        ("threshold", -5, None),
        ("threshold", "auto", None),
        ("max_age", 0.25, None),
        ("model", "other", "model cannot change while the node runs; restart"),
        ("unknown", 1, None),
    ],
)
def test_changes_of_a_running_node(name: str, value: Any, reason: str | None) -> None:
    refused = refusal(PARAMETERS, name, value)
    assert refused is None if reason is None else refused is not None and refused.startswith(reason)


def test_lists_and_choices() -> None:
    assert TABLE["outputs"].refusal(["labels", "energy"]) is None
    assert "not 'lables'" in (TABLE["outputs"].refusal(["lables"]) or "")
    assert "not 'int8'" in (TABLE["precision"].refusal("int8") or "")
    assert "twice: labels, labels" in (TABLE["outputs"].refusal(["labels", "labels"]) or "")


@pytest.mark.parametrize("name", ["", "front", "rig/front_left", "/absolute/camera2"])
def test_names_of_cameras(name: str) -> None:
    assert TABLE["cameras"].refusal([name]) is None


@pytest.mark.parametrize("name", ["front left", "2nd", "front/", "a//b", "../secret", "~", "frönt", "front\n"])
def test_names_that_no_topic_can_have(name: str) -> None:
    assert "takes names of letters" in (TABLE["cameras"].refusal([name]) or "")


def test_descriptors_carry_ranges_and_say_what_is_fixed() -> None:
    alpha, model, threshold = (TABLE[name].descriptor() for name in ("overlay_alpha", "model", "threshold"))
    assert (alpha.floating_point_range[0].from_value, alpha.floating_point_range[0].to_value) == (0.0, 1.0)
    assert not alpha.read_only and model.read_only and "restart" in model.additional_constraints
    assert threshold.dynamic_typing and TABLE["input_height"].descriptor().integer_range[0].to_value == 8192


def test_auto_is_what_the_model_says() -> None:
    info = ModelInfo("any", energy_range=[-12.0, -1.0], threshold=-4.5)
    resolved = Settings.resolve(DEFAULTS, info)
    assert (resolved.threshold, resolved.score_min, resolved.score_max) == (-4.5, -12.0, -1.0)
    assert resolved.object_rules == ObjectRules(-4.5, -6.375, carriers=(0, 1))
    given = Settings.resolve({**DEFAULTS, "threshold": -3, "score_min": -5.0}, info)
    assert (given.threshold, given.score_min, given.score_max) == (-3.0, -5.0, -1.0)
    without = Settings.resolve(DEFAULTS, ModelInfo("any"))
    assert without.threshold is None and without.object_rules is None
    anywhere = Settings.resolve({**DEFAULTS, "carriers": [""], "grow_threshold": -5.0}, info).object_rules
    assert anywhere == ObjectRules(-4.5, -5.0, carriers=None)
    for wrong, reason in (
        ({"grow_threshold": -4.0}, "lies above the threshold"),
        ({"confirm_hits": 6}, r"confirm_hits \(6\) must lie between 1 and confirm_window \(5\)"),
        ({"carriers": ["lawn"]}, "no class 'lawn'"),
    ):
        with pytest.raises(PebalError, match=reason):
            Settings.resolve({**DEFAULTS, **wrong}, info)
    with pytest.raises(PebalError, match=r"score_min \(0\) must be below score_max \(-1\)"):
        Settings.resolve({**DEFAULTS, "score_min": 0.0}, info)


def test_the_shipped_parameter_file_names_every_parameter_with_its_default() -> None:
    path: Path = REPOSITORY / "config" / "anomaly.yaml"
    sections = yaml.safe_load(path.read_text())
    assert sections["/**/anomaly_node"]["ros__parameters"] == DEFAULTS
