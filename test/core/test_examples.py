"""Every public function of the core has an example, and the examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import pebal_core

MODULES = [
    "pebal_core",
    *(
        module.name
        for module in pkgutil.walk_packages(pebal_core.__path__, "pebal_core.")
        if "__main__" not in module.name
    ),
    "pebal_ros.mailbox",
    "pebal_ros.stream_statistics",
]
COMMAND = {"add_arguments", "run"}
"""The functions of every module in `pebal_core.commands`, which the page of the command explains."""


@pytest.mark.parametrize("name", MODULES)
def test_every_example(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    exempt = COMMAND if name.startswith("pebal_core.commands.") else set()
    without = [
        function
        for function, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == name and function[0] != "_" and ">>>" not in (value.__doc__ or "")
    ]
    assert set(without) <= exempt


def test_every_public_name_is_there_and_has_an_example() -> None:
    public = {name: getattr(pebal_core, name, None) for name in pebal_core.__all__}
    assert [name for name, value in public.items() if value is None] == []
    without = [name for name, value in public.items() if callable(value) and ">>>" not in (value.__doc__ or "")]
    assert set(without) <= {"PebalError"}
