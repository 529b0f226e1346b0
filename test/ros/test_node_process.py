"""How the node begins and ends as a process."""

from __future__ import annotations

import time
from array import array
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition, TransitionEvent
from lifecycle_msgs.srv import ChangeState
from sensor_msgs.msg import CompressedImage

from pebal_core.model_file import save_model
from pebal_core.model_folders import load_folder
from pebal_ros.messages import to_compressed

from ..core.model_folders import write_folder
from .harness import PROMPT, STARTUP, Client, NodeProcess, frame_counts, picture, stamp_of, start_rig, wait_until


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if "[FATAL]" in line or "Error" in line or "Traceback" in line]


def test_a_model_that_is_not_there_ends_the_process_with_one_sentence(tmp_path: Path) -> None:
    with NodeProcess("anomaly_node", tmp_path / "log", {"model": "nowhere.safetensors"}) as process:
        assert process.exit_code(STARTUP) == 1
    (line,) = errors(process.output())
    assert "There is no model 'nowhere.safetensors'; use the path" in line


def test_a_truncated_model_file_ends_the_process_with_one_sentence(tmp_path: Path, tiny_model: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(tiny_model.read_bytes()[:100_000])
    with NodeProcess("anomaly_node", tmp_path / "log", {"model": broken}) as process:
        assert process.exit_code(STARTUP) == 1
    (line,) = errors(process.output())
    assert f"{broken} is not a complete safetensors file" in line


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"overlay_alpha": 3.0}, "The parameter overlay_alpha must lie between 0 and 1."),
        ({"max_rate": 10}, "The parameter max_rate takes a number (a whole number is written 10.0)."),
        ({"transport": "theora"}, "The parameter transport takes raw, compressed, not 'theora'."),
        ({"cameras": "[front, front]"}, "The parameter cameras lists an item twice: front, front."),
        ({"cameras": "[]"}, "The parameter cameras"),
        (
            {"treshold": -3.0, "overlay_alpha": 3.0},
            "The parameter 'treshold' is ignored, because this node has no such parameter; did you mean 'threshold'?",
        ),
    ],
)
def test_an_unacceptable_parameter_ends_the_process(
    tmp_path: Path, parameters: dict[str, object], sentence: str
) -> None:
    with NodeProcess("anomaly_node", tmp_path / "log", parameters) as process:
        assert process.exit_code(STARTUP) == 1
    assert sentence in process.output() and "Traceback" not in process.output()


def test_started_after_the_camera_and_interrupted_twice(tmp_path: Path, tiny_model: Path) -> None:
    client = Client("/late")
    camera = client.camera(reliability="best_effort")
    remap = ("-r", "__ns:=/late")
    with NodeProcess("anomaly_node", tmp_path / "log", {"model": tiny_model}, *remap) as process:
        camera.wait_for_subscriber()
        labels = client.listen("labels")
        camera.send_until(lambda: labels.messages)
        started = time.monotonic()
        process.interrupt()
        time.sleep(0.05)
        process.interrupt()
        assert process.exit_code() == 0
        assert time.monotonic() - started < PROMPT
    client.close()
    assert not errors(process.output()), "a clean end, without a word of an error"


SLOW_LOADING = """
import time
from pebal_core.detector import AnomalyDetector
from pebal_ros.anomaly_node import main

AnomalyDetector.load = lambda *_, **__: time.sleep(60)
main()
"""


@pytest.mark.parametrize("autostart", ["true", "false"])
def test_interrupted_while_it_loads(tmp_path: Path, autostart: str) -> None:
    """By itself in a thread, or in the callback of an external manager."""
    with start_rig("/loading", tmp_path / "log", {"autostart": autostart}, script=SLOW_LOADING) as rig:
        configure = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        if autostart == "true":
            rig.process.wait_for_output("Loading the model", STARTUP)
            response = rig.client.call(ChangeState, "anomaly_node/change_state", configure)
            assert not response.success, "nobody may interfere"
            rig.client.status("model", lambda s: "Set autostart to false" in s.message)
        else:
            manager: Any = rig.client.node.create_client(ChangeState, "anomaly_node/change_state")
            wait_until(manager.service_is_ready, STARTUP)
            manager.call_async(configure)
        rig.process.wait_for_output("Loading the model", STARTUP)
        started = time.monotonic()
        rig.process.interrupt()
        assert rig.process.exit_code(STARTUP) == 0
        assert time.monotonic() - started < PROMPT
    assert not errors(rig.process.output())


def test_two_compressed_cameras_and_one_of_them_dead(tmp_path: Path, tiny_model: Path) -> None:
    parameters = {"model": tiny_model, "cameras": "[front, left]", "transport": "compressed"}
    with start_rig("/pair", tmp_path / "log", parameters) as rig:
        client = rig.client
        cameras = {
            name: client.camera(f"{name}/image/compressed", message_type=CompressedImage) for name in ("front", "left")
        }
        inboxes = {name: client.listen(f"{name}/labels") for name in cameras}
        for camera in cameras.values():
            camera.wait_for_subscriber()

        def send(name: str, height: int = 96) -> tuple[int, int]:
            header = client.header(frame_id=name)
            message = to_compressed(picture(height), "jpeg", header)
            return cameras[name].send_message(message)

        for height in (96, 64):  # alike in size and not
            stamps = {name: send(name, 96 if name == "front" else height) for name in cameras}
            for name, stamp in stamps.items():
                answer = inboxes[name].wait_for(stamp)
                assert answer.header.frame_id == name and answer.height == (96 if name == "front" else height)
        for _ in range(5):  # left is silent from here on
            inboxes["front"].wait_for(send("front"))
        corrupt = to_compressed(picture(), "jpeg", client.header())
        corrupt.data = corrupt.data[: len(corrupt.data) // 2]
        cameras["front"].send_message(corrupt)
        part = "/pair/front/image/compressed"
        status = client.status(part, lambda s: "truncated or corrupt" in s.message)
        assert frame_counts(status)["bad"] == 1 and frame_counts(status)["answered"] == 7
        inboxes["front"].wait_for(send("front"))
        huge = to_compressed(picture(), "jpeg", client.header())
        size = bytes(huge.data).index(b"\xff\xc0") + 5  # of the frame, in its header: height and width
        huge.data[size : size + 4] = array("B", [64, 0] * 2)  # 16384×16384: a gigabyte
        cameras["front"].send_message(huge)
        client.status(part, lambda s: frame_counts(s)["bad"] == 2 and "truncated or corrupt" in s.message)
        inboxes["front"].wait_for(send("front"))
        left = client.status("/pair/left/image/compressed", lambda s: s.level == DiagnosticStatus.ERROR)
        assert frame_counts(left)["answered"] == 2 and "No frame" in left.message
        assert stamp_of(corrupt) not in inboxes["front"].stamps()


def test_a_network_of_transformers_answers_with_its_own_classes(tmp_path: Path) -> None:
    network, info = load_folder(str(write_folder(tmp_path / "published", "segformer")[0]))
    save_model(tmp_path / "model.safetensors", network, info)
    with start_rig("/converted", tmp_path / "log", {"model": tmp_path / "model.safetensors"}) as rig:
        camera = rig.client.camera()
        camera.wait_for_subscriber()
        labels, energy = rig.client.listen("labels"), rig.client.listen("energy")
        stamp = camera.send(picture())
        assert max(labels.wait_for(stamp).data) < len(info.class_names)
        assert energy.wait_for(stamp).encoding == "32FC1"


def test_a_topic_of_another_type_is_named(tmp_path: Path, tiny_model: Path) -> None:
    remap = ("-r", "__ns:=/typed", "-r", "image:=/typed/image/compressed")
    client = Client("/typed")
    camera = client.camera("image/compressed", message_type=CompressedImage)
    with NodeProcess("anomaly_node", tmp_path / "log", {"model": tiny_model}, *remap):
        status = client.status("/typed/image/compressed", lambda s: s.level == DiagnosticStatus.ERROR, STARTUP)
        assert "carries sensor_msgs/msg/CompressedImage, not sensor_msgs/msg/Image" in status.message
    camera.close()
    client.close()


FAILING_ENGINE = """
import torch
from pebal_core.engines.torch import TorchEngine
from pebal_ros.anomaly_node import main

run, calls = TorchEngine.__call__, []

def run_or_fail(self, images):
    calls.append(1)
    if len(calls) == 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\\nMore advice.")
    if len(calls) == 4 or len(calls) > 5:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return run(self, images)

TorchEngine.__call__ = run_or_fail
main()
"""


def test_an_engine_that_fails_is_retried_and_then_given_up(tmp_path: Path, tiny_model: Path) -> None:
    illegal = "RuntimeError: CUDA error: an illegal memory access was encountered"
    with start_rig("/failing", tmp_path / "log", {"model": tiny_model}, script=FAILING_ENGINE) as rig:
        client, states = rig.client, []
        camera = client.camera()
        camera.wait_for_subscriber()
        client.node.create_subscription(
            TransitionEvent, "anomaly_node/transition_event", lambda event: states.append(event.goal_state.label), 10
        )
        labels = client.listen("labels")
        labels.wait_for(camera.send(picture()))  # calls 1 (warm-up) and 2
        camera.send(picture())  # call 3
        client.status("/failing/image", lambda s: frame_counts(s)["failed"] == 1)
        status = client.status("model", lambda s: s.level == DiagnosticStatus.ERROR)
        assert status.message == (
            "The engine failed on 160×96 rgb8: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
        )
        camera.send(picture())  # call 4
        client.status("/failing/image", lambda s: frame_counts(s)["failed"] == 2)
        client.status("model", lambda s: s.message == f"The engine failed on 160×96 rgb8: {illegal}.")
        labels.wait_for(camera.send(picture()))  # call 5: it goes on as if nothing had been
        client.status("model", lambda s: s.level == DiagnosticStatus.OK)
        camera.send_until(lambda: not rig.process.running)
        assert rig.process.exit_code() == 1
        reason = f"The engine failed on 160×96 rgb8: {illegal}, 5 times in a row; the node ends."
        assert rig.process.output().count(reason) == 1
        wait_until(lambda: client.last("model").message == reason)
        wait_until(lambda: states == ["deactivating", "errorprocessing", "finalized"])


HALF_FAILING_ENGINE = """
from pebal_core.engines.torch import TorchEngine
from pebal_ros.anomaly_node import main

run = TorchEngine.__call__

def run_or_fail(self, images):
    if images.shape[1] == 64:
        raise RuntimeError("out of memory")
    return run(self, images)

TorchEngine.__call__ = run_or_fail
main()
"""


def test_an_engine_that_fails_on_one_camera_alone_is_no_less_reported(tmp_path: Path, tiny_model: Path) -> None:
    parameters = {"model": tiny_model, "cameras": "[front, left]"}
    with start_rig("/half", tmp_path / "log", parameters, script=HALF_FAILING_ENGINE) as rig:
        front, left = (rig.client.camera(f"{name}/image") for name in ("front", "left"))
        labels = [rig.client.listen(f"{name}/labels") for name in ("front", "left")]
        for camera in (front, left):
            camera.wait_for_subscriber()
        left.send(picture(64, 96))
        rig.client.status("model", lambda s: "failed on 96×64" in s.message)
        labels[0].wait_for(front.send(picture()))
        status = rig.client.status("model", lambda _: True)
        assert status.level == DiagnosticStatus.ERROR, "the other camera's success does not hide it"
        labels[1].wait_for(left.send(picture()))  # of another size
        rig.client.status("model", lambda s: s.level == DiagnosticStatus.OK)

        def ended() -> bool:
            front.send(picture())
            left.send(picture(64, 96))
            time.sleep(0.2)
            return not rig.process.running

        wait_until(ended)
        assert rig.process.exit_code() == 1
    assert "96×64 rgb8: RuntimeError: out of memory, 5 times in a row; the node ends." in rig.process.output()


DYING_THREAD = """
import threading
from rclpy.node import Node
from pebal_ros.process import main

class Dying(Node):
    def __init__(self, finish):
        super().__init__("dying")
    def start(self, executor):
        threading.Thread(target=lambda: 1 / 0, name="division").start()
    def stop(self):
        pass

main(Dying)
"""


def test_a_thread_that_dies_ends_the_process(tmp_path: Path) -> None:
    with NodeProcess("", tmp_path / "log", {}, script=DYING_THREAD) as process:
        assert process.exit_code(STARTUP) == 1
    assert "The thread 'division' failed: ZeroDivisionError: division by zero." in process.output()
