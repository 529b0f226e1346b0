"""Cameras that are faster than the model, and cameras that die: latency stays, every frame is accounted for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from .harness import Inbox, Rig, TestCamera, frame_counts, picture, start_rig, values, wait_until

INFERENCE = 0.15  # seconds that the engine is made to take, so that its speed does not hang on the machine's

SLOWED_ENGINE = f"""
import time
from pebal_core.engines.torch import TorchEngine
from pebal_ros.anomaly_node import main

run = TorchEngine.__call__

def run_slowed(self, images):
    print("batch of", len(images), flush=True)
    result = run(self, images)
    time.sleep({INFERENCE})
    return result

TorchEngine.__call__ = run_slowed
main()
"""


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A node with two cameras."""
    log = tmp_path_factory.mktemp("pair") / "log"
    parameters = {"model": tiny_model, "cameras": "[front, left]"}
    with start_rig("/load", log, parameters, script=SLOWED_ENGINE) as rig:
        yield rig


@pytest.fixture
def front(pair: Rig) -> Iterator[TestCamera]:
    camera = pair.client.camera("front/image")
    camera.wait_for_subscriber()
    yield camera
    camera.close()


@pytest.fixture
def front_labels(pair: Rig) -> Iterator[Inbox]:
    inbox = pair.client.listen("front/labels")
    yield inbox
    inbox.close()


def latency_of_single_frames(camera: TestCamera, labels: Inbox) -> float:
    """Median seconds from stamp to answer of a camera that waits for each answer."""
    labels.wait_for(camera.send(picture()))  # warm-up
    first = len(labels.messages)
    for seed in range(8):
        labels.wait_for(camera.send(picture(seed=seed)))
    return float(np.median(labels.latencies[first:]))


def send_at(camera: TestCamera, hertz: float, seconds: float) -> int:
    """Publish at a rate that does not hang on how long publishing takes; returns the number of frames."""
    started, frame = time.monotonic(), picture()
    count = round(seconds * hertz)
    for number in range(count):
        time.sleep(max(0.0, started + number / hertz - time.monotonic()))
        camera.send(frame)
    return count


@pytest.mark.parametrize("factor", [2, 5, 20])
def test_overload(pair: Rig, front: TestCamera, front_labels: Inbox, factor: int) -> None:
    """The other camera is dead all the while."""
    idle = latency_of_single_frames(front, front_labels)
    before, first = pair.client.counts("/load/front/image"), len(front_labels.messages)
    sent = send_at(front, factor / idle, seconds=4.0)
    front_labels.wait_for(front.send(picture()))  # the newest frame is never the one that is dropped
    latencies = front_labels.latencies[first:]
    after = pair.client.counts("/load/front/image")
    change = {name: after[name] - before[name] for name in after}
    assert change["answered"] + change["dropped"] + change["lost before the node"] == sent + 1, change
    assert change["received"] == change["answered"] + change["dropped"], change
    assert change["dropped"] > 0.3 * (1 - 1 / factor) * sent, f"no overload: {change}"
    assert np.median(latencies) < idle + INFERENCE, "a frame waits for one inference at most"
    half = len(latencies) // 2
    assert np.median(latencies[half:]) < np.median(latencies[:half]) + INFERENCE, "no queue grows"
    dead = pair.client.status("/load/left/image", lambda s: s.level == DiagnosticStatus.ERROR)
    assert "remap 'left/image' to its topic" in dead.message and frame_counts(dead)["received"] == 0


def test_frames_of_several_cameras_are_one_batch(pair: Rig, front: TestCamera, front_labels: Inbox) -> None:
    left, left_labels = pair.client.camera("left/image"), pair.client.listen("left/labels")
    left.wait_for_subscriber()
    front_labels.wait_for(front.send(picture()))  # warm-up, so that what follows is one call each

    def batches() -> list[str]:
        return [line for line in pair.process.output().splitlines() if line.startswith("batch of")]

    def one_batch() -> bool:
        """On a starved machine, one of the two frames may arrive only when the engine is done with the first."""
        before = len(batches())
        front.send(picture())
        wait_until(lambda: len(batches()) == before + 1)
        stamps = front.send(picture()), left.send(picture())  # both while the engine is busy
        front_labels.wait_for(stamps[0])
        left_labels.wait_for(stamps[1])
        return batches()[before:] == ["batch of 1", "batch of 2"]

    assert any(one_batch() for _ in range(10))
    left.close()
    left_labels.close()


def test_a_camera_that_dies_delays_no_other(pair: Rig, front: TestCamera, front_labels: Inbox) -> None:
    alone = latency_of_single_frames(front, front_labels)
    left, left_labels = pair.client.camera("left/image"), pair.client.listen("left/labels")
    left.wait_for_subscriber()
    for _ in range(10):
        stamps = front.send(picture()), left.send(picture())
        front_labels.wait_for(stamps[0])
        left_labels.wait_for(stamps[1])
    both = {part: pair.client.status(f"/load/{part}/image", lambda s: True) for part in ("front", "left")}
    for status in both.values():  # each camera's rates and counts are its own
        assert float(values(status)["rate in (Hz)"]) > 0 and float(values(status)["rate out (Hz)"]) > 0
    assert frame_counts(both["front"])["answered"] > frame_counts(both["left"])["answered"] >= 10
    left.close()
    assert latency_of_single_frames(front, front_labels) < alone + INFERENCE / 2
    left_labels.close()
