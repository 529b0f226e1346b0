"""One sentence in place of a traceback where an installed package is missing, too old, or made for another NumPy.

with explained_imports():
    import torch
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from .errors import PebalError

PROJECT = "pebal_ros"
MODULES = {"opencv-python-headless": "cv2", "pyyaml": "yaml"}
"""Modules that are not named as their package is."""
ROS_PACKAGE = r"rclpy|\w+_(msgs|srvs|interfaces)"


def load(module: str) -> ModuleType:
    """Import the module of a program; where a package stands in the way, exit with one sentence and status 1."""
    try:
        with explained_imports():
            return importlib.import_module(module)
    except PebalError as error:
        sys.exit(f"{module.rpartition('.')[2]}: {error}")


@contextmanager
def explained_imports() -> Iterator[None]:
    """Turn what goes wrong with the packages that are imported inside into one sentence.

    Only what was imported counts: an old PyTorch does no harm where ONNX Runtime runs the model.

    Raises:
        PebalError: a package is missing or too old, or does not load.
    """
    try:
        yield
    except (ImportError, AttributeError) as error:
        _check_versions()  # an old package fails in many ways
        if isinstance(error, ImportError):
            raise PebalError(_explanation(error)) from error
        raise
    _check_versions()


def _check_versions() -> None:
    for name, (package, needed) in _requirements().items():
        module = sys.modules.get(name)
        found = _version(module, package) if module is not None else ""
        if found and _numbers(found) < _numbers(needed):
            raise PebalError(
                f"The package {package} is too old: {found} is installed, {needed} or newer is needed: "
                f"{_pip(f'{package}>={needed}')}."
            )


def _explanation(error: ImportError) -> str:
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):
        if re.search("multiarray|_ARRAY_API|NumPy 1", str(error)):
            return (
                f"{name or 'A package'} was compiled for NumPy 1 and does not load with NumPy "
                f"{_version(sys.modules.get('numpy'), 'numpy')}: {_pip('numpy<2')}."
            )
        return f"{name or 'A package'} does not load: {next(iter(str(error).splitlines()), 'no reason given')}"
    if re.fullmatch(ROS_PACKAGE, name):
        return f"The ROS package {name} is missing: source your installation of ROS 2 (docs/install.md)."
    package, needed = _requirements().get(name, (name, ""))
    wanted = f"{package}>={needed}" if needed else package
    asked = f" ({needed} or newer is needed)" if needed else ""
    return f"The package {package} is missing{asked}: {_pip(wanted)}."


def _requirements() -> dict[str, tuple[str, str]]:
    """Package and lowest version by module name, as the installed project declares them."""
    try:
        lines = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:  # the bare sources
        return {}
    found = {}
    for line in lines:
        if match := re.match(r"([\w.-]+?)\s*(?:\[[^]]*\])?\s*\(?>=\s*([\d.]+)", line):
            package = match[1]
            found[MODULES.get(package.lower(), package.lower().replace("-", "_"))] = (package, match[2])
    return found


def _version(module: ModuleType | None, package: str) -> str:
    """Of what was imported, which may come from another package of the same module; "" where it is not to be had."""
    version = getattr(module, "__version__", "")
    if isinstance(version, str) and version:
        return version
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> list[int]:
    """The first three numbers of a version: of 2.4.0rc1+cu130 these are 2, 4 and 0."""
    return [int(number) for number in [*re.findall(r"\d+", version.partition("+")[0]), 0, 0, 0][:3]]


def _pip(requirement: str) -> str:
    """The line that installs a package; it keeps NumPy 1 where that is what a distribution of ROS was built with."""
    numpy = _version(sys.modules.get("numpy"), "numpy")
    kept = " 'numpy<2'" if numpy.startswith("1.") and requirement != "numpy<2" else ""
    where = " in a virtual environment (docs/install.md)" if sys.prefix == sys.base_prefix else ""
    return f"pip install '{requirement}'{kept}{where}"
