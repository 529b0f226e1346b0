"""A folder of results belongs to one run at a time, whichever command it is."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import cv2
import numpy as np
import pytest

from pebal_core.commands.main import main
from pebal_core.errors import PebalError
from pebal_core.locks import LOCK, held


def test_one_run_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with held(folder):
        (folder / "a").touch()
        refusal = pytest.raises(PebalError, match=r"Another run is writing into .*results. Wait until it ends, or")
        with refusal, held(folder):
            pass
    with held(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_what_a_killed_run_left_binds_nobody_and_an_empty_folder_goes(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    with held(tmp_path):
        pass
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())
    with held(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path):
        pass
    assert f"{tmp_path} cannot be locked (No locks available). Do not start a second run" in capsys.readouterr().err


@pytest.mark.slow
def test_every_command_that_fills_a_folder_keeps_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "0.png"), np.zeros((64, 96), np.uint8))
    out = tmp_path / "out"
    with held(out):
        for words in (
            ["predict", tmp_path / "images"],
            ["triage", tmp_path / "images"],
            ["benchmark", f"--dataset=a={tmp_path}"],
        ):
            assert main([*map(str, words), f"--out={out}"]) == 1
            assert f"pebal {words[0]}: Another run is writing into {out}" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == [LOCK]
