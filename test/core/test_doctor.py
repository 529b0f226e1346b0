"""Each trap that the doctor knows is set, and it must name it and the way out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pebal_core import doctor
from pebal_core.commands.main import main
from pebal_core.doctor import ERROR, NOTE, OK, WARNING, Check

PROFILE = Path(__file__).parents[2] / "config" / "fastdds.xml"


@pytest.mark.slow
def test_this_installation_and_a_data_folder_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["doctor", "--json", "--engine", "torch", "--device", "cpu", "--scenes", f"camvid={tmp_path / 'none'}"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert code == 1
    assert [name for name, check in checks.items() if check["level"] == ERROR] == ["scenes camvid"]
    assert "none/val does not exist" in checks["scenes camvid"]["found"]
    assert checks["torch"]["level"] == OK and checks["python"]["level"] == OK
    assert checks["model"]["level"] == OK and "on torch, cpu" in checks["model"]["found"]


def test_a_model_that_is_missing_or_damaged(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"{}")
    for name, words in (("nothing", "There is no model 'nothing'"), (str(tmp_path / "cut.safetensors"), "not a comp")):
        check = doctor.check_model(name, "auto", "auto", "auto")
        assert check.level == ERROR and words in check.found and check.remedy


def test_a_device_that_is_missing() -> None:
    check = doctor.check_model("starter", "torch", "cuda:97", "auto")
    assert check.level == ERROR and "cuda:97" in check.found


@pytest.mark.parametrize(
    ("environment", "distribution", "level", "words"),
    [
        ({"FASTDDS_DEFAULT_PROFILES_FILE": str(PROFILE)}, "kilted", OK, "64 MB"),
        ({"FASTRTPS_DEFAULT_PROFILES_FILE": str(PROFILE)}, "humble", OK, "64 MB"),
        ({}, "", WARNING, "FASTDDS_DEFAULT_PROFILES_FILE is not set, so most large images will not arrive"),
        ({"FASTDDS_DEFAULT_PROFILES_FILE": str(PROFILE)}, "jazzy", WARNING, "which this version does not read"),
        ({"FASTDDS_DEFAULT_PROFILES_FILE": "/no/such.xml"}, "", ERROR, "is set to /no/such.xml, which cannot be read"),
    ],
)
def test_the_transport_profile(environment: dict[str, str], distribution: str, level: str, words: str) -> None:
    check = doctor.check_transport(environment, distribution)
    assert check.level == level and words in check.found
    assert level == OK or f"_DEFAULT_PROFILES_FILE={PROFILE}" in check.remedy


def test_a_profile_with_too_little_shared_memory(tmp_path: Path) -> None:
    small = tmp_path / "small.xml"
    small.write_text(PROFILE.read_text().replace("67108864", "524288"))
    check = doctor.check_transport({"FASTDDS_DEFAULT_PROFILES_FILE": str(small)}, "")
    assert check.level == WARNING and "too little shared memory" in check.found


@pytest.mark.parametrize(
    ("environment", "level", "words"),
    [
        ({}, OK, "domain 0, the local network"),
        ({"ROS_DOMAIN_ID": "7", "ROS_LOCALHOST_ONLY": "1"}, OK, "domain 7, this machine only"),
        ({"ROS_DOMAIN_ID": "robot"}, ERROR, "ROS_DOMAIN_ID is 'robot'"),
        ({"ROS_DOMAIN_ID": "300"}, ERROR, "ROS_DOMAIN_ID is '300'"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}, WARNING, "OFF"),
        (
            {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"},
            WARNING,
            "cancels",
        ),
    ],
)
def test_discovery(environment: dict[str, str], level: str, words: str) -> None:
    check = doctor.check_discovery(environment)
    assert check.level == level and words in check.found


def installed(folder: Path, name: str, version: str, *requires: str) -> None:
    """What pip leaves behind of a package."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Check]:
    monkeypatch.syspath_prepend(str(folder))
    return {check.name: check for check in doctor.check_packages()}


def test_packages_that_are_missing_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requires = ("numpy>=99", "no-such-package>=1", "pytest>=1", 'no-such-logger>=2; extra == "train"')
    installed(tmp_path, "pebal_ros", "9.9", *requires)
    checks = packages(tmp_path, monkeypatch)
    found = checks["packages"]
    assert (
        found.level == ERROR and "numpy>=99 is needed" in found.found and "no-such-package>=1 is missing" in found.found
    )
    assert found.remedy == "pip install 'numpy>=99' 'no-such-package>=1'"
    assert checks["extra train"].level == NOTE and "no-such-logger>=2 is missing" in checks["extra train"].found


def test_packages_that_overwrite_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "onnxruntime", "1.2")
    installed(tmp_path, "onnxruntime-gpu", "1.2")
    check = packages(tmp_path, monkeypatch)["onnxruntime-gpu"]
    assert check.level == ERROR and check.remedy.startswith("pip uninstall onnxruntime-gpu onnxruntime")


def test_a_sourced_distribution_without_its_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rclpy.py").write_text("raise ImportError('made for another Python')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    (sourced,) = doctor.check_ros({"ROS_DISTRO": "jazzy"})
    assert sourced.level == ERROR and "jazzy is sourced, but rclpy cannot be imported" in sourced.found
    assert "made for another Python" in sourced.found and "--system-site-packages" in sourced.remedy
    (without,) = doctor.check_ros({})
    assert without.level == NOTE
