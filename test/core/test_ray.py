"""Two workers of Ray, each on a node of its own: the same results, whatever happens to a worker or a source."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("ray", reason="ray is not installed")

from pebal_core.benchmark.results import Results
from pebal_core.commands.main import main
from pebal_core.errors import PebalError
from pebal_core.fleet.cluster import Cluster, LostError, open_workers
from pebal_core.model_file import save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import build_network

from .bags import START, Messages, write_bag
from .benchmarks import figures

pytestmark = pytest.mark.slow

FRAMES = 12


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two nodes with one core each."""
    from ray.cluster_utils import Cluster as Nodes

    size = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args=size)
    nodes.add_node(**size)
    yield nodes.address
    nodes.shutdown()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    info = ModelInfo("espnetv2", {"scale": 0.5}, threshold=-3.0)
    save_model(path, build_network("espnetv2", scale=0.5), info)
    return path


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


def files(out: Path, *apart: str) -> dict[str, bytes]:
    """Every file but those with these suffixes or names."""
    found = (file for file in out.rglob("*") if file.is_file() and not {file.suffix, file.name} & set(apart))
    return {str(file.relative_to(out)): file.read_bytes() for file in found}


def workers_at_work() -> Iterator[int]:
    """Numbers of the workers, among this process's children and theirs, that have a task."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if not (folder / "cmdline").read_bytes().startswith(b"ray::_Worker.do"):
                continue
            ancestor = process = int(folder.name)
            while ancestor > 1 and ancestor != os.getpid():
                ancestor = int(Path(f"/proc/{ancestor}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if ancestor == os.getpid():
            yield process


@contextmanager
def one_is_killed(begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Send SIGKILL to the first worker that is seen at work after something has begun; one there must be."""
    killed: list[int] = []
    over = threading.Event()

    def kill_one() -> None:
        while not killed and not over.wait(0.02):
            for process in islice(workers_at_work(), 1) if begun() else ():
                os.kill(process, signal.SIGKILL)
                killed.append(process)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()
    assert killed, "a worker was at work and was killed"


def test_triage_gives_what_one_process_gives_though_a_worker_is_killed(
    drives: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["triage", str(drives), f"--model={model}", "--out"]
    with one_is_killed():
        code = main([*words, str(tmp_path / "ray"), "--ray"])
    assert code == 1, "one of the recordings is cut short"
    assert f"{drives / 'drive2'} cannot be read" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "here")]) == 1
    ours, theirs = (files(tmp_path / name, ".webm") for name in ("here", "ray"))  # clips hold random identifiers
    assert len([name for name in ours if name.endswith("moments.json")]) == 4
    assert ours == theirs


def test_predict_gives_what_one_process_gives_though_a_worker_is_killed(
    model: Path, tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recording ends early, and what came before is answered."""
    made, rng = Messages(False), np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(FRAMES)]
    entries = [("/image", START + n, made.image(image, "rgb8", START + n)) for n, image in enumerate(images)]
    source = write_bag(tmp_path / "drive", "sqlite3", entries)
    metadata = source / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace(f"message_count: {FRAMES}", "message_count: 20"))

    def words(where: str, *more: str) -> list[str]:
        folder, bag = tmp_path / where, tmp_path / where / "out.mcap"
        return ["predict", str(source), f"--model={model}", f"--out={folder}", f"--out-bag={bag}", *more]

    for where, more in (("ray", ("--ray", address)), ("here", ())):
        with one_is_killed() if more else nullcontext():
            assert main(words(where, *more)) == 1
        assert "states 20 images on /image" in capsys.readouterr().err
    ours, theirs = files(tmp_path / "here"), files(tmp_path / "ray")
    assert len([name for name in ours if name.endswith(".npy")]) == FRAMES and "out.mcap" in ours
    assert ours == theirs


def test_a_benchmark_gives_what_one_process_gives_though_a_worker_is_killed(
    model: Path, tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image cannot be read: it is named, and the others are evaluated."""
    rng, root = np.random.default_rng(0), tmp_path / "pairs"
    for number in range(12):
        labels = np.zeros((128, 160), np.uint8)
        labels[20:60, 30:80] = 1
        image = rng.integers(0, 120, (*labels.shape, 3), np.uint8) + 100 * labels[..., None]
        for folder, pixels in (("images", image), ("labels", labels)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / folder / f"{number:02d}.png"), pixels)
    (root / "images/05.png").write_bytes((root / "images/05.png").read_bytes()[:500])
    words = ["benchmark", f"--model={model}", f"--dataset=mine={root}", "--protocol=smiyc", "--scores", "energy"]
    words += ["sml_raw", f"--sml-images={tmp_path / 'training'}", "--out"]
    (tmp_path / "training").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / "training" / f"{number}.png"), rng.integers(0, 256, (64, 96, 3), np.uint8))
    out = tmp_path / "ray"
    with one_is_killed(lambda: len(list(out.glob("work/mine/images/*.npz"))) > 0):
        assert main([*words, str(out), "--ray", address]) == 1
    assert "images/05.png cannot be read" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "here")]) == 1
    assert figures(out) == figures(tmp_path / "here") and Results.load(out).run.processes == 2
    for folder in ("curves", "frames"):
        ours, theirs = (files(tmp_path / name / folder) for name in ("here", "ray"))
        assert ours and ours == theirs


def test_tasks_that_kill_their_workers_or_break_do_not_stop_the_others(address: str) -> None:
    def load() -> Callable[[str], str]:
        def work(task: str) -> str:
            if task == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            if task == "broken":
                raise ValueError("of nothing")
            if task == "refused":
                raise PebalError("It is refused.")
            return task.upper()

        return work

    expected: dict[str, Any] = {
        "deadly": "deadly was given up, because each of 3 workers died while processing it.",
        "broken": "broken could not be looked at: ValueError('of nothing').",
        "refused": "It is refused.",
    }
    with open_workers(Cluster(address, 1), load, 9) as workers:
        assert workers.count == 2
        tasks = ["a", "deadly", "b", "broken", "c", "refused", "d", "e"]
        done = {task: (result, error) for task, result, error in workers.results(tasks)}
        assert {task: result for task, (result, _) in done.items() if result} == {
            task: task.upper() for task in "abcde"
        }
        assert {task: str(error) for task, (_, error) in done.items() if error} == expected
        assert [isinstance(done[task][1], LostError) for task in expected] == [True, True, False]
        drawn: list[int] = []
        numbers = (drawn.append(n) or str(n) for n in range(20))  # type: ignore[func-returns-value]
        for n, (task, result, error) in enumerate(workers.results(numbers, ahead=4)):
            assert (task, result, error) == (str(n), str(n), None) and len(drawn) <= n + 5


def test_clusters_that_cannot_be_used(address: str) -> None:
    def refuses() -> Callable[[Any], Any]:
        raise PebalError("There is no model here.")

    fewer = pytest.raises(PebalError, match=r"2 cores, but a worker takes 1000. Lower --cores")
    with fewer, open_workers(Cluster(address, 1000), refuses, 1):
        pass
    nobody = pytest.raises(PebalError, match=r"No worker is left: There is no model here\.")
    with nobody, open_workers(Cluster(address, 1), refuses, 2) as workers:
        list(workers.results(["a"]))
    away = pytest.raises(PebalError, match="The Ray cluster 127.0.0.1:1 cannot be reached")
    with away, open_workers(Cluster("127.0.0.1:1", 1), refuses, 1):
        pass
