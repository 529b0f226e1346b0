"""The launch files, where ROS 2's launch and an installed workspace are at hand."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory, get_packages_with_prefixes
from diagnostic_msgs.msg import DiagnosticStatus

from .harness import PROMPT, REPOSITORY, STARTUP, Client, picture


def installed(module: str) -> bool:
    """Whether launch files can run: the module is there, and ament finds launch files of ours."""
    try:
        share = Path(get_package_share_directory("pebal_ros"))
    except PackageNotFoundError:
        return False
    return importlib.util.find_spec(module) is not None and (share / "launch" / "cameras.launch.py").is_file()


needs_ros2_launch = pytest.mark.skipif(
    not installed("ros2launch") or not shutil.which("ros2"), reason="needs ros2 launch and a sourced workspace"
)
COMMAND = ["ros2", "launch", "pebal_ros", "anomaly.launch.py"]


@pytest.mark.skipif(not installed("launch_testing"), reason="needs launch_testing and a sourced workspace")
def test_a_rig_of_cameras_under_launch_testing(tmp_path: Path, tiny_model: Path) -> None:
    cv2.imwrite(str(tmp_path / "picture.png"), picture())
    command = [sys.executable, "-m", "launch_testing.launch_test", str(Path(__file__).with_name("rig_launch.py"))]
    command += [f"model:={tiny_model}", f"source:={tmp_path / 'picture.png'}"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=STARTUP)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_ros2_launch
def test_launch_with_footage_until_interrupted_twice(tmp_path: Path, tiny_model: Path) -> None:
    cv2.imwrite(str(tmp_path / "picture.png"), picture())
    client = Client("/launched")
    arguments = {"namespace": "launched", "model": tiny_model, "source": tmp_path / "picture.png"}
    command = [*COMMAND, *(f"{n}:={v}" for n, v in arguments.items())]
    with (tmp_path / "log").open("w") as log:
        launch = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        labels = client.listen("labels")
        client.status("/launched/image", lambda s: s.level != DiagnosticStatus.ERROR and labels.messages, STARTUP)
        started = time.monotonic()
        for _ in range(2):  # like Ctrl-C in a terminal: launch and both nodes get it
            os.killpg(launch.pid, signal.SIGINT)
            time.sleep(0.2)
        assert launch.wait(STARTUP) == 0
        assert time.monotonic() - started < PROMPT + 1, "launch itself takes a part of it"
    finally:
        if launch.poll() is None:
            os.killpg(launch.pid, signal.SIGKILL)
        client.close()
    output = (tmp_path / "log").read_text()
    assert output.count("process has finished cleanly") == 2 and "Traceback" not in output, output


@needs_ros2_launch
@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("params_file:=nowhere.yaml", "The parameter file 'nowhere.yaml' does not exist"),
        ("rviz:=ture", 'Argument "rviz" provided value "ture" is not valid'),
        pytest.param(
            "rviz:=true",
            "rviz:=true needs rviz2, which is not installed. Install it with sudo apt install ros-",
            marks=pytest.mark.skipif("rviz2" in get_packages_with_prefixes(), reason="rviz2 is installed"),
        ),
        ("loop:=maybe", 'Argument "loop" provided value "maybe" is not valid'),
    ],
)
def test_an_argument_that_cannot_be_meant_starts_nothing(argument: str, sentence: str) -> None:
    result = subprocess.run([*COMMAND, argument], capture_output=True, text=True, timeout=STARTUP)
    assert result.returncode == 1
    assert sentence in result.stderr + result.stdout and "process started" not in result.stderr + result.stdout
