"""The node `anomaly_node`, which computes class labels and anomaly energy from camera images.

python -m pebal_ros.anomaly_node --ros-args -p model:=starter -r image:=/camera/image_raw
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]
from rclpy.executors import Executor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool

from pebal_core.detector import AnomalyDetector
from pebal_core.errors import PebalError

from . import process
from .camera import Camera
from .diagnostics import Reporter, Status, camera_values, model_values
from .findings import ERROR, OK, Finding, NodeState, examine
from .label_info import LabelInfoPublishers
from .object_stage import ObjectContext
from .parameters import PARAMETERS, Settings, declare, refusal
from .pipeline import Pipeline
from .process import Finish
from .qos import keep_last

WATCH_PERIOD = 0.1  # seconds between two checks of the publishers
SHUTDOWN_PATIENCE = 1.0
"""Seconds to wait for the frame in progress when the process ends; launch sends SIGTERM after five."""


class AnomalyNode(LifecycleNode):
    """Connects parameters, lifecycle, cameras, the inference thread and diagnostics.

    Configuring loads the model and creates the publishers. Activating subscribes to the cameras and starts inference.
    Cleaning up releases everything.

    Args:
        finish: ends the process.

    Raises:
        PebalError: a parameter given at start is refused.
    """

    def __init__(self, finish: Finish) -> None:
        super().__init__("anomaly_node")
        self._finish = finish
        self._loaded: AnomalyDetector | None = None
        """The model that `_autostart` has loaded, until configuring takes it over."""
        self._loading = False
        """Whether `_autostart` is still loading."""
        self._detector: AnomalyDetector | None = None
        self._cameras: list[Camera] = []
        self._pipeline: Pipeline | None = None
        self._settings: Settings | None = None
        self._resources = ExitStack()
        """Releases everything that configuring has created."""
        self._enabled = True
        self._state = NodeState.UNCONFIGURED
        self._failure = ""
        self._ready = threading.Condition()
        try:
            declare(self, PARAMETERS)
        except PebalError:
            self.destroy_node()
            raise
        self._reporter = Reporter(self, self._collect)
        self.create_service(SetBool, "~/set_enabled", self._set_enabled)
        # The node's own clock stands still where use_sim_time is set and /clock is not published.
        self.create_timer(WATCH_PERIOD, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    # ---- the process ----

    def start(self, executor: Executor) -> None:
        self._reporter.start()
        if self._value("autostart"):
            self._loading = True
            threading.Thread(target=self._autostart, args=(executor,), name="loading", daemon=True).start()

    def _autostart(self, executor: Executor) -> None:
        """Load the model in a separate thread, so that services respond and a signal can end the node meanwhile."""
        self._state = NodeState.LOADING
        try:
            self._loaded = self._load()
        except Exception as error:
            self._give_up(self._explain(error))
        else:
            executor.create_task(self._configure_and_activate)

    def _configure_and_activate(self) -> None:
        self._loading = False
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() != TransitionCallbackReturn.SUCCESS:
                return self._give_up(self._failure or "The node could not be activated.")

    def stop(self) -> None:
        if self._failure and self._state is NodeState.ACTIVE:
            self.trigger_deactivate()  # which `on_deactivate` turns into the error state
        self._release(SHUTDOWN_PATIENCE)
        self._state = NodeState.FINALIZED
        self._reporter.stop()

    def _give_up(self, reason: str) -> None:
        self._failure = reason
        self._finish(reason)

    def _explain(self, error: Exception) -> str:
        """Explain an error in one sentence. The traceback of an unexpected error goes to the debug log."""
        if isinstance(error, PebalError):
            return str(error)
        self.get_logger().debug(traceback.format_exc())
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"

    # ---- lifecycle; rclpy swallows exceptions from these callbacks, so they must not raise ----

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self._configure, NodeState.CONFIGURING, NodeState.INACTIVE, undo=self._release)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self._activate, NodeState.ACTIVATING, NodeState.ACTIVE, undo=self._deactivate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._failure:  # the engine has failed for good
            return TransitionCallbackReturn.ERROR
        return self._transition(self._deactivate, NodeState.DEACTIVATING, NodeState.INACTIVE)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self._clean_up, NodeState.CLEANING_UP, NodeState.UNCONFIGURED)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._transition(
            lambda: self._release(SHUTDOWN_PATIENCE), NodeState.SHUTTING_DOWN, NodeState.FINALIZED
        )
        self._finish(None)
        return result

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Finalize the node. Only an engine that has failed for good leads here, and nothing can recover it."""
        self._release(SHUTDOWN_PATIENCE)
        return TransitionCallbackReturn.FAILURE

    def _transition(
        self,
        work: Callable[[], None],
        during: NodeState,
        after: NodeState,
        undo: Callable[[], None] | None = None,
    ) -> TransitionCallbackReturn:
        before, self._state, self._failure = self._state, during, ""
        try:
            work()
        except Exception as error:
            if undo is not None:
                undo()
            self._failure = self._explain(error)
            self._state = before
            if not self._value("autostart"):  # otherwise the process ends with this sentence
                self.get_logger().error(self._failure)
            return TransitionCallbackReturn.FAILURE
        self._state = after
        return TransitionCallbackReturn.SUCCESS

    def _load(self) -> AnomalyDetector:
        self.get_logger().info(f"Loading the model '{self._value('model')}' …")
        height, width = self._value("input_height"), self._value("input_width")
        if bool(height) != bool(width):
            raise PebalError("Set both input_height and input_width, or neither.")
        smoothing = self._value("smoothing")
        detector = AnomalyDetector.load(
            self._value("model"),
            engine=self._value("engine"),
            device=self._value("device"),
            precision=self._value("precision"),
            input_size=(height, width) if height else None,
            smoothing=None if smoothing == "auto" else smoothing,
        )
        if detector.reason:
            self.get_logger().info(detector.reason)
        size = (height, width) if height else detector.info.input_size
        if size is not None and len(size) == 2:
            detector.warm_up(*size)  # the size at which the network sees every frame
        return detector

    def _configure(self) -> None:
        if self._loading:
            raise PebalError(
                "The node is about to configure itself. Set autostart to false to configure it from outside."
            )
        detector, self._loaded = self._loaded or self._load(), None
        self._settings = Settings.resolve({spec.name: self._value(spec.name) for spec in PARAMETERS}, detector.info)
        objects = ObjectContext(
            self,
            detector.info,
            self._value("ignore_mask"),
            self._value("object_classes"),
            self._value("mounting"),
        )
        self._resources.callback(objects.destroy)
        for name in self._value("cameras"):
            camera = Camera(
                self,
                name,
                self._value("transport"),
                self._value("input_reliability"),
                keep_last(self._value("output_reliability"), self._value("output_depth")),
                list(self._value("outputs")),
                objects,
                self._ready,
            )
            self._cameras.append(camera)
            self._resources.callback(camera.destroy)
        prefixes = [camera.prefix for camera in self._cameras]
        self._resources.callback(LabelInfoPublishers(self, prefixes, detector.info.class_names).destroy)
        self._detector = detector

    def _activate(self) -> None:
        assert self._detector is not None and self._settings is not None, "the lifecycle activates what is configured"
        self._pipeline = Pipeline(
            self._detector,
            self._cameras,
            self._settings,
            self._ready,
            self.get_clock(),
            self.get_logger(),
            self._give_up,
        )
        self._pipeline.start()
        if self._enabled:
            for camera in self._cameras:
                camera.open()

    def _deactivate(self, patience: float | None = None) -> None:
        if self._pipeline is not None:
            self._pipeline.stop(patience)
            self._pipeline = None
        for camera in self._cameras:
            camera.close()

    def _release(self, patience: float | None = None) -> None:
        """Release everything that configuring has created.

        Args:
            patience: seconds to wait for the frame in progress; None: until it is done.
        """
        self._deactivate(patience)
        self._cameras = []
        self._resources.close()
        self._detector = self._settings = None

    def _clean_up(self) -> None:
        self._release()
        process.give_memory_back()

    # ---- while it runs ----

    def _watch(self) -> None:
        if self._state is NodeState.ACTIVE and self._enabled:
            for camera in self._cameras:
                camera.input.watch()

    def _set_enabled(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        changed, self._enabled = self._enabled != request.data, request.data
        if changed and self._state is NodeState.ACTIVE:
            for camera in self._cameras:
                camera.open() if self._enabled else camera.close()
        response.success = True
        response.message = f"The node is {'enabled' if self._enabled else 'paused; the model stays loaded'}."
        return response

    def set_parameters_atomically(self, parameter_list: list[Parameter[Any]]) -> SetParametersResult:
        """Set all of the parameters, or none of them and say why.

        rclpy's callbacks cannot do this, because rclpy checks types, ranges and read-only parameters, with messages of
        its own, before it calls the on-set callbacks, and because a pre-set callback cannot give a reason.
        """
        values = {spec.name: self._value(spec.name) for spec in PARAMETERS}
        for parameter in parameter_list:
            reason = refusal(PARAMETERS, parameter.name, parameter.value)
            if reason:
                return SetParametersResult(successful=False, reason=f"{reason}.")
            values[parameter.name] = parameter.value
        detector = self._detector
        try:
            settings = Settings.resolve(values, detector.info) if detector is not None else None
        except PebalError as error:
            return SetParametersResult(successful=False, reason=f"{error}.")
        result = super().set_parameters_atomically(parameter_list)
        if result.successful and settings is not None:
            self._settings = settings
            if self._pipeline is not None:
                self._pipeline.change(settings)
        return result

    def _collect(self) -> list[Status]:
        detector, settings, cameras = self._detector, self._settings, self._cameras
        now = NodeState.PAUSED if self._state is NodeState.ACTIVE and not self._enabled else self._state
        if detector is None or settings is None:
            values = {"state": self._state.value, "model": self._value("model")}
            finding = Finding(ERROR if self._failure else OK, None, self._failure or f"The node is {now.value}.")
            return [Status("model", "", finding, values)]
        error = self._pipeline.last_error if self._pipeline is not None else ""
        running = f"{detector.model_path.name} runs on {detector.engine_name}, {detector.device_name}; "
        finding = Finding(ERROR, None, error) if error else Finding(OK, now, f"{running}the node is {now.value}.")
        values = {"state": self._state.value, **model_values(detector, settings), "last error": error}
        statuses = [Status("model", detector.device_name, finding, values)]
        for camera in cameras:
            seen = camera.record.snapshot()
            found = Finding(OK, None, f"The node is {now.value}, so it is not subscribed to {camera.input.topic}.")
            if self._state is NodeState.ACTIVE and self._enabled:
                found = examine(camera, seen, settings)
            values = camera_values(camera, seen, settings)
            statuses.append(Status(camera.input.topic, seen.frame_id, found, values))
        return statuses


def main() -> None:
    """Entry point of the executable `anomaly_node`."""
    process.main(AnomalyNode)


if __name__ == "__main__":
    main()
