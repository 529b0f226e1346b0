"""The node beside a naïve subscriber: what each costs beyond the network, and what becomes of latency at overload.

    python benchmarks/node.py                                # 40 frames of 1920×1080 for each
    python benchmarks/node.py --frames 100 --size 1280x720

Both are processes of their own over the middleware in use, with the same model; labels and energy are subscribed to.
First they answer single frames in turn, so that whatever else the machine does meets both. Then each gets frames at
twice the rate that the node can serve. The network sees a smaller picture, so that it does not drown what is measured.
The naïve subscriber does what tutorials show: default queue, conversion as
cv_bridge does it, inference in the callback, every output published.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from ros_rig import STARTUP, Listener, Process, milliseconds, picture, ros_node, use_image_profile
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from pebal_core import render
from pebal_core.detector import AnomalyDetector
from pebal_ros.messages import to_message

OURS, NAIVE = "/benchmark/node", "/benchmark/naive"
WARM_UP = 3  # frames for each
ENGINE_STAGES = ("preprocess", "inference", "postprocess")
STAGES = ("waiting", "decode", *ENGINE_STAGES, "render", "publish", "overhead", "in the node", "latency")


class NaiveSubscriber(Node):
    """Prints what each callback took beyond conversion to RGB and the engine, in milliseconds."""

    def __init__(self, model: str, input_size: tuple[int, int]) -> None:
        super().__init__("naive", namespace=NAIVE)
        self._detector = AnomalyDetector.load(model, input_size=input_size)
        self._outputs = {
            name: self.create_publisher(Image, name, 10)
            for name in ("labels", "energy", "score", "mask", "overlay", "label_colors")
        }
        self.create_subscription(Image, "image", self._answer, 10)

    def _answer(self, message: Image) -> None:
        started = time.perf_counter()
        image = np.ndarray((message.height, message.width, 3), np.uint8, buffer=message.data)
        image = np.ascontiguousarray(image)
        decoded = time.perf_counter()
        result = self._detector(image)
        info = self._detector.info
        score = render.score_map(result.energy, *info.energy_range)
        self._publish("labels", result.labels, "mono8", message.header)
        self._publish("energy", result.energy, "32FC1", message.header)
        self._publish("score", score, "mono8", message.header)
        self._publish("mask", np.uint8(255) * (result.energy >= (info.threshold or 0.0)), "mono8", message.header)
        self._publish("overlay", render.overlay(image, score, 0.8), "rgb8", message.header)
        self._publish("label_colors", render.label_colors(result.labels, info.palette), "rgb8", message.header)
        overhead = time.perf_counter() - decoded - sum(self._detector.timings.values())
        print(f"{1e3 * overhead:.3f} {1e3 * (decoded - started):.3f}", flush=True)

    def _publish(self, name: str, pixels: np.ndarray, encoding: str, header: Header) -> None:
        message = Image(header=header, height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
        message.data.frombytes(pixels.tobytes())
        message.step = len(message.data) // message.height
        self._outputs[name].publish(message)


class Bench:
    """The cameras of both, and what they measured."""

    def __init__(self, listener: Listener, processes: list[Process], height: int, width: int) -> None:
        self._listener, self._processes = listener, processes
        self._pictures = [picture(height, width, seed) for seed in range(4)]
        self._cameras: dict[str, Any] = {
            namespace: listener.create_publisher(Image, f"{namespace}/image", 10) for namespace in (OURS, NAIVE)
        }
        self._sent = 0

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            for process in self._processes:
                process.check()
            return all(camera.get_subscription_count() for camera in self._cameras.values())

        self._listener.wait_for(ready, STARTUP, "both nodes subscribe to their cameras")

    def send(self, namespace: str) -> int:
        """Publish the next picture; returns its stamp."""
        stamp = self._listener.get_clock().now()
        pixels = self._pictures[self._sent % len(self._pictures)]
        self._sent += 1
        self._cameras[namespace].publish(to_message(pixels, "rgb8", Header(stamp=stamp.to_msg(), frame_id="camera")))
        return stamp.nanoseconds

    def answer(self, namespace: str) -> float:
        """Send one frame and wait for its answer; returns the latency in seconds."""
        stamp = self.send(namespace)
        arrivals = self._listener.arrivals[namespace]
        self._listener.wait_for(lambda: stamp in arrivals, 60, f"answer from {namespace}")
        return arrivals[stamp]

    def overload(self, namespace: str, period: float, frames: int) -> list[float]:
        """Send at a fixed pace, wait for the last answer; returns the latencies in the order of the stamps."""
        arrivals, stamps = self._listener.arrivals[namespace], []
        due = time.monotonic()
        for _ in range(frames):
            stamps.append(self.send(namespace))
            due += period
            self._listener.spin(max(due - time.monotonic(), 0))
        while True:  # until nothing has come for as long as four frames take
            before = len(arrivals)
            self._listener.spin(8 * period)
            if len(arrivals) == before:
                return [arrivals[stamp] for stamp in stamps if stamp in arrivals]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=40, help="frames per phase and process")
    parser.add_argument("--size", default="1920x1080", help="WIDTHxHEIGHT of the camera")
    parser.add_argument("--network-size", default="480x272", help="WIDTHxHEIGHT that the network sees of it")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--naive", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    use_image_profile()
    rclpy.init(args=[])
    width, height = (int(side) for side in arguments.size.lower().split("x"))
    input_width, input_height = (int(side) for side in arguments.network_size.lower().split("x"))
    if arguments.naive:
        naive(NaiveSubscriber(arguments.model, (input_height, input_width)))
        return
    listener = Listener([OURS, NAIVE])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = {"model": arguments.model, "input_height": input_height, "input_width": input_width}
        ours = ros_node("anomaly_node", OURS, parameters)
        theirs = [str(Path(__file__).resolve()), "--naive", "--model", arguments.model]
        theirs += ["--network-size", arguments.network_size]
        with Process(ours, folder / "node") as first, Process(theirs, folder / "naive") as second:
            bench = Bench(listener, [first, second], height, width)
            bench.wait_until_ready()
            measure(bench, listener, arguments.frames, arguments.size, second.log)
    rclpy.try_shutdown()


def naive(subscriber: NaiveSubscriber) -> None:
    try:
        rclpy.spin(subscriber)
    except KeyboardInterrupt:
        sys.exit(0)


def naive_costs(log: Path) -> list[tuple[float, float]]:
    """(overhead, decoding) in milliseconds of every callback of the naïve subscriber that has ended."""
    lines = [line.split() for line in log.read_text().splitlines() if line[:1].isdigit()]
    return [(float(line[0]), float(line[1])) for line in lines if len(line) == 2]


def naive_has_answered(log: Path, frames: int) -> bool:
    return len(naive_costs(log)) >= frames


def measure(bench: Bench, listener: Listener, frames: int, size: str, naive_log: Path) -> None:
    idle: dict[str, list[float]] = {OURS: [], NAIVE: []}
    for number in range(frames + WARM_UP):
        for namespace, latencies in idle.items():
            latencies.append(bench.answer(namespace))
        # What the naïve subscriber still does after its answer must not slow down the other's next frame.
        listener.wait_for(partial(naive_has_answered, naive_log, number + 1), 60, "the end of the naïve callback")
    idle = {namespace: latencies[WARM_UP:] for namespace, latencies in idle.items()}
    answered = str(frames + WARM_UP)
    listener.wait_for(lambda: listener.camera.get("frames answered") == answered, 10, "diagnostics of the last frame")
    stages = {stage: (listener.camera[f"{stage} p50 (ms)"], listener.camera[f"{stage} p95 (ms)"]) for stage in STAGES}
    print(f"### Stages of anomaly_node, {frames} single frames of {size}\n\n| stage | p50 ms | p95 ms |\n|---|---|---|")
    for stage, percentiles in stages.items():
        print(f"| {stage} | {' | '.join(percentiles)} |")
    own = float(stages["waiting"][0]) + float(stages["overhead"][0])
    naive_overhead = statistics.median(cost for cost, _ in naive_costs(naive_log)[WARM_UP:])

    service = float(np.median(idle[OURS]))
    print("\n### Beside the naïve subscriber, medians in ms\n")
    print("| | anomaly_node | naïve subscriber |\n|---|---|---|")
    print(f"| beyond decode and engine | {own:.1f} | {naive_overhead:.1f} |")
    row = [f"{milliseconds(idle[namespace], 50):.0f}" for namespace in (OURS, NAIVE)]
    print(f"| latency of a single frame, to the subscriber | {' | '.join(row)} |")
    ratio = float(np.median(np.divide(idle[NAIVE], idle[OURS])))
    print(f"\nFrame by frame, the naïve subscriber's latency is {ratio:.3f} times the node's (median).", flush=True)

    period = service / 2
    print(f"\n### At twice the rate it can serve ({1 / period:.1f} Hz, {frames} frames)\n")
    print("| | answered | p50 ms | p95 ms | last frame ms |\n|---|---|---|---|---|")
    for namespace, title in ((OURS, "anomaly_node"), (NAIVE, "naïve subscriber")):
        latencies = bench.overload(namespace, period, frames)
        p50, p95 = (milliseconds(latencies, percentile) for percentile in (50, 95))
        print(f"| {title} | {len(latencies)} | {p50:.0f} | {p95:.0f} | {1e3 * latencies[-1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
