"""The table of the parameters of `anomaly_node`, from which they are declared and documented.

python -m pebal_ros.parameters > docs/parameters.md
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from pebal_core.errors import PebalError
from pebal_core.model_info import ModelInfo
from pebal_core.objects import Mounting, ObjectRules, TrackRules
from pebal_core.outputs import PictureSettings

from .qos import BEST_EFFORT, RELIABLE

AUTO = "auto"
MOUNTINGS = NO_MOUNTING, BY_PARAMETERS, BY_TF = "none", "parameters", "tf"
RCLPY_PARAMETERS = {"use_sim_time", "start_type_description_service"}
"""Parameters that every node declares itself."""
CAMERA_NAME = r"(/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*)?"
"""Pattern of a topic prefix that ROS allows, which may be empty."""
TYPE_NAMES = {bool: "bool", int: "integer", float: "number", str: "string", list: "list of strings"}


@dataclass(frozen=True)
class Spec:
    """One parameter.

    A parameter whose default is "auto" but whose `kind` is not str accepts "auto" and values of that kind.
    """

    name: str
    kind: type[Any]
    default: Any
    description: str
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    """Regular expression that every item of a list must match."""
    runtime: bool = False
    """Whether it may change while the node runs; all other parameters are read-only and need a restart."""

    @property
    def auto(self) -> bool:
        """Whether the parameter accepts "auto" in place of a value."""
        return self.default == AUTO and self.kind is not str

    @property
    def type_name(self) -> str:
        """Name of the type in the documentation."""
        return f"{TYPE_NAMES[self.kind]} or '{AUTO}'" if self.auto else TYPE_NAMES[self.kind]

    def refusal(self, value: Any) -> str | None:
        """Why a value is refused; None if it is accepted."""
        if self.auto and value == AUTO:
            return None
        accepted: Any = (int, float) if self.kind is float and self.auto else self.kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.kind is not bool):
            hint = f": write {float(value)}" if self.kind is float and type(value) is int else ""
            return f"{self.name} takes a {self.type_name}, not {value!r}{hint}"
        items = value if self.kind is list else [value]
        for item in items:
            if self.choices and item not in self.choices:
                return f"{self.name} takes {', '.join(self.choices)}, not {item!r}"
            if self.pattern and not re.fullmatch(self.pattern, item, re.ASCII):
                return f"{self.name} takes names of letters, digits, _ and /, not {item!r}"
        if len(set(items)) < len(items):
            return f"{self.name} lists an item twice: {', '.join(items)}"
        if self.kind is float and not math.isfinite(value):
            return f"{self.name} must be finite, not {value}"
        if self.limits and not self.limits[0] <= value <= self.limits[1]:
            return f"{self.name} {self.range_text}, not {value}"
        return None

    @property
    def range_text(self) -> str:
        """The limits in words."""
        low, high = self.limits or (-math.inf, math.inf)
        return f"must lie between {low:g} and {high:g}"

    def descriptor(self) -> ParameterDescriptor:
        """The descriptor with which the parameter is declared."""
        message = ParameterDescriptor(name=self.name, description=self.description, read_only=not self.runtime)
        message.dynamic_typing = self.auto
        message.additional_constraints = "; ".join(
            text
            for text in (
                f"a {self.type_name}" if self.auto else "",
                f"of: {', '.join(self.choices)}" if self.choices else "",
                "" if self.runtime else "a change needs a restart",
            )
            if text
        )
        if self.limits and self.kind is float:
            message.floating_point_range = [FloatingPointRange(from_value=self.limits[0], to_value=self.limits[1])]
        elif self.limits:
            message.integer_range = [IntegerRange(from_value=int(self.limits[0]), to_value=int(self.limits[1]))]
        return message


ENERGY_LIMITS = (-1000.0, 1000.0)
ANGLES = (-89.0, 89.0)
"""Limits of angles in degrees."""
RELIABILITIES = (RELIABLE, BEST_EFFORT)
OUTPUT_NAMES = (
    "labels", "energy", "score", "mask", "overlay", "label_colors", "objects", "obstacles", "markers",
)  # fmt: skip

PARAMETERS: tuple[Spec, ...] = (
    Spec("model", str, "starter", "Model file (.safetensors or .onnx written by pebal), or name of a shipped model."),
    Spec(
        "engine",
        str,
        AUTO,
        "Runtime of the model; auto picks the fastest one that can run it.",
        choices=(AUTO, "torch", "onnxruntime"),
    ),
    Spec("device", str, AUTO, "cpu, cuda, cuda:N, tensorrt (onnxruntime), or auto, which uses a GPU if there is one."),
    Spec("precision", str, AUTO, "Arithmetic of the network.", choices=(AUTO, "fp32", "fp16", "bf16")),
    Spec("input_height", int, 0, "Height of the network's input in pixels; 0 takes the model's value.", (0, 8192)),
    Spec("input_width", int, 0, "Width of the network's input in pixels; 0 takes the model's value.", (0, 8192)),
    Spec("smoothing", bool, AUTO, "Smooth the energy with a 7×7 Gaussian; auto takes the model's setting."),
    Spec(
        "cameras",
        list,
        [""],
        "Prefixes of the cameras' topics; front stands for front/image, front/labels …, and '' for image, labels ….",
        pattern=CAMERA_NAME,
    ),
    Spec("transport", str, "raw", "Subscribe to image (raw) or to image/compressed.", choices=("raw", "compressed")),
    Spec(
        "input_reliability",
        str,
        AUTO,
        "Reliability of the subscriptions to images; auto follows the camera.",
        choices=(AUTO, *RELIABILITIES),
    ),
    Spec("output_reliability", str, RELIABLE, "Reliability offered on every output.", choices=RELIABILITIES),
    Spec("output_depth", int, 1, "Number of messages that every output keeps for slow subscribers.", (1, 100)),
    Spec("outputs", list, list(OUTPUT_NAMES), "Outputs that are offered.", choices=OUTPUT_NAMES),
    Spec("autostart", bool, True, "Configure and activate at start; false leaves this to a lifecycle manager."),
    Spec(
        "ignore_mask",
        str,
        "",
        "Image file; pixels that are not black never alarm. If it is empty, the model's ego mask is used, if any.",
    ),
    Spec(
        "object_classes",
        str,
        "",
        "YAML file with the names under which objects are published; if it is empty, all are 'anomaly'.",
    ),
    Spec("mounting", str, NO_MOUNTING, "Source of the camera's height and angles.", choices=MOUNTINGS),
    Spec("ground_frame", str, "base_footprint", "Frame of obstacles and markers; the ground is at its z = 0."),
    Spec(
        "threshold",
        float,
        AUTO,
        "Energy in nats from which mask is 255; auto takes the model's threshold.",
        ENERGY_LIMITS,
        runtime=True,
    ),
    Spec(
        "score_min",
        float,
        AUTO,
        "Energy in nats that is displayed as score 0; auto takes the model's value.",
        ENERGY_LIMITS,
        runtime=True,
    ),
    Spec(
        "score_max",
        float,
        AUTO,
        "Energy in nats that is displayed as score 255; auto takes the model's value.",
        ENERGY_LIMITS,
        runtime=True,
    ),
    Spec("overlay_alpha", float, 0.8, "Opacity of overlay where the score is highest.", (0.0, 1.0), runtime=True),
    Spec("max_rate", float, 0.0, "Most frames processed per second; 0 sets no limit.", (0.0, 1000.0), runtime=True),
    Spec(
        "max_age",
        float,
        0.0,
        "Age in seconds from which a frame is skipped; 0 skips none.",
        (0.0, 3600.0),
        runtime=True,
    ),
    Spec(
        "grow_threshold",
        float,
        AUTO,
        "Energy in nats down to which an object grows around pixels above threshold; auto lies a quarter of the way "
        "from threshold to the median energy of known pixels.",
        ENERGY_LIMITS,
        runtime=True,
    ),
    Spec(
        "min_area",
        float,
        50.0,
        "Area of the smallest object in pixels, for an image that is 1024 pixels wide.",
        (1.0, 1e6),
        runtime=True,
    ),
    Spec(
        "carriers",
        list,
        [AUTO],
        "Classes on which an object can stand; auto takes them from the model's class list, and '' allows objects "
        "anywhere.",
        runtime=True,
    ),
    Spec("foot_share", float, 0.3, "Share of an object's width that must stand on carriers.", (0.0, 1.0), runtime=True),
    Spec(
        "confirm_hits",
        int,
        3,
        "Number of the last confirm_window frames in which an object must be seen to be confirmed.",
        (1, 100),
        runtime=True,
    ),
    Spec("confirm_window", int, 5, "Number of last frames in which sightings are counted.", (1, 100), runtime=True),
    Spec(
        "min_overlap",
        float,
        0.6,
        "IoU with the previous or the predicted box, 0.2 s later, from which a sighting counts; 0 counts all.",
        (0.0, 0.99),
        runtime=True,
    ),
    Spec("max_gap", float, 0.5, "Seconds without a sighting after which a track ends.", (0.0, 60.0), runtime=True),
    Spec(
        "camera_height",
        float,
        1.5,
        "Height of the camera above the ground in metres (for mounting: parameters).",
        (0.01, 99.0),
        runtime=True,
    ),
    Spec(
        "camera_pitch",
        float,
        0.0,
        "Pitch in degrees; positive if the camera looks down (for mounting: parameters).",
        ANGLES,
        runtime=True,
    ),
    Spec(
        "camera_roll",
        float,
        0.0,
        "Roll in degrees; positive if the camera is turned clockwise (for mounting: parameters).",
        ANGLES,
        runtime=True,
    ),
    Spec("camera_pitch_std", float, 0.5, "Standard deviation of the pitch in degrees.", (0.0, 45.0), runtime=True),
    Spec("camera_roll_std", float, 0.5, "Standard deviation of the roll in degrees.", (0.0, 45.0), runtime=True),
    Spec("camera_height_std", float, 0.02, "Standard deviation of the height in metres.", (0.0, 10.0), runtime=True),
)


@dataclass(frozen=True)
class Settings(PictureSettings):
    """The run-time parameters, with every "auto" replaced by the model's value."""

    max_rate: float
    """Hertz; 0 for no limit."""
    max_age: float
    """Seconds; 0 for no limit."""
    object_rules: ObjectRules | None
    """The criteria for an object; None if there is no threshold and thus no objects."""
    track_rules: TrackRules
    mounting: Mounting
    ground_frame: str

    @classmethod
    def resolve(cls, values: Mapping[str, Any], info: ModelInfo) -> Settings:
        """Make the settings from parameter values and the model's description.

        Raises:
            PebalError: the values contradict each other.
        """

        def or_model(name: str, stored: float | None) -> float | None:
            return stored if values[name] == AUTO else float(values[name])

        low, high = or_model("score_min", info.energy_range[0]), or_model("score_max", info.energy_range[1])
        assert low is not None and high is not None
        if low >= high:
            raise PebalError(f"score_min ({low:g}) must be below score_max ({high:g})")
        threshold = or_model("threshold", info.threshold)
        carriers = None if values["carriers"] == [AUTO] else [name for name in values["carriers"] if name]
        rules = None
        if threshold is not None:
            rules = ObjectRules.for_model(
                info,
                threshold,
                or_model("grow_threshold", None),
                carriers,
                min_area=values["min_area"],
                foot_share=values["foot_share"],
            )
        return cls(
            threshold=threshold,
            score_min=low,
            score_max=high,
            overlay_alpha=values["overlay_alpha"],
            max_rate=values["max_rate"],
            max_age=values["max_age"],
            object_rules=rules,
            track_rules=TrackRules(
                values["confirm_hits"],
                values["confirm_window"],
                values["max_gap"],
                min_overlap=values["min_overlap"],
            ),
            mounting=Mounting(
                values["camera_height"],
                values["camera_pitch"],
                values["camera_roll"],
                values["camera_pitch_std"],
                values["camera_roll_std"],
                values["camera_height_std"],
            ),
            ground_frame=values["ground_frame"],
        )


def documentation() -> str:
    """The content of docs/parameters.md."""
    lines = [
        "# Parameters of anomaly_node",
        "",
        "This page is generated by `python -m pebal_ros.parameters > docs/parameters.md` from the node's own table.",
        "",
        "`config/anomaly.yaml` lists all parameters with their defaults. Parameters with a tick can be changed while",
        "the node runs (`ros2 param set`); the others need a restart. A value of the wrong type or out of range is",
        "refused with the reason. At start, the process then exits; while the node runs, it keeps the old value.",
        "",
        "| name | type | default | allowed | while it runs | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for spec in PARAMETERS:
        low_high = f"{spec.limits[0]:g} … {spec.limits[1]:g}" if spec.limits else ""
        default = str(spec.default).lower() if spec.kind is bool else str(spec.default)
        cells = (
            f"`{spec.name}`", spec.type_name, f"`{default}`", low_high or ", ".join(spec.choices),
            "✓" if spec.runtime else "", spec.description,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def declare(node: Node, specs: Sequence[Spec]) -> None:
    """Declare every parameter of a table on a node, and warn about given parameters that are not in the table.

    Raises:
        PebalError: a value given at start has the wrong type or is out of range.
    """
    # Unknown parameters are no error, because a shared file (`/**:`) may hold those of other nodes.
    for name in unknown_names(getattr(node, "_parameter_overrides", {}), specs):
        similar = difflib.get_close_matches(name, [spec.name for spec in specs], 1)
        hint = f"; did you mean '{similar[0]}'?" if similar else "."
        node.get_logger().warning(f"The parameter '{name}' is ignored, because this node has no such parameter{hint}")
    for spec in specs:
        try:
            refused = spec.refusal(node.declare_parameter(spec.name, spec.default, spec.descriptor()).value)
        except InvalidParameterTypeException:
            hint = " (a whole number is written 10.0)" if spec.kind is float else ""
            refused = f"{spec.name} takes a {spec.type_name}{hint}"
        except InvalidParameterValueException:
            refused = f"{spec.name} {spec.range_text}"
        if refused:
            raise PebalError(f"The parameter {refused}.")


def unknown_names(given: Iterable[str], specs: Sequence[Spec]) -> list[str]:
    """Names of parameters given at start that neither the table nor rclpy declares."""
    known = {spec.name for spec in specs} | RCLPY_PARAMETERS
    # Only publishers have QoS overrides; input_reliability sets the QoS of the subscriptions to cameras.
    return sorted(name for name in given if name not in known and not re.match(r"qos_overrides\..*\.publisher", name))


def refusal(specs: Sequence[Spec], name: str, value: Any) -> str | None:
    """Why a parameter of a running node cannot be set to a value; None if it can."""
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is None:
        return None
    if not spec.runtime:
        return f"{name} cannot change while the node runs; restart the node with the new value"
    return spec.refusal(value)


if __name__ == "__main__":
    print(documentation(), end="")
