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
from dataclasses import dataclass
from types import ModuleType

from .errors import PebalError

PROJECT = "pebal_ros"
MODULES = {"opencv-python-headless": "cv2", "pyyaml": "yaml"}
"""Modules that are not named as their package is."""
ROS_PACKAGE = r"rclpy|\w+_(msgs|srvs|interfaces)"


@dataclass(frozen=True)
class Requirement:
    """A package that the project or one of its extras asks for.

    Args:
        operator: ``>=``, ``==``, or "" where any version does.
        extra: "" where the project itself asks for it.
    """

    package: str
    operator: str
    version: str
    extra: str

    def __str__(self) -> str:
        """As pip takes it."""
        return f"{self.package}{self.operator}{self.version}"

    @property
    def module(self) -> str:
        """What is imported of it."""
        return MODULES.get(self.package.lower(), self.package.lower().replace("-", "_"))

    def met_by(self, version: str) -> bool:
        """Whether an installed version fulfils it; "" is none."""
        found, needed = _numbers(version), _numbers(self.version)
        return bool(version) and (found == needed if self.operator == "==" else found >= needed)


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
    for name, needed in _by_module().items():
        found = _imported_version(name, needed.package) if name in sys.modules else ""
        if found and not needed.met_by(found):
            raise PebalError(
                f"The package {needed.package} is too old: {found} is installed, {needed.version} or newer is needed: "
                f"{pip_line(str(needed))}."
            )


def _explanation(error: ImportError) -> str:
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):
        if re.search("multiarray|_ARRAY_API|NumPy 1", str(error)):
            return (
                f"{name or 'A package'} was compiled for NumPy 1 and does not load with NumPy "
                f"{_imported_version('numpy', 'numpy')}: {pip_line('numpy<2')}."
            )
        return f"{name or 'A package'} does not load: {next(iter(str(error).splitlines()), 'no reason given')}"
    if re.fullmatch(ROS_PACKAGE, name):
        return f"The ROS package {name} is missing: source your installation of ROS 2 (docs/install.md)."
    needed = _by_module().get(name) or Requirement(name, "", "", "")
    asked = f" ({needed.version} or newer is needed)" if needed.version else ""
    return f"The package {needed.package} is missing{asked}: {pip_line(str(needed))}."


def requirements() -> list[Requirement]:
    """As the installed project declares them; none where pip did not install it."""
    try:
        lines = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    matches = (re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*\(?([<>=!~]*)\s*([\d.]*)", line) for line in lines)
    extras = (re.search(r"extra == [\"']([\w-]+)", line) for line in lines)
    return [
        Requirement(match[1], match[2], match[3], extra[1] if extra else "")
        for match, extra in zip(matches, extras)
        if match
    ]


def unmet(extra: str = "") -> list[Requirement]:
    """Requirements of an extra ("": of the project itself) whose package is missing or has another version."""
    return [one for one in requirements() if one.extra == extra and not one.met_by(installed_version(one.package))]


def installed_version(package: str) -> str:
    """ "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def pip_line(*requirements: str) -> str:
    """The line that installs packages; it keeps NumPy 1 where that is what a distribution of ROS was built with."""
    numpy = _imported_version("numpy", "numpy")
    kept = ["numpy<2"] if numpy.startswith("1.") and "numpy<2" not in requirements else []
    where = " in a virtual environment (docs/install.md)" if sys.prefix == sys.base_prefix else ""
    return "pip install " + " ".join(f"'{one}'" for one in [*requirements, *kept]) + where


def _by_module() -> dict[str, Requirement]:
    return {one.module: one for one in requirements() if one.operator == ">="}


def _imported_version(module: str, package: str) -> str:
    """Of what was imported, which may come from another package of the same module; "" where it is not to be had."""
    version = getattr(sys.modules.get(module), "__version__", "")
    return version if isinstance(version, str) and version else installed_version(package)


def _numbers(version: str) -> list[int]:
    """The first three numbers of a version: of 2.4.0rc1+cu130 these are 2, 4 and 0."""
    return [int(number) for number in [*re.findall(r"\d+", version.partition("+")[0]), 0, 0, 0][:3]]
