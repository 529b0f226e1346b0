"""Finds, tracks and locates the objects of each camera of the node."""

from __future__ import annotations

from dataclasses import dataclass

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo

from pebal_core.detector import Result
from pebal_core.errors import PebalError
from pebal_core.model_info import ModelInfo
from pebal_core.objects import IgnoreMask, Locator, ObjectTracker, TrackRules, find_objects
from pebal_core.outputs import ClassMap, Sighting

from .ground import CameraGround, TransformSource
from .parameters import BY_TF, NO_MOUNTING, Settings


@dataclass(frozen=True)
class ObjectReport:
    """Figures and problems of a camera's objects, for the diagnostics."""

    objects: int = 0
    confirmed: int = 0
    left_out: int = 0
    """Number of candidates that were not examined, to bound the time."""
    no_geometry: str = ""
    """A sentence that explains why distances are unknown; empty if they are known or not requested."""
    no_mask: str = ""
    """A sentence that explains why the ignore mask cannot be applied; empty if it can."""


class ObjectContext:
    """State that all cameras of the node share, which are the files named by parameters, and tf2.

    Args:
        node: the node.
        info: description of the model.
        ignore_mask, object_classes, mounting: the parameters of these names.

    Raises:
        PebalError: a file cannot be read, or tf2 is needed but not installed.
    """

    def __init__(self, node: Node, info: ModelInfo, ignore_mask: str, object_classes: str, mounting: str) -> None:
        self.info = info
        self.mask = IgnoreMask.read(ignore_mask) if ignore_mask else IgnoreMask.decode(info.ego_mask)
        self.class_map = ClassMap.read(object_classes, info.class_names)
        self.mounting = mounting
        self.transforms = TransformSource(node) if mounting == BY_TF else None

    def destroy(self) -> None:
        if self.transforms is not None:
            self.transforms.destroy()


class ObjectStage:
    """Finds, tracks and locates the objects of one camera; only the inference thread may use it.

    `report` is replaced as a whole, so that other threads always read a consistent version.
    """

    def __init__(self, context: ObjectContext) -> None:
        self._context = context
        self._tracker = ObjectTracker(TrackRules())
        self._ground = CameraGround()
        self.mounting = context.mounting
        """Value of the parameter of this name, which is the source of the camera's height and angles."""
        self.report = ObjectReport()

    def __call__(
        self, result: Result, settings: Settings, info: CameraInfo | None, frame_id: str, stamp: float
    ) -> Sighting:
        """Find, track and locate the objects of the next frame.

        Args:
            result: labels and energy of the frame.
            settings: the run-time parameters.
            info: the frame's calibration; None if there is none for its size.
            frame_id: frame id of the camera.
            stamp: time stamp of the frame in seconds.
        """
        assert settings.object_rules is not None, "without a threshold nobody asks for objects"
        ignore, no_mask = None, ""
        if self._context.mask is not None:
            try:
                ignore = self._context.mask.at(*result.energy.shape)
            except PebalError as error:
                no_mask = str(error)
        found = find_objects(result.energy, result.labels, settings.object_rules, ignore)
        self._tracker.rules = settings.track_rules
        objects = self._tracker.update(found.objects, stamp)
        locator, no_geometry = None, ""
        if self.mounting != NO_MOUNTING:
            try:
                locator = self._locator(settings, info, frame_id)
                objects = locator.locate(objects)
            except PebalError as error:
                no_geometry = str(error)
        confirmed = sum(one.confirmed for one in objects)
        self.report = ObjectReport(len(objects), confirmed, found.left_out, no_geometry, no_mask)
        context = self._context
        return Sighting.of(
            objects, settings, context.info.class_names, context.class_map, locator, settings.ground_frame
        )

    def _locator(self, settings: Settings, info: CameraInfo | None, frame_id: str) -> Locator:
        if info is None:
            raise PebalError("No camera_info with the size of the images has arrived, so objects have no distance.")
        pose = None
        if self._context.transforms is not None:
            pose = self._context.transforms.pose(settings.ground_frame, frame_id)
        return self._ground.locator(info, settings.mounting, pose)
