"""Make the project's virtual environment, or bring it up to date: environment.sh runs this.

    python3 scripts/install.py VENV [--ros]

The environment is complete when its stamp holds the digest of everything it was made from; then nothing is done. An
interrupted installation is taken up where it ended. An environment that does not work is made anew.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "requirements.txt", "setup.cfg", "pyproject.toml", "constraints.txt", "scripts/install.py")
DISK_NEEDED = 12.0
"""GB: what is installed, and what pip keeps of the downloads."""
MODULES = (
    "torch, torchvision, cv2, timm, segmentation_models_pytorch, lightning, onnxruntime, rclpy, sensor_msgs.msg, "
    "pebal_core"
)
"""What must be importable in the end."""
OWN = ("pip", "setuptools")  # every environment has its own, whatever the distribution has

# Compiled messages of a distribution with NumPy 1 do not load with NumPy 2; this is the last OpenCV without NumPy 2.
NUMPY_1 = {"numpy": "numpy<2", "opencv-python-headless": "opencv-python-headless<4.12"}


class InstallError(Exception):
    """A failure; its text is the sentence for the user."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("venv", type=Path)
    parser.add_argument("--ros", action="store_true", help="use the installation of ROS 2 that is sourced")
    args = parser.parse_args()
    try:
        lock = os.open(ROOT, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)  # two scripts that start at once make one environment
        prepare(args.venv, args.ros)
    except InstallError as error:
        print(f"pebal: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npebal: interrupted. Run the command again to continue from here.", file=sys.stderr)
        return 130
    return 0


def prepare(venv: Path, ros: bool) -> None:
    """Leave a complete environment behind.

    Raises:
        InstallError: it could not be made.
    """
    stamp = venv / "complete"
    if works(venv):
        if stamp.is_file() and stamp.read_text() == digest(venv, ros):
            return
    else:
        make(venv, ros)
    install(venv, ros)
    stamp.write_text(digest(venv, ros))


def digest(venv: Path, ros: bool) -> str:
    """Of everything that the environment is made from."""
    digest = hashlib.sha256(repr((str(venv), ros, (venv / "pyvenv.cfg").read_text())).encode())
    for name in SOURCES:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def works(venv: Path) -> bool:
    """Whether this is an environment with pip whose interpreter is still there and which was not moved."""
    activate = venv / "bin" / "activate"
    if not activate.is_file() or str(venv) not in activate.read_text():
        return False
    try:
        return subprocess.run([venv / "bin" / "python", "-c", "import pip"], capture_output=True).returncode == 0
    except OSError:
        return False


def make(venv: Path, ros: bool) -> None:
    """A fresh virtual environment with pip in it.

    Raises:
        InstallError: a precondition is missing.
    """
    version = platform.python_version()
    if not ros and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise InstallError(
            f"The package registry provides ROS 2 only for x86-64 Linux, and this machine is {platform.machine()} "
            f"{platform.system()}. Source an installation of ROS 2 first."
        )
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        raise InstallError(
            f"Python {version} has no venv module. On Debian or Ubuntu, install it with: apt install python3-venv."
        )
    free = shutil.disk_usage(venv.parent).free / 1e9
    if free < DISK_NEEDED:
        raise InstallError(
            f"{DISK_NEEDED:.0f} GB of disk space are needed in {venv.parent}, but only {free:.1f} GB are free."
        )
    say(f"Creating {venv} with Python {version}. This is done once and takes a few minutes.")
    if venv.exists():
        shutil.rmtree(venv)
    command = [sys.executable, "-m", "venv", *(["--system-site-packages"] if ros else []), str(venv)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        raise InstallError(f"{venv} could not be created: {(result.stdout + result.stderr).strip().splitlines()[-1]}")


def install(venv: Path, ros: bool) -> None:
    """Install the project, editable, with everything it needs.

    Raises:
        InstallError: pip failed, or what it installed cannot be imported.
    """
    constraints = ROOT / "constraints.txt"
    if ros:
        constraints = venv / "constraints.txt"
        constraints.write_text(constraints_beside_ros((ROOT / "constraints.txt").read_text()))
    python = str(venv / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--constraint", str(constraints), "--no-input", "--quiet"]
    pip.append("--no-compile")  # Python compiles what is imported; compiling all of it takes a minute
    extras = "train,onnx,benchmark,demo,test,docs" if ros else "train,onnx,benchmark,demo,test,docs,ros"
    failed = (
        "pip could not install the packages; see its output above. Run the command again to continue where it stopped."
    )
    say("Installing the packages. pip prints only errors.")
    run([*pip, *OWN], failed)
    run([*pip, "--no-build-isolation", "--editable", f"{ROOT}[{extras}]"], failed)
    say("Checking that the installed packages can be imported.")
    run([python, "-c", f"import {MODULES}"], f"A package cannot be imported; remove {venv} and start again.")


def constraints_beside_ros(text: str) -> str:
    """The constraints for an environment on top of a distribution, whose own packages stay if they are new enough."""
    present: dict[str, str] = {}
    for found in importlib.metadata.distributions():  # in the order of sys.path: the first one is imported
        present.setdefault(normal(found.metadata["Name"] or ""), found.version)
    for name in OWN:
        present.pop(name, None)
    replaced = NUMPY_1 if present.get("numpy", "").startswith("1.") else {}
    lines = []
    for line in text.splitlines():
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        if name in replaced:
            continue
        lines.append(line.replace("==", "<=", 1) if name in present else line)
    return "\n".join([*lines, *replaced.values(), ""])


def normal(name: str) -> str:
    """A distribution's name as constraints.txt writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def run(command: list[str], problem: str) -> None:
    """Run a step whose output goes where ours goes.

    Raises:
        InstallError: it failed; what it printed says why.
    """
    environment = {**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment).returncode:
        raise InstallError(problem)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
