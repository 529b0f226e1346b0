"""Publishes /diagnostics once a second, and logs changes.

The keys of a camera's status are listed in `camera_values`, and the keys of the model's status in `model_values`.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.duration import Duration
from rclpy.exceptions import InvalidHandle
from rclpy.node import Node

from pebal_core.detector import AnomalyDetector

from .camera import Camera
from .findings import OK, WARN, Code, Finding, NodeState
from .parameters import Settings
from .qos import try_publish
from .stream_statistics import CameraSnapshot

PERIOD = 1.0  # seconds
REPEAT_AFTER = 60.0
"""Seconds before the log repeats a finding that disappeared and came back."""


@dataclass(frozen=True)
class Status:
    """One line of a diagnostics viewer."""

    part: str
    """Subject of the line, which is "model" or the camera's topic."""
    hardware: str
    finding: Finding
    values: dict[str, str]


class Reporter:
    """Publishes the statuses that `collect` returns, in its own thread, so that a node reports while it loads a model.

    Args:
        node: the node.
        collect: function that is called once a second.
    """

    def __init__(self, node: Node, collect: Callable[[], list[Status]]) -> None:
        self._node, self._collect = node, collect
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._stopped = threading.Event()
        self._last_code: dict[str, Code | NodeState] = {}
        self._logged_at: dict[tuple[str, Code | NodeState], float] = {}
        self._thread = threading.Thread(target=self._run, name="diagnostics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Publish the final state and end the thread."""
        self._stopped.set()
        self._thread.join()
        self._publish(self._collect())
        self._publisher.wait_for_all_acked(Duration(seconds=0.5))

    def _run(self) -> None:
        while not self._stopped.wait(PERIOD):
            try:
                statuses = self._collect()
                for status in statuses:
                    self._log(status)
                self._publish(statuses)
            except InvalidHandle:  # a camera was destroyed during the collection
                continue
            except Exception:  # a failure here must not end the node
                reason = traceback.format_exc()
                self._node.get_logger().error(f"The diagnostics failed:\n{reason}", throttle_duration_sec=REPEAT_AFTER)

    def _publish(self, statuses: list[Status]) -> None:
        array = DiagnosticArray()
        array.header.stamp = self._node.get_clock().now().to_msg()
        name = self._node.get_fully_qualified_name().lstrip("/")
        for status in statuses:
            code = status.finding.code
            values = {"finding": code.value, **status.values} if code is not None else status.values
            array.status.append(
                DiagnosticStatus(
                    level=status.finding.level,
                    name=f"{name}: {status.part}",
                    message=status.finding.sentence,
                    hardware_id=status.hardware,
                    values=[KeyValue(key=key, value=value) for key, value in values.items()],
                )
            )
        try_publish(self._publisher, array)

    def _log(self, status: Status) -> None:
        """Log a finding that differs from the last one for the same part, but each finding at most once a minute.

        A finding that comes back within the minute is logged at its end if it still holds, so that the last line in the
        log is always true.
        """
        finding, code, now = status.finding, status.finding.code, time.monotonic()
        if code is None or code is self._last_code.get(status.part):
            return
        logged_at = self._logged_at.get((status.part, code))
        if logged_at is not None and now - logged_at < REPEAT_AFTER:
            return
        self._last_code[status.part] = code
        self._logged_at[status.part, code] = now
        logger = self._node.get_logger()
        if finding.level == OK:  # separate calls, because rclpy ties the severity to the calling line
            logger.info(finding.sentence)
        elif finding.level == WARN:
            logger.warning(finding.sentence)
        else:
            logger.error(finding.sentence)


def camera_values(camera: Camera, seen: CameraSnapshot, settings: Settings) -> dict[str, str]:
    """Counts, rates and times of one camera, as values of its status; `seen` is the snapshot of its record."""
    counts, (received, _, replaced) = seen.counts, camera.mailbox.counts()
    values = {
        "topic": camera.input.topic,
        "publishers": str(camera.input.state.publishers),
        "reliability": " or ".join(camera.input.asked),
        "picture": seen.picture,
        "outputs wanted": ", ".join(camera.outputs.wanted(settings)) or "none",
        "frames received": str(received),
        "frames answered": str(counts.answered),
        "frames dropped": str(replaced + counts.superseded),
        "frames bad": str(counts.bad),
        "frames too old": str(counts.stale),
        "frames unheard": str(counts.unheard),
        "frames failed": str(counts.failed),
        "frames unsent": str(counts.unsent),
        "frames lost before the node": str(counts.lost),
        "rate in (Hz)": f"{seen.rate_in:.2f}",
        "rate out (Hz)": f"{seen.rate_out:.2f}",
        "age of the last frame (s)": "never" if seen.age is None else f"{seen.age:.2f}",
        "objects": str(camera.objects.report.objects),
        "objects confirmed": str(camera.objects.report.confirmed),
    }
    for stage, (p50, p95) in seen.stages.items():
        values[f"{stage} p50 (ms)"], values[f"{stage} p95 (ms)"] = f"{p50:.2f}", f"{p95:.2f}"
    values["drift"] = camera.drift or "none"
    values["last error"] = seen.last_error
    return values


def model_values(detector: AnomalyDetector, settings: Settings) -> dict[str, str]:
    """The running model, its engine and its limits, as values of its status."""
    if not detector.info.guarantee:
        guarantee = "none (choose the threshold with 'pebal calibrate' or 'pebal adapt')"
    elif settings.threshold != detector.info.threshold:
        guarantee = f"none (it applies only to the threshold of the model, {detector.info.threshold:g} nats)"
    else:
        guarantee = str(detector.info.guarantee.get("text", "none (it is damaged in the model file)"))
    return {
        "model": str(detector.model_path),
        "model sha256": detector.model_sha256,
        "network": detector.info.network,
        "engine": detector.engine_name,
        "device": detector.device_name,
        "engine notes": " ".join(detector.notes) or "none",
        "threshold (nats)": "none" if settings.threshold is None else f"{settings.threshold:g}",
        "guarantee": guarantee,
        "score limits (nats)": f"{settings.score_min:g} … {settings.score_max:g}",
    }
