"""Hours at overload: does the node's memory, its threads, file handles or latency grow?

    python benchmarks/soak.py --minutes 30
    python benchmarks/soak.py --minutes 600 --size 1920x1080

A camera_player sends twice as many frames as the node can serve, this process subscribes to labels and energy. A row
per minute (at least six rows) shows the node's resident memory, threads and handles and the latencies. The exit code
is 1 when from the first row to the last memory grew by more than 2 %, a thread or a handle was added, the median
latency changed by more than its noise, or when frames are unaccounted for. What comes before the first row,
twice as long as a row, is warm-up. Runs on Linux.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import rclpy
from ros_rig import STARTUP, Listener, Process, milliseconds, picture, ros_node, use_image_profile

NAMESPACE = "/benchmark/node"
OVERLOAD = 2.0
MEMORY_GROWTH = 0.02
LATENCY_FLOOR = 0.05
"""Share by which the median may differ however quiet the machine is."""
CALIBRATION = 8  # frames of the slow camera, by which the service time is known
ENDS = ("answered", "dropped", "bad", "too old", "unheard", "failed", "unsent")


@dataclass(frozen=True)
class Row:
    """One minute."""

    minute: float
    memory: float
    """Resident, MB: the median of a few hundred looks, for the network's own buffers come and go with every frame."""
    threads: int
    handles: int
    answered: int
    p50: float
    p95: float
    p99: float
    """Milliseconds from the camera's stamp to the arrival of both outputs here."""
    load: float
    """Processes that wanted to run on the whole machine."""

    def __str__(self) -> str:
        latencies = f"{self.p50:.0f} | {self.p95:.0f} | {self.p99:.0f}"
        counts = f"{self.memory:.1f} | {self.threads} | {self.handles} | {self.answered}"
        return f"| {self.minute:.1f} | {counts} | {latencies} | {self.load:.1f} |"


def read_status(pid: int) -> dict[str, str]:
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


def look(pid: int, minute: float, memory: float, latencies: list[float]) -> Row:
    return Row(
        minute,
        memory,
        int(read_status(pid)["Threads"]),
        len(list((Path("/proc") / str(pid) / "fd").iterdir())),
        len(latencies),
        milliseconds(latencies, 50),
        milliseconds(latencies, 95),
        milliseconds(latencies, 99),
        os.getloadavg()[0],
    )


def verdict(rows: list[Row]) -> list[str]:
    """What has grown, in words."""
    first, last = rows[0], rows[-1]
    found = []
    growth = last.memory / first.memory - 1
    if growth > MEMORY_GROWTH:
        found.append(f"Resident memory grew by {growth:.1%}, from {first.memory:.1f} to {last.memory:.1f} MB.")
    for name, before, after in (
        ("threads", first.threads, last.threads), ("file handles", first.handles, last.handles),
    ):  # fmt: skip
        if after > before:
            found.append(f"The {name} grew from {before} to {after}.")
    # The noise is what neighbouring minutes differ by: a slow drift is not part of it.
    medians = np.array([row.p50 for row in rows])
    noise = 4 * float(np.median(np.abs(np.diff(medians))))
    change = last.p50 - first.p50
    if not abs(change) <= max(noise, LATENCY_FLOOR * first.p50):
        found.append(f"The median latency went from {first.p50:.0f} to {last.p50:.0f} ms; its noise is {noise:.0f} ms.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="after the warm-up")
    parser.add_argument("--size", default="640x480", help="WIDTHxHEIGHT of the camera")
    parser.add_argument("--model", default="starter")
    arguments = parser.parse_args()
    width, height = (int(side) for side in arguments.size.lower().split("x"))
    use_image_profile()
    rclpy.init(args=[])
    listener = Listener([NAMESPACE])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(8):
            cv2.imwrite(str(folder / f"{seed}.png"), picture(height, width, seed))
        with Process(ros_node("anomaly_node", NAMESPACE, {"model": arguments.model}), folder / "node.log") as node:
            service = calibrate(listener, node, folder)
            rate = OVERLOAD / service
            print(f"{arguments.size}: a frame takes {1e3 * service:.0f} ms, so the camera sends {rate:.2f} Hz.\n")
            rows = soak(listener, node, folder, rate, arguments.minutes)
            found = verdict(rows) + unaccounted(listener, folder)
    rclpy.try_shutdown()
    print("\n" + ("\n".join(found) or "Nothing grew."))
    raise SystemExit(bool(found))


def player(folder: Path, rate: float) -> Process:
    parameters: dict[str, object] = {
        "source": folder, "loop": "true", "rate": float(rate), "wait_for_subscribers": 1,
        "manifest": folder / f"sent_{rate}.csv",
    }  # fmt: skip
    return Process(ros_node("camera_player", NAMESPACE, parameters), folder / "player.log")


def calibrate(listener: Listener, node: Process, folder: Path) -> float:
    """Seconds that the node needs for a frame, with a camera far too slow to load it."""
    arrivals = listener.arrivals[NAMESPACE]

    def enough() -> bool:
        node.check()
        camera.check()
        return len(arrivals) > CALIBRATION

    with player(folder, 0.5) as camera:
        listener.wait_for(enough, STARTUP, "answers to the first frames")
        seen = listener.camera
        listener.wait_for(lambda: listener.camera is not seen, 10, "diagnostics")
    stages = ("decode", "preprocess", "inference", "postprocess", "overhead")
    return sum(float(listener.camera[f"{stage} p50 (ms)"]) for stage in stages) / 1e3


def soak(listener: Listener, node: Process, folder: Path, rate: float, minutes: float) -> list[Row]:
    """Rows of the run."""
    arrivals = listener.arrivals[NAMESPACE]
    window = min(60.0, 10.0 * minutes)
    rows: list[Row] = []
    titles = ("minute", "memory MB", "threads", "handles", "answered", "p50 ms", "p95 ms", "p99 ms", "load")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    with player(folder, rate) as camera:
        listener.spin(2 * window)
        while len(rows) < round(60 * minutes / window):
            arrivals.clear()
            resident = []
            end = time.monotonic() + window
            while time.monotonic() < end:
                listener.spin(0.2)
                for process in (node, camera):
                    process.check()
                resident.append(int(read_status(node.pid)["VmRSS"].split()[0]) / 1024)
            minute = (len(rows) + 1) * window / 60
            rows.append(look(node.pid, minute, statistics.median(resident), list(arrivals.values())))
            print(rows[-1], flush=True)
    return rows


def unaccounted(listener: Listener, folder: Path) -> list[str]:
    """What is wrong with the account: every frame that was sent must have arrived or been lost, and have an end."""
    listener.spin(5.0)
    sent = sum(len(manifest.read_text().splitlines()) - 1 for manifest in folder.glob("sent_*.csv"))
    counts = {name: int(listener.camera[f"frames {name}"]) for name in ("received", "lost before the node", *ENDS)}
    print(f"\n{sent} frames sent; {', '.join(f'{count} {name}' for name, count in counts.items())}.")
    arrived = counts["received"] == sent - counts["lost before the node"]
    ended = counts["received"] == sum(counts[end] for end in ENDS)
    return [] if arrived and ended else ["Some frames are unaccounted for."]


if __name__ == "__main__":
    main()
