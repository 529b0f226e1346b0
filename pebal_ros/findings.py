"""Derives the most important finding about a camera from its state, as one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from diagnostic_msgs.msg import DiagnosticStatus

from pebal_core.outputs import OUTPUTS

from .camera import Camera
from .camera_input import TopicState
from .parameters import NO_MOUNTING, Settings
from .stream_statistics import RATE_WINDOW, CameraSnapshot

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

PATIENCE = 3.0
"""Seconds without a frame before it is reported as a fault, because discovery and the first frame take some time."""
OVERLOAD_SHARE = 0.1
"""The camera counts as faster than the model if more than this share of its frames is dropped."""
CLOCK_TOLERANCE = (-0.5, 10.0)
"""Range of the seconds from a stamp to its arrival. Outside it, clocks disagree or a recording is played."""


class Code(Enum):
    """The kinds of findings about a camera. They are the value ``finding`` of its status; see docs/operations.md."""

    STARTING = "starting"
    RUNNING = "running"
    UNHEARD = "unheard"
    NO_PUBLISHER = "no publisher"
    WRONG_TYPE = "wrong type"
    INCOMPATIBLE_QOS = "incompatible QoS"
    NO_FRAME = "no frame"
    BAD_FRAMES = "bad frames"
    NO_CLOCK = "no clock"
    CLOCKS = "clocks"
    SEVERAL_PUBLISHERS = "several publishers"
    OUTPUTS = "outputs"
    NO_THRESHOLD = "no threshold"
    REFUSED = "refused"
    DRIFT = "drift"
    IGNORE_MASK = "ignore mask"
    NO_GEOMETRY = "no geometry"
    TOO_OLD = "too old"
    OVERLOAD = "overload"
    CLUTTERED = "cluttered"


class NodeState(Enum):
    """The states of the node. They are the value ``state`` of the model's status, and also its kind of finding."""

    UNCONFIGURED = "unconfigured"
    LOADING = "loading the model"
    CONFIGURING = "configuring"
    INACTIVE = "inactive"
    ACTIVATING = "activating"
    ACTIVE = "active"
    PAUSED = "paused by set_enabled"
    DEACTIVATING = "deactivating"
    CLEANING_UP = "cleaning up"
    SHUTTING_DOWN = "shutting down"
    FINALIZED = "finalized"


@dataclass(frozen=True)
class Finding:
    """One fact about a camera or the node."""

    level: bytes
    """OK, WARN or ERROR."""
    code: Code | NodeState | None
    """The kind of finding, for programs. A finding is logged only if its code differs from the last one, and a finding
    without a code is never logged."""
    sentence: str
    """The finding in one sentence."""


def examine(camera: Camera, seen: CameraSnapshot, settings: Settings) -> Finding:
    """The most important finding about a camera that should be sending; `seen` is the snapshot of its record."""
    waited, age = seen.opened_for, seen.age
    silent_for = waited if age is None else min(age, waited)
    topic, state = camera.input.topic, camera.input.state
    if silent_for > PATIENCE:
        return _silence(camera, topic, state, silent_for)
    if age is None:
        return Finding(OK, Code.STARTING, f"Waiting for the first frame on {topic}.")
    if seen.last_was_bad:
        return Finding(ERROR, Code.BAD_FRAMES, seen.last_error)
    if camera.clock_missing:
        return Finding(
            WARN,
            Code.NO_CLOCK,
            "use_sim_time is set, but nothing publishes /clock, so the age of a frame is not known. Play the "
            "recording with --clock, or unset use_sim_time.",
        )
    if not CLOCK_TOLERANCE[0] <= seen.clock_offset <= CLOCK_TOLERANCE[1]:
        return _clocks(topic, seen.clock_offset, camera.simulated)
    if state.publishers > 1:
        return Finding(
            WARN,
            Code.SEVERAL_PUBLISHERS,
            f"{topic} has {state.publishers} publishers, so frames of different cameras may be mixed.",
        )
    complaint = camera.outputs.complaint()
    if complaint:
        return Finding(WARN, Code.OUTPUTS, complaint)
    if not camera.outputs.wanted(settings):
        unmet = [name for name, output in OUTPUTS.items() if output.needs_threshold and camera.outputs.heard(name)]
        if unmet:
            return Finding(
                WARN,
                Code.NO_THRESHOLD,
                f"{unmet[0]} has a subscriber, but the model stores no threshold. Set the parameter threshold.",
            )
        return Finding(
            OK, Code.UNHEARD, f"Frames arrive on {topic}, but no output has a subscriber, so nothing is computed."
        )
    if seen.refused:
        return Finding(WARN, Code.REFUSED, seen.last_error)
    report = camera.objects.report
    if report.no_mask:
        return Finding(WARN, Code.IGNORE_MASK, report.no_mask)
    if report.no_geometry:
        return Finding(WARN, Code.NO_GEOMETRY, report.no_geometry)
    if camera.objects.mounting == NO_MOUNTING and camera.outputs.heard("obstacles"):
        return Finding(
            WARN,
            Code.NO_GEOMETRY,
            "obstacles has a subscriber, but mounting is none, so no distance is known. Set mounting to parameters "
            "or tf.",
        )
    rate_in, rate_out = seen.rate_in, seen.rate_out
    if not rate_out and seen.wanted_for < RATE_WINDOW:
        return Finding(OK, None, f"The first frames from {topic} are being answered.")
    if camera.drift:
        return Finding(
            WARN, Code.DRIFT, f"{camera.drift} Adapt the model to such scenes (pebal adapt), or calibrate it on them."
        )
    served = f"{rate_out:.1f} of {rate_in:.1f} frames per second from {topic} are answered"
    asked = min(rate_in, settings.max_rate) if settings.max_rate else rate_in
    behind = rate_out < (1 - OVERLOAD_SHARE) * asked
    dropped, stale = seen.rate_dropped, seen.rate_stale
    if behind and stale > max(OVERLOAD_SHARE * rate_in, dropped):
        return Finding(
            WARN,
            Code.TOO_OLD,
            f"{served}. The others are older than max_age ({settings.max_age:g} s) when their turn comes, and the "
            f"last one arrived {seen.clock_offset:.1f} s after its stamp. Raise max_age, or synchronise the clocks.",
        )
    if behind and dropped > OVERLOAD_SHARE * rate_in:
        return Finding(
            WARN, Code.OVERLOAD, f"{served}. The camera is faster than the model, so older frames are dropped."
        )
    if report.left_out:
        return Finding(
            WARN,
            Code.CLUTTERED,
            f"{served}. {report.left_out} object candidates were skipped to bound the processing time. Raise "
            "threshold or min_area.",
        )
    return Finding(OK, Code.RUNNING, f"{served}.")


def _silence(camera: Camera, topic: str, state: TopicState, seconds: float) -> Finding:
    """The finding that explains why no frame arrives."""
    if state.wrong_types and not state.publishers:
        return Finding(
            ERROR,
            Code.WRONG_TYPE,
            f"{topic} carries {', '.join(sorted(state.wrong_types))}, not {camera.input.type_name}. Remap "
            f"'{camera.prefix}image' to the camera's image topic, or set the parameter transport.",
        )
    if not state.publishers:
        return Finding(
            ERROR,
            Code.NO_PUBLISHER,
            f"{topic} has no publisher. Start the camera, or remap '{camera.prefix}image' to its topic ('ros2 topic "
            "list -t' shows them).",
        )
    if camera.input.incompatible:
        return Finding(
            ERROR,
            Code.INCOMPATIBLE_QOS,
            f"{topic} is published best effort, but input_reliability asks for reliable, so no frame can arrive. Set "
            "input_reliability to auto.",
        )
    return Finding(
        ERROR,
        Code.NO_FRAME,
        f"No frame has arrived on {topic} for {seconds:.0f} s, although it has a publisher. Check whether the camera "
        "is stalled.",
    )


def _clocks(topic: str, offset: float, simulated: bool) -> Finding:
    where = f"{-offset:.1f} s in the future" if offset < 0 else f"{offset:.1f} s in the past"
    advice = (
        "Because use_sim_time is set, the player of the images must also publish /clock"
        if simulated
        else "Synchronise the clocks, or set use_sim_time for a recording"
    )
    return Finding(WARN, Code.CLOCKS, f"The stamps on {topic} are {where}. {advice}.")
