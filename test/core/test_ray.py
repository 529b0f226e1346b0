"""Triage on a local Ray cluster of two workers: the same results, whatever happens to a worker or a source."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("ray", reason="ray is not installed")

from pebal_core.commands.main import main
from pebal_core.errors import PebalError
from pebal_core.fleet.cluster import Cluster
from pebal_core.fleet.scan import Job, ModelChoice, Request
from pebal_core.outputs import ObjectOptions

from .bags import START, Messages, write_bag

pytestmark = pytest.mark.slow

FRAMES = 12


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five recordings, of which the third is cut short."""
    folder, made = tmp_path_factory.mktemp("drives"), Messages(False)
    for number in range(5):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        image = cv2.resize(coarse, (256, 128), interpolation=cv2.INTER_CUBIC)
        entries = [("/image", START + n, made.image(np.roll(image, n, 1), "rgb8", START + n)) for n in range(FRAMES)]
        path = write_bag(folder / f"drive{number}", "mcap", entries)
        if number == 2:
            file = next(path.glob("*.mcap"))
            file.write_bytes(file.read_bytes()[:-2000])
    return folder


def results(out: Path) -> dict[str, bytes]:
    """Every file but the clips, whose container holds random identifiers."""
    files = (file for file in out.rglob("*") if file.is_file() and file.suffix != ".webm")
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def descendants(of: int) -> Iterator[tuple[int, str]]:
    """Numbers and command lines of this process's children and theirs."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
        except OSError:
            continue
    for process in parents:
        ancestor = process
        while ancestor in parents and ancestor != of:
            ancestor = parents[ancestor]
        if ancestor == of and process != of:
            try:
                yield process, (Path("/proc") / str(process) / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue


def test_two_workers_give_what_one_process_gives_though_one_is_killed(
    drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    killed: list[int] = []

    def kill_one() -> None:
        end = time.monotonic() + 120
        while not killed and time.monotonic() < end:
            for process, command in descendants(os.getpid()):
                if command.startswith("ray::_Worker.scan"):
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                    break
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    code = main(["triage", str(drives), "--out", str(tmp_path / "ray"), "--ray"])
    killer.join()
    assert killed, "a worker was at work and was killed"
    assert code == 1, "one of the recordings is cut short"
    assert f"{drives / 'drive2'} cannot be read" in capsys.readouterr().err
    assert main(["triage", str(drives), "--out", str(tmp_path / "here")]) == 1
    ours, theirs = results(tmp_path / "here"), results(tmp_path / "ray")
    assert sorted(ours) == sorted(theirs) and len([name for name in ours if name.endswith("moments.json")]) == 4
    assert ours == theirs


def test_clusters_that_cannot_be_used() -> None:
    jobs = [Job("/no/such.mcap", Path("/no/such"))]
    request, choice = Request(1, "", 0, 1, ObjectOptions()), ModelChoice("starter")
    with pytest.raises(PebalError, match=r"cores and a worker takes 1000: give fewer --cores"):
        list(Cluster("local", 1000).scan(jobs, request, choice))
