"""YAML configurations are data: nothing is imported, made or opened because one names it, nothing is misread."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .commands import refused, run
from .watch import watched

TRAP = """
import pathlib
pathlib.Path({marker!r}).touch()
class Thing:
    def __init__(self, *args, **kwargs):
        pathlib.Path({marker!r}).touch()
"""
SPECS = {
    "class_path": "{class_path: trap_module.Thing}",
    "class_path and init_args": "{class_path: trap_module.Thing, init_args: {a: 1}}",
    "escaped": '{"class\\x5fpath": trap_module.Thing}',
    "init_args alone": "{init_args: {a: 1}}",
    "a bare name": "trap_module.Thing",
    "a name of the library": "os.system",
    "within a list": "[{class_path: trap_module.Thing}]",
    "deeper": "{a: {b: [{class_path: trap_module.Thing}]}}",
    "object": "!!python/object/apply:os.system [touch trap]",
    "module": "!!python/module:trap_module",
    "name": "!!python/name:trap_module.Thing",
}
PLACES: dict[str, list[tuple[str, ...]]] = {
    "pretrain": [("network_args",), ("network",), ("encoder_weights",), ("crop",), ("steps",), ("accelerator",)],
    "train": [
        ("model",),
        ("data",),
        ("trainer",),
        ("loss",),
        ("trainable",),
        ("input_size",),
        ("data", "scenes"),
        ("data", "rich_mix"),
        ("data", "validation"),
        ("trainer", "devices"),
        ("loss", "penalty"),
    ],
}
BASE = {
    "pretrain": "data: nowhere\n",
    "train": "model: nonesuch\ndata: {scenes: [], validation: [], outliers: nowhere}\n",
}


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when the module trap_module is imported."""
    marker = tmp_path / "sprung"
    (tmp_path / "trap_module.py").write_text(TRAP.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))
    return marker


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_no_code_is_named_by_a_configuration(
    spec: str, trap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, places in PLACES.items():
        run([command, "--help"])  # imports what every run imports
        capsys.readouterr()
        for keys in places:
            value = SPECS[spec]
            for key in reversed(keys[1:]):
                value = f"{{{key}: {value}}}"
            path = tmp_path / "config.yaml"
            path.write_text(f"{BASE[command]}{keys[0]}: {value}\n")
            with watched() as watch:
                refused([command, f"--config={path}"], capsys)
            assert not trap.exists() and "trap_module" not in {*sys.modules, *watch.imported}
            assert watch.reached == [], (command, keys)


def test_no_code_is_named_on_the_command_line(trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--network_args.class_path=trap_module.Thing", '--network_args={"class_path": "trap_module.Thing"}'):
        refused(["pretrain", "--data=nowhere", option], capsys)
    for option in ("--trainer=trap_module.Thing", "--data.rich_mix=trap_module.Thing", "--loss.help=trap_module.Thing"):
        refused(["train", "--model=nonesuch", option], capsys)
    assert not trap.exists() and "trap_module" not in sys.modules


BAD_YAML = {
    "no YAML": "data: [",
    "a list": "- data",
    "a word": "data",
    "empty": "",
    "binary": "\x00\x01\x02",
    "an unknown key": "data: x\nwings: 2",
    "a mapping for a number": "data: x\nsteps: {a: 1}",
    "wrong type": "data: x\nsteps: many",
    "an alias of nothing": "data: &a x\nout: *b",
    "aliases that multiply": "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghi", "bcdefghij"))
    + "data: *j",
    "an alias of itself": "data: &a [*a]",
    "ten thousand brackets": "data: " + "[" * 10_000,
    "a null byte in a path": 'data: "a\\0b"',
    "a path of 5000 characters": f"data: {'x' * 5000}",
    "no such home": "data: ~nosuchuser/x",
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_a_configuration_that_is_none(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(BAD_YAML[name])
    refused(["pretrain", f"--config={path}"], capsys)


def test_a_file_that_cannot_be_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.yaml").write_bytes("data: Straße".encode("latin-1"))
    for name in (tmp_path, tmp_path / "latin.yaml", tmp_path / "none.yaml", "http://127.0.0.1:9/x.yaml", "x" * 5000):
        with watched() as watch:
            refused(["pretrain", f"--config={name}"], capsys)
        assert watch.reached == []
