"""The inference thread, which takes the newest frames from the mailboxes, runs the detector and publishes outputs."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rclpy.clock import Clock
from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import CameraInfo

from pebal_core.detector import AnomalyDetector
from pebal_core.errors import EngineError, PebalError
from pebal_core.footage.ros_images import RgbImage
from pebal_core.outputs import Products

from .camera import Camera, ReceivedFrame
from .parameters import Settings

FAILURES_BEFORE_GIVING_UP = 5


@dataclass(frozen=True)
class Job:
    """A frame that is being processed."""

    camera: Camera
    frame: ReceivedFrame
    image: RgbImage
    decoded_at: float
    """`time.perf_counter()` after decoding."""
    wanted: list[str]
    """Outputs to publish."""


class Pipeline:
    """Processes the frames of all cameras in its own thread, so that no executor callback has to wait for it.

    Each round takes the waiting frames, at most one per camera; frames of one size form a batch. A camera that sends
    nothing therefore delays no other camera.

    Args:
        detector: the detector.
        cameras: the cameras.
        settings: the run-time parameters.
        ready: condition that the cameras' mailboxes notify.
        clock: clock for the age of a frame.
        logger: logger of the node.
        give_up: function that is called with one sentence if the engine fails repeatedly.
    """

    def __init__(
        self,
        detector: AnomalyDetector,
        cameras: Sequence[Camera],
        settings: Settings,
        ready: threading.Condition,
        clock: Clock,
        logger: RcutilsLogger,
        give_up: Callable[[str], None],
    ) -> None:
        self._settings = settings  # replaced as a whole, so that each frame uses a consistent version
        self._detector, self._cameras, self._ready = detector, cameras, ready
        self._clock, self._logger, self._give_up = clock, logger, give_up
        self._stopping = self._abandoned = False
        self._publishing = threading.Lock()
        self._round_started = 0.0
        self._warm: set[tuple[int, ...]] = set()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def last_error(self) -> str:
        """The engine's last error in one sentence; empty once it has succeeded for every camera that it failed for."""
        return next((camera.record.engine_error for camera in self._cameras if camera.record.engine_error), "")

    def change(self, settings: Settings) -> None:
        """Use new settings from the next frame on."""
        with self._ready:
            self._settings = settings
            self._ready.notify_all()

    def stop(self, patience: float | None = None) -> None:
        """Finish the current frame and end the thread.

        Args:
            patience: seconds to wait for that frame; None waits as long as it takes. Afterwards the thread is
                abandoned, because the engine cannot be interrupted, and its results are not published.
        """
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        self._thread.join(patience)
        if self._thread.is_alive():
            with self._publishing:
                self._abandoned = True

    def _run(self) -> None:
        while self._wait():
            self._round()

    def _wait(self) -> bool:
        """Wait until a frame may be processed; returns False if the thread should end."""
        with self._ready:
            while not self._stopping:
                max_rate = self._settings.max_rate
                pause = self._round_started + 1 / max_rate - time.monotonic() if max_rate else 0.0
                if pause <= 0 and any(camera.mailbox.waiting for camera in self._cameras):
                    return True
                self._ready.wait(pause if pause > 0 else None)
        return False

    def _round(self) -> None:
        self._round_started = time.monotonic()
        settings = self._settings
        batches: dict[tuple[int, ...], list[Job]] = {}
        for camera in self._cameras:
            frame = camera.mailbox.take()
            job = self._accept(camera, frame, settings) if frame is not None else None
            if job is not None:
                batches.setdefault(job.image.shape, []).append(job)
        for shape, jobs in batches.items():
            self._answer(shape, jobs, settings)

    def _accept(self, camera: Camera, frame: ReceivedFrame, settings: Settings) -> Job | None:
        """Decode a frame; None if it is not to be processed, after counting the reason."""
        wanted = camera.outputs.wanted(settings)
        if not wanted:
            camera.record.unheard()
            return None
        camera.record.wanted()
        if settings.max_age and self._clock.now().nanoseconds - frame.stamp_ns > settings.max_age * 1e9:
            camera.record.stale()
            return None
        camera.record.took({"waiting": time.monotonic() - frame.received_at})
        started = time.perf_counter()
        try:
            image = frame.decode()
        except PebalError as error:
            self._refuse(camera, str(error))
            return None
        decoded = time.perf_counter()
        camera.record.took({"decode": decoded - started})
        camera.record.decoded(_picture(image, frame))
        return Job(camera, frame, image, decoded, wanted)

    def _answer(self, shape: tuple[int, ...], jobs: list[Job], settings: Settings) -> None:
        try:
            if shape not in self._warm:
                self._detector.warm_up(shape[0], shape[1])
                self._warm.add(shape)
                jobs = [job for job in jobs if not self._superseded(job)]
            images = [job.image for job in jobs]
            results = [self._detector(images[0])] if len(images) == 1 else self._detector(images)
        except EngineError as error:
            self._fail(jobs, error)
            return
        except PebalError as error:  # caused by the image, not by the engine
            for job in jobs:
                self._refuse(job.camera, str(error))
            return
        except Exception as error:
            self._fail(jobs, error)
            return
        for job, result in zip(jobs, results, strict=True):
            job.camera.record.computed()
            job.camera.watch(result, job.image)
            header, (height, width) = job.frame.message.header, job.image.shape[:2]
            calibration = job.camera.calibration(header, height, width)
            sight = partial(
                job.camera.objects, result, settings, calibration, header.frame_id, job.frame.stamp_ns * 1e-9
            )
            products = Products(job.image, result, settings, self._detector.info.palette, sight)
            with self._publishing:
                if not self._abandoned:
                    self._publish(job, products, calibration)

    def _superseded(self, job: Job) -> bool:
        """Whether a newer frame arrived while the engine warmed up, so that this one is skipped."""
        newer = job.camera.mailbox.waiting
        if newer:
            job.camera.record.superseded()
        return newer

    def _publish(self, job: Job, products: Products, calibration: CameraInfo | None) -> None:
        camera, header = job.camera, job.frame.message.header
        started = time.perf_counter()
        messages = camera.outputs.encode(products, job.wanted, header)
        rendered = time.perf_counter()
        if calibration is not None:
            camera.outputs.publish_camera_info(calibration, header)
        refused = camera.outputs.publish(messages)
        published = time.perf_counter()
        if camera.record.published(refused, len(messages)):
            camera.record.took({
                **self._detector.timings,
                "render": rendered - started,
                "publish": published - rendered,
                "overhead": published - job.decoded_at - sum(self._detector.timings.values()),
                "in the node": time.monotonic() - job.frame.received_at,
                "latency": (self._clock.now().nanoseconds - job.frame.stamp_ns) * 1e-9,
            })  # fmt: skip

    def _refuse(self, camera: Camera, reason: str) -> None:
        camera.record.bad(f"A frame on {camera.input.topic} was skipped: {reason}")

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        first_line = next(iter(str(error).splitlines()), "no reason given").rstrip(".")
        picture = _picture(jobs[0].image, jobs[0].frame)
        sentence = f"The engine failed on {picture}: {type(error).__name__}: {first_line}."
        failures = max([job.camera.record.failed(sentence) for job in jobs])
        if failures == 1:
            self._logger.error(f"{sentence}\n{traceback.format_exc()}")
        if failures >= FAILURES_BEFORE_GIVING_UP:
            self._give_up(f"{sentence[:-1]}, {failures} times in a row; the node ends.")
            with self._ready:
                self._stopping = True


def _picture(image: RgbImage, frame: ReceivedFrame) -> str:
    """Size and encoding of a frame, as text."""
    return f"{image.shape[1]}×{image.shape[0]} {getattr(frame.message, 'encoding', 'compressed')}"
