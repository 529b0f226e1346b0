"""The parameters of `anomaly_node` in one table, from which declaration and documentation come.

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
from pebal_core.model_file import ModelInfo
from pebal_core.objects import Mounting, ObjectRules, TrackRules
from pebal_core.outputs import PictureSettings

from .qos import BEST_EFFORT, RELIABLE

AUTO = "auto"
MOUNTINGS = NO_MOUNTING, BY_PARAMETERS, BY_TF = "none", "parameters", "tf"
RCLPY_PARAMETERS = {"use_sim_time", "start_type_description_service"}
"""What every node declares by itself."""
CAMERA_NAME = r"(/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*)?"
"""What ROS allows before a topic's own name; empty: nothing."""
TYPE_NAMES = {bool: "bool", int: "integer", float: "number", str: "string", list: "list of strings"}


@dataclass(frozen=True)
class Spec:
    """One parameter.

    A parameter whose default is "auto" but whose `kind` is not str accepts the word and values of that kind.
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
    """May change while the node runs; all others are read-only and say that a restart is needed."""

    @property
    def auto(self) -> bool:
        return self.default == AUTO and self.kind is not str

    @property
    def type_name(self) -> str:
        """The type in words, as the documentation prints it."""
        return f"{TYPE_NAMES[self.kind]} or '{AUTO}'" if self.auto else TYPE_NAMES[self.kind]

    def refusal(self, value: Any) -> str | None:
        """Why this value cannot be taken, or None if it can."""
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
            return f"{self.name} names one thing twice: {', '.join(items)}"
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
"""Degrees."""
RELIABILITIES = (RELIABLE, BEST_EFFORT)
OUTPUT_NAMES = (
    "labels", "energy", "score", "mask", "overlay", "label_colors", "objects", "obstacles", "markers",
)  # fmt: skip

PARAMETERS: tuple[Spec, ...] = (
    Spec("model", str, "starter", "Model file (.safetensors or .onnx written by pebal), or a shipped model."),
    Spec("engine", str, AUTO, "auto: the faster of those that fit the model.", choices=(AUTO, "torch", "onnxruntime")),
    Spec("device", str, AUTO, "cpu, cuda, cuda:N, tensorrt (onnxruntime), or auto: the GPU where there is one."),
    Spec("precision", str, AUTO, "Arithmetic of the network.", choices=(AUTO, "fp32", "fp16", "bf16")),
    Spec("input_height", int, 0, "Height in pixels that the network sees; 0: as the model file says.", (0, 8192)),
    Spec("input_width", int, 0, "Width in pixels that the network sees; 0: as the model file says.", (0, 8192)),
    Spec("smoothing", bool, AUTO, "Smooth the energy with a 7×7 Gaussian; auto: as the model file says."),
    Spec("cameras", list, [""], "Cameras; front has front/image, front/labels …; '' has image.", pattern=CAMERA_NAME),
    Spec("transport", str, "raw", "Subscribe to image (raw) or to image/compressed.", choices=("raw", "compressed")),
    Spec("input_reliability", str, AUTO, "auto: what the camera offers.", choices=(AUTO, *RELIABILITIES)),
    Spec("output_reliability", str, RELIABLE, "What to offer on every output.", choices=RELIABILITIES),
    Spec("output_depth", int, 1, "Messages that every output keeps for subscribers that lag behind.", (1, 100)),
    Spec("outputs", list, list(OUTPUT_NAMES), "Outputs that are offered.", choices=OUTPUT_NAMES),
    Spec("autostart", bool, True, "Configure and activate at start; false: an external lifecycle manager does."),
    Spec(
        "ignore_mask",
        str,
        "",
        "Image file that is not black where nothing may alarm; empty: the ego mask in the model file, if any.",
    ),
    Spec("object_classes", str, "", "YAML file of names under which objects are published; empty: 'anomaly'."),
    Spec("mounting", str, NO_MOUNTING, "Where the camera's height and angles come from.", choices=MOUNTINGS),
    Spec("ground_frame", str, "base_footprint", "Frame of obstacles and markers, whose z = 0 is the ground."),
    Spec("threshold", float, AUTO, "Nats from which mask is 255; auto: the model's.", ENERGY_LIMITS, runtime=True),
    Spec("score_min", float, AUTO, "Nats shown as score 0; auto: the model's.", ENERGY_LIMITS, runtime=True),
    Spec("score_max", float, AUTO, "Nats shown as score 255; auto: the model's.", ENERGY_LIMITS, runtime=True),
    Spec("overlay_alpha", float, 0.8, "Opacity of the hottest places of overlay.", (0.0, 1.0), runtime=True),
    Spec("max_rate", float, 0.0, "Frames per second answered at most; 0: no limit.", (0.0, 1000.0), runtime=True),
    Spec("max_age", float, 0.0, "Seconds after which a frame is skipped; 0: never.", (0.0, 3600.0), runtime=True),
    Spec(
        "grow_threshold",
        float,
        AUTO,
        "Nats down to which an object grows around pixels above threshold; auto: a quarter of the way to calm pixels.",
        ENERGY_LIMITS,
        runtime=True,
    ),
    Spec("min_area", float, 50.0, "Smallest object in pixels of an image that is 1024 wide.", (1.0, 1e6), runtime=True),
    Spec(
        "carriers",
        list,
        [AUTO],
        "Classes that an object can stand on; auto: by the model's class list; '': an object may be anywhere.",
        runtime=True,
    ),
    Spec("foot_share", float, 0.3, "Share of an object's width that must stand on them.", (0.0, 1.0), runtime=True),
    Spec(
        "confirm_hits",
        int,
        3,
        "Frames of the last confirm_window in which an object must be seen to be confirmed.",
        (1, 100),
        runtime=True,
    ),
    Spec("confirm_window", int, 5, "Last frames that confirm_hits counts in.", (1, 100), runtime=True),
    Spec("max_gap", float, 0.5, "Seconds without a sighting after which an object is gone.", (0.0, 60.0), runtime=True),
    Spec("camera_height", float, 1.5, "Metres above the ground (mounting: parameters).", (0.01, 99.0), runtime=True),
    Spec("camera_pitch", float, 0.0, "Degrees; positive: it looks down (mounting: parameters).", ANGLES, runtime=True),
    Spec("camera_roll", float, 0.0, "Degrees; positive: clockwise (mounting: parameters).", ANGLES, runtime=True),
    Spec("camera_pitch_std", float, 0.5, "Standard deviation of the pitch in degrees.", (0.0, 45.0), runtime=True),
    Spec("camera_roll_std", float, 0.5, "Standard deviation of the roll in degrees.", (0.0, 45.0), runtime=True),
    Spec("camera_height_std", float, 0.02, "Standard deviation of the height in metres.", (0.0, 10.0), runtime=True),
)


@dataclass(frozen=True)
class Settings(PictureSettings):
    """The run-time parameters, with every "auto" replaced by what the model file says."""

    max_rate: float
    max_age: float
    object_rules: ObjectRules | None
    """None: there is no threshold, so there are no objects."""
    track_rules: TrackRules
    mounting: Mounting
    ground_frame: str

    @classmethod
    def resolve(cls, values: Mapping[str, Any], info: ModelInfo) -> Settings:
        """Settings from parameter values and the model's description.

        Raises:
            PebalError: values that do not fit together.
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
            track_rules=TrackRules(values["confirm_hits"], values["confirm_window"], values["max_gap"]),
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
    """The page docs/parameters.md."""
    lines = [
        "# Parameters of anomaly_node",
        "",
        "Made by `python -m pebal_ros.parameters > docs/parameters.md` from the table by which the node declares them.",
        "",
        "`config/anomaly.yaml` holds all of them at their defaults. Those with a tick can be changed while the node",
        "runs (`ros2 param set`); for the others the node says that it must be restarted. What is of the wrong type or",
        "out of range is refused with the reason: at start the process ends with it, later the old value stays.",
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
    """Declare every parameter of a table on a node, with its descriptor; warn of given ones that are in no table.

    Raises:
        PebalError: a value given at start has the wrong type or is out of range.
    """
    # A shared file (`/**:`) may well hold other nodes' parameters, so these are no error.
    for name in unknown_names(getattr(node, "_parameter_overrides", {}), specs):
        similar = difflib.get_close_matches(name, [spec.name for spec in specs], 1)
        hint = f"; did you mean '{similar[0]}'?" if similar else "."
        node.get_logger().warning(f"The parameter '{name}' is ignored: this node has none of that name{hint}")
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
    """Names of parameters given at start that neither a table nor rclpy itself declares."""
    known = {spec.name for spec in specs} | RCLPY_PARAMETERS
    # Only publishers declare theirs: which QoS the node asks of a camera, input_reliability decides.
    return sorted(name for name in given if name not in known and not re.match(r"qos_overrides\..*\.publisher", name))


def refusal(specs: Sequence[Spec], name: str, value: Any) -> str | None:
    """Why a parameter of a running node cannot be set to this value, or None if it can."""
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is None:
        return None
    if not spec.runtime:
        return f"{name} cannot change while the node runs: restart the node with the new value"
    return spec.refusal(value)


if __name__ == "__main__":
    print(documentation(), end="")
