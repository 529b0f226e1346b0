"""Replaces the traceback for a package that is missing, too old, or built for another NumPy by one sentence.

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
"""Modules whose name differs from the name of their package."""
ROS_PACKAGE = r"rclpy|\w+_(msgs|srvs|interfaces)"


@dataclass(frozen=True)
class Requirement:
    """A package that the project or one of its extras requires.

    Args:
        package: name of the package.
        operator: ``>=``, ``==``, or "" if any version will do.
        version: the required version.
        extra: name of the extra; "" for a requirement of the project itself.

    Examples:
        >>> numpy = Requirement("numpy", ">=", "1.24", "")
        >>> str(numpy), numpy.met_by("2.1.0"), numpy.met_by("1.9")
        ('numpy>=1.24', True, False)
    """

    package: str
    operator: str
    version: str
    extra: str

    def __str__(self) -> str:
        """The requirement in pip's notation."""
        return f"{self.package}{self.operator}{self.version}"

    @property
    def module(self) -> str:
        """Name of the module that the package provides."""
        return MODULES.get(self.package.lower(), self.package.lower().replace("-", "_"))

    def met_by(self, version: str) -> bool:
        """Whether an installed version satisfies the requirement; "" stands for no installed version."""
        found, needed = _numbers(version), _numbers(self.version)
        return bool(version) and (found == needed if self.operator == "==" else found >= needed)


def load(module: str) -> ModuleType:
    """Import the module of a program; if a package prevents it, exit with one sentence and status 1.

    Examples:
        >>> load("json").loads("[1, 2]")
        [1, 2]
    """
    try:
        with explained_imports():
            return importlib.import_module(module)
    except PebalError as error:
        sys.exit(f"{module.rpartition('.')[2]}: {error}")


@contextmanager
def explained_imports() -> Iterator[None]:
    """Convert failures of the packages that are imported inside the block into one sentence.

    Only imported packages are checked. An old PyTorch, for example, does no harm if ONNX Runtime runs the model.

    Raises:
        PebalError: a package is missing or too old, or does not load.

    Examples:
        >>> with explained_imports():  # doctest: +ELLIPSIS
        ...     import no_such_package
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: The package no_such_package is missing. Run: pip install 'no_such_package'.
    """
    try:
        yield
    except (ImportError, AttributeError) as error:
        _check_versions()  # an old package can fail in many ways
        if isinstance(error, ImportError):
            raise PebalError(_explanation(error)) from error
        raise
    _check_versions()


def _check_versions() -> None:
    for name, needed in _by_module().items():
        found = _imported_version(name, needed.package) if name in sys.modules else ""
        if found and not needed.met_by(found):
            raise PebalError(
                f"The package {needed.package} is too old, because {found} is installed and {needed.version} or newer "
                f"is needed. Run: {pip_line(str(needed))}."
            )


def _explanation(error: ImportError) -> str:
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):
        if re.search("multiarray|_ARRAY_API|NumPy 1", str(error)):
            return (
                f"{name or 'A package'} was compiled for NumPy 1 and does not load with NumPy "
                f"{_imported_version('numpy', 'numpy')}. Run: {pip_line('numpy<2')}."
            )
        return f"{name or 'A package'} does not load: {next(iter(str(error).splitlines()), 'no reason given')}"
    if re.fullmatch(ROS_PACKAGE, name):
        return f"The ROS package {name} is missing. Source your installation of ROS 2 (docs/install.md)."
    needed = _by_module().get(name) or Requirement(name, "", "", "")
    asked = f" ({needed.version} or newer is needed)" if needed.version else ""
    return f"The package {needed.package} is missing{asked}. Run: {pip_line(str(needed))}."


def requirements() -> list[Requirement]:
    """The requirements that the installed project declares; empty if pip did not install it.

    Examples:
        >>> [str(one) for one in requirements() if one.extra == "onnx"]  # doctest: +SKIP
        ['onnx>=1.18', 'onnxruntime>=1.20', 'onnxscript>=0.5']
    """
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
    """Requirements of an extra, or of the project itself (""), that the installed packages do not satisfy.

    Examples:
        >>> unmet("an extra that is not declared")
        []
    """
    return [one for one in requirements() if one.extra == extra and not one.met_by(installed_version(one.package))]


def installed_version(package: str) -> str:
    """Installed version of a package; "" if it is not installed.

    Examples:
        >>> import numpy
        >>> installed_version("numpy") == numpy.__version__, installed_version("no-such-package")
        (True, '')
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def pip_line(*requirements: str) -> str:
    """The command that installs packages; it keeps NumPy 1 if that is installed, as some ROS distributions need it.

    Examples:
        >>> print(pip_line("torch>=2.4", "timm"))  # doctest: +ELLIPSIS
        pip install 'torch>=2.4' 'timm'...
    """
    numpy = _imported_version("numpy", "numpy")
    kept = ["numpy<2"] if numpy.startswith("1.") and "numpy<2" not in requirements else []
    where = " in a virtual environment (docs/install.md)" if sys.prefix == sys.base_prefix else ""
    return "pip install " + " ".join(f"'{one}'" for one in [*requirements, *kept]) + where


def _by_module() -> dict[str, Requirement]:
    return {one.module: one for one in requirements() if one.operator == ">="}


def _imported_version(module: str, package: str) -> str:
    """Version of an imported module, which another package may provide, or else of the package; "" if unknown."""
    version = getattr(sys.modules.get(module), "__version__", "")
    return version if isinstance(version, str) and version else installed_version(package)


def _numbers(version: str) -> list[int]:
    """The first three numbers of a version, such as 2, 4 and 0 for 2.4.0rc1+cu130."""
    return [int(number) for number in [*re.findall(r"\d+", version.partition("+")[0]), 0, 0, 0][:3]]
