"""The node's path without ROS: a camera message's bytes in, the bytes of the published images out, at 30 Hz."""

from __future__ import annotations

import time
from array import array

import cv2
import numpy as np

from pebal_core import render
from pebal_core.detector import AnomalyDetector

from .bench import Bench, Size, photograph

RATE = 30.0
PUBLISHED = ("labels", "energy", "score", "mask")
THRESHOLD = -6.0
"""Nats; any value takes as long."""


def run(bench: Bench) -> None:
    camera = Size(120, 160) if bench.toy else Size(1080, 1920)
    network = Size(64, 96) if bench.toy else Size(512, 1024)
    frames = 6 if bench.toy else 60 if bench.quick else 150
    for size in (network,) if bench.quick else (network, camera):
        input_size = (0, 0) if size == camera else (size.height, size.width)
        detector = AnomalyDetector.load("starter", engine="torch", device=str(bench.device), input_size=input_size)
        for cameras in (1, 3):
            for overlay in (False, True) if cameras == 1 else (False,):
                title = f"{cameras} cameras at {size}"
                bench.attempt(title, drive, detector, camera, size, cameras, frames, overlay)


def drive(
    bench: Bench, detector: AnomalyDetector, camera: Size, network: Size, cameras: int, frames: int, overlay: bool
) -> None:
    """Cameras in step at 30 Hz; as in the node, only the newest frame counts when the one before is answered."""
    message = cv2.cvtColor(photograph(camera), cv2.COLOR_RGB2BGR).tobytes()
    for _ in range(3):
        answer(detector, [message] * cameras, camera, overlay)
    due = time.perf_counter() + 1 / RATE
    latencies, dropped, last = [], 0, due + frames / RATE
    while due < last:
        time.sleep(max(0.0, due - time.perf_counter()))
        behind = int((time.perf_counter() - due) * RATE)  # newer frames came during the one before
        due, dropped = due + behind / RATE, dropped + behind
        published = answer(detector, [message] * cameras, camera, overlay)
        latencies.append(1e3 * (time.perf_counter() - due))
        due += 1 / RATE
    p50, p95 = np.percentile(latencies, [50, 95])
    with_overlay = " and overlay" if overlay else ""
    what = f"{', '.join(PUBLISHED)}{with_overlay}"
    bench.row(
        f"starter at {network}, {cameras} camera{'s' * (cameras > 1)} of {camera}, {what}",
        p50_ms=float(p50),
        p95_ms=float(p95),
        answered=len(latencies),
        dropped=dropped,
        bytes_published_per_frame=published // cameras,
        engine_ms={stage: round(1e3 * seconds, 2) for stage, seconds in detector.timings.items()},
        notes=detector.notes,
        **bench.goal("p95 below one period, nothing dropped", p95 < 1e3 / RATE and not dropped),
    )


def answer(detector: AnomalyDetector, messages: list[bytes], size: Size, overlay: bool) -> int:
    """What the node does with messages of encoding bgr8; returns the bytes of the data of what it would publish."""
    images = [
        cv2.cvtColor(np.frombuffer(message, np.uint8).reshape(*size, 3), cv2.COLOR_BGR2RGB) for message in messages
    ]
    published = 0
    for image, result in zip(images, detector(images), strict=True):
        score = render.score_map(result.energy, *detector.info.energy_range)
        mask = (result.energy >= THRESHOLD).view(np.uint8) * np.uint8(255)
        pictures = [result.labels, result.energy, score, mask]
        if overlay:
            pictures.append(render.overlay(image, score))
        for pixels in pictures:
            data = array("B")  # as in a message
            data.frombytes(np.ascontiguousarray(pixels).data.cast("B"))
            published += len(data)
    return published
