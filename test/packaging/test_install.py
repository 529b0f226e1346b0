"""scripts/environment.sh and scripts/install.py: what they say when something is missing, and what they repair."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_venv(path: Path, *options: str) -> Path:
    subprocess.run([sys.executable, "-m", "venv", *options, str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_venv(tmp_path_factory.mktemp("environments") / "venv")


def test_no_python_is_one_sentence(tmp_path: Path) -> None:
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    command = [str(tmp_path / "bash"), "-c", f"source {ROOT}/scripts/environment.sh"]
    result = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode != 0
    assert result.stderr.startswith("pebal: Python 3.10, 3.11 or 3.12 is needed")
    assert result.stderr.count("\n") == 1


def test_too_little_disk_is_said_before_anything_is_made(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "DISK_NEEDED", 1e9)
    with pytest.raises(install.InstallError, match=r"1000000000 GB of disk space are needed in .* GB are free"):
        install.prepare(tmp_path / "venv", ros=False)
    assert not (tmp_path / "venv").exists()


def test_a_python_without_venv_is_said(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name))
    with pytest.raises(install.InstallError, match="has no venv module"):
        install.prepare(tmp_path / "venv", ros=False)


def test_an_unreachable_registry_is_said_and_leaves_no_stamp(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    # Port 9 of this machine: nothing listens there.
    for name, value in {"CONFIG_FILE": "/dev/null", "INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setattr(install, "DISK_NEEDED", 0.0)
    venv = tmp_path / "venv"
    with pytest.raises(install.InstallError, match="^pip could not install the packages; see its output above"):
        install.prepare(venv, ros=False)
    assert "Connection refused" in capfd.readouterr().err, "pip says why"
    assert not (venv / "complete").exists()


def test_only_a_usable_environment_works(install: ModuleType, venv: Path, tmp_path: Path) -> None:
    assert install.works(venv)
    assert not install.works(tmp_path / "absent")
    assert not install.works(make_venv(tmp_path / "half_made", "--without-pip"))
    assert not install.works(shutil.copytree(venv, tmp_path / "moved", symlinks=True))
    python = venv / "bin" / "python"
    target = python.readlink()
    python.unlink()
    python.symlink_to(tmp_path / "a_python_that_was_removed")
    assert not install.works(venv)
    python.unlink()
    python.symlink_to(target)


def test_a_complete_environment_is_left_alone_until_its_sources_change(
    install: ModuleType, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[Path] = []
    monkeypatch.setattr(install, "install", lambda venv, ros: installed.append(venv))
    install.prepare(venv, ros=False)
    install.prepare(venv, ros=False)
    assert installed == [venv]
    monkeypatch.setattr(install, "SOURCES", ("setup.py",))
    install.prepare(venv, ros=False)
    assert installed == [venv, venv]


def test_a_distributions_packages_may_stay_and_its_numpy_1_must(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        def __init__(self, name: str, version: str) -> None:
            self.metadata, self.version = {"Name": name}, version

    text = "numpy==2.4 ; python_version > '3.10'\nopencv-python-headless==5.0\npip==26.3\npyyaml==6.0.3\ntorch==2.14\n"
    installed = [Found("numpy", "1.26.4"), Found("PyYAML", "6.0.1"), Found("pip", "24.0"), Found("numpy", "2.1")]
    monkeypatch.setattr(install.importlib.metadata, "distributions", lambda: installed)
    assert install.constraints_beside_ros(text).split() == [
        "pip==26.3", "pyyaml<=6.0.3", "torch==2.14", "numpy<2", "opencv-python-headless<4.12",
    ]  # fmt: skip
    monkeypatch.setattr(install.importlib.metadata, "distributions", lambda: [])
    assert install.constraints_beside_ros(text) == text
