"""What ament, `ros2 run` and pip find of a built project: colcon's two ways to install, and `pip install .`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_prefix, get_package_share_directory

from pebal_core.commands.main import COMMANDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NODES = {"anomaly_node", "camera_player"}
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
"""As in an activated environment: the executables look for python3 there."""
INSTALLATIONS = ["colcon", "colcon --symlink-install", "pip"]


class Installation:
    """An installed project.

    Args:
        prefix: where ament finds it.
        environment: for processes that use it.
    """

    def __init__(self, prefix: Path, environment: dict[str, str]) -> None:
        self.prefix = prefix
        self.environment = {**environment, "PATH": PATH}

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command as somebody would who uses the installation; its own folder holds no sources of ours."""
        return subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, env=self.environment, cwd=self.prefix,
            timeout=300,
        )  # fmt: skip


def check(command: Sequence[str | Path], **options: object) -> str:
    result = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert result.returncode == 0, result.stdout + result.stderr
    return str(result.stdout)


def build_with_colcon(workspace: Path, *options: str) -> Installation:
    (workspace / "src").mkdir()
    (workspace / "src" / "pebal_ros").symlink_to(ROOT)
    colcon = shutil.which("colcon", path=PATH)
    assert colcon, "colcon is missing: pip install 'pebal_ros[test]'"
    check([colcon, "build", *options], cwd=workspace)
    lines = check(["sh", "-c", ". install/local_setup.sh && env -0"], cwd=workspace)
    environment = dict(line.split("=", 1) for line in lines.split("\0") if "=" in line)
    return Installation(workspace / "install" / "pebal_ros", environment)


def install_with_pip(folder: Path) -> Installation:
    # pip leaves a folder "build" beside the sources, and takes deleted modules from it the next time.
    source, prefix = folder / "source", folder / "prefix"
    ignored = shutil.ignore_patterns(".*", "build", "install", "log", "runs", "demo_output", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    options = ["--no-deps", "--no-build-isolation", "--ignore-installed", "--no-index"]
    check([sys.executable, "-m", "pip", "install", *options, "--prefix", prefix, source])
    packages = sysconfig.get_path("purelib", vars={"base": str(prefix)})
    path = os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")]))
    return Installation(prefix, {**os.environ, "PYTHONPATH": path})


@pytest.fixture(scope="module", params=INSTALLATIONS)
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("workspace")
    if request.param == "pip":
        return install_with_pip(folder)
    return build_with_colcon(folder, *request.param.split()[1:])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_ament_finds_both_packages(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(installation.prefix))
    assert [Path(get_package_prefix(name)) for name in ("pebal_ros", "pebal_core")] == [installation.prefix] * 2
    share = Path(get_package_share_directory("pebal_ros"))
    assert (share / "package.xml").read_text() == (ROOT / "package.xml").read_text()
    for folder in ("config", "launch"):
        assert names(share / folder) == names(ROOT / folder)


def test_every_node_and_command_is_executable(installation: Installation) -> None:
    library = installation.prefix / "lib"
    assert names(library / "pebal_ros") - {"pebal"} == NODES
    assert names(library / "pebal_core") == set(COMMANDS)
    for path in [*library.glob("pebal_ros/*"), *library.glob("pebal_core/*")]:
        assert os.access(path, os.X_OK), path


def test_a_node_runs_from_the_installed_package(installation: Installation) -> None:
    result = installation.run(installation.prefix / "lib" / "pebal_ros" / "camera_player")
    assert result.returncode == 1
    assert "The parameter source is empty" in result.stderr


def test_commands_run_from_the_installed_package(installation: Installation) -> None:
    for command in ("info", "prepare-coco"):
        result = installation.run(installation.prefix / "lib" / "pebal_core" / command, "--help")
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"usage: pebal {command}")


def test_the_installed_package_is_used_and_complete(installation: Installation) -> None:
    show = "import pebal_core, pebal_ros; print(pebal_core.__file__, pebal_ros.__file__, sep='\\n')"
    result = installation.run("python3", "-c", show)
    assert result.returncode == 0, result.stderr
    core, ros = (Path(line).parent for line in result.stdout.splitlines())
    workspace = installation.prefix.parents[1] if installation.prefix.name == "pebal_ros" else installation.prefix
    for folder, source in ((core, ROOT / "pebal_core"), (ros, ROOT / "pebal_ros")):
        assert folder.is_relative_to(workspace)
        wanted = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
        found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        assert {path for path in wanted - found if "__pycache__" not in path.parts} == set()


def test_every_command_has_its_link() -> None:
    links = {path.name for path in (ROOT / "wrappers" / "core").iterdir()}
    missing, stale = set(COMMANDS) - links, links - set(COMMANDS)
    assert not missing, f"in wrappers/core: for name in {' '.join(sorted(missing))}; do ln -s ../command $name; done"
    assert not stale, f"in wrappers/core: rm {' '.join(sorted(stale))}"
