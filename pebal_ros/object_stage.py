"""From the energy of a frame to tracked objects on the ground: what the node keeps for each camera."""

from __future__ import annotations

from dataclasses import dataclass

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo

from pebal_core.detector import Result
from pebal_core.errors import PebalError
from pebal_core.model_file import ModelInfo
from pebal_core.objects import IgnoreMask, Locator, ObjectTracker, TrackRules, find_objects
from pebal_core.outputs import ClassMap, Sighting

from .ground import CameraGround, TransformSource
from .parameters import BY_TF, NO_MOUNTING, Settings


@dataclass(frozen=True)
class ObjectReport:
    """What is to be said of a camera's objects."""

    objects: int = 0
    confirmed: int = 0
    left_out: int = 0
    """Candidates that were not looked at, to keep the time bounded."""
    no_geometry: str = ""
    """Why no distances are known, in one sentence; empty: they are known, or nobody asked for them."""
    no_mask: str = ""
    """Why the ignore mask does not apply, in one sentence."""


class ObjectContext:
    """What every camera of the node shares: the files behind the parameters, and tf2.

    Raises:
        PebalError: a file cannot be read, or tf2 is asked for and not installed.
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
    """Finds, tracks and locates the objects of one camera; used by the inference thread alone.

    `report` is replaced as a whole, so that other threads read one version of it.
    """

    def __init__(self, context: ObjectContext) -> None:
        self._context = context
        self._tracker = ObjectTracker(TrackRules())
        self._ground = CameraGround()
        self.mounting = context.mounting
        """Where the camera's height and angles come from: the parameter of this name."""
        self.report = ObjectReport()

    def __call__(
        self, result: Result, settings: Settings, info: CameraInfo | None, frame_id: str, stamp: float
    ) -> Sighting:
        """The objects of the next frame.

        Args:
            info: the frame's calibration; None: there is none of this size.
            frame_id: of the camera.
            stamp: seconds at which the frame was taken.
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
            raise PebalError("No camera_info of the size of the images has come, so objects have no distance.")
        pose = None
        if self._context.transforms is not None:
            pose = self._context.transforms.pose(settings.ground_frame, frame_id)
        return self._ground.locator(info, settings.mounting, pose)
