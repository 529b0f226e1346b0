"""Checks an installation; each check reports its finding and, if something is wrong, a remedy.

ROS and PyTorch are imported in separate processes, so that a broken installation is reported and does not crash.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from .data.anomaly_sets import open_set
from .data.scenes import open_scenes
from .detector import AnomalyDetector
from .engines import InputSize, network_size
from .engines.machine import allotted_cores
from .errors import PebalError
from .installation import PROJECT, Requirement, installed_version, pip_line, requirements, unmet

OK, NOTE, WARNING, ERROR = "ok", "note", "warning", "error"
PYTHONS = ((3, 10), (3, 12))
CONSTRAINED = ("humble", "iron", "jazzy")
"""Distributions whose Fast DDS knows only the old name of the variable for its profile."""
OLD_PROFILE, NEW_PROFILE = "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"
SEGMENT_NEEDED = 16 << 20
"""Bytes of shared memory that a process needs to send images; the profile in config/fastdds.xml uses 64 MiB."""
FILES_NEEDED = 256
DISK_NEEDED = 2e9
LOADING = 120.0
"""Longest time in seconds that an import may take."""
EXTRAS = {
    "train": "training",
    "onnx": "export and ONNX Runtime",
    "benchmark": "submission files and plots",
    "demo": "the demo",
    "rerun": "'pebal triage --rerun'",
    "ray": "more than one process or machine (--ray)",
}
"""Extras of the package that are checked, and their purpose."""
TRIED = {
    "torch": "import torch, torchvision; print(torch.__version__, 'CUDA', torch.version.cuda, "
    "torch.cuda.is_available(), *(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())))",
    "onnxruntime": "import onnxruntime as o; print(o.__version__, *o.get_available_providers())",
    "rclpy": "import rclpy, sensor_msgs.msg; print(rclpy.get_rmw_implementation_identifier())",
    "vision_msgs": "from vision_msgs.msg import Detection2DArray, LabelInfo; print('found')",
    "tf2_ros": "import tf2_ros; print('found')",
}
"""Code by module that a separate process runs to import it and to print its version or a note."""


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    level: str
    """ok, note (something optional is absent), warning (works, but not well), or error (does not work)."""
    found: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """The finding as JSON types."""
        return asdict(self)


def examine(
    model: str,
    engine: str,
    device: str,
    precision: str,
    input_size: InputSize | None,
    datasets: Sequence[str] = (),
    scenes: Sequence[str] = (),
) -> Iterator[Check]:
    """Run all checks and yield their findings.

    Args:
        model, engine, device, precision, input_size: as for `AnomalyDetector.load`.
        datasets: evaluation sets as NAME=FOLDER.
        scenes: labelled scenes as LAYOUT=FOLDER or LAYOUT:SPLIT=FOLDER.

    Examples:
        >>> checks = examine("starter", "torch", "cpu", "fp32", None)
        >>> next(checks).name
        'python'
    """
    yield _check_python()
    yield from check_packages()
    yield _check_machine()
    yield from _check_torch()
    yield from _check_onnx_runtime()
    yield from check_ros(os.environ)
    yield check_model(model, engine, device, precision, input_size)
    for item in datasets:
        yield _check_data("data set", item, lambda name, folder: len(open_set(name, folder).pairs))
    for item in scenes:
        yield _check_data("scenes", item, _count_scenes)


def _check_python() -> Check:
    """Check the version of Python."""
    version = ".".join(map(str, sys.version_info[:3]))
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Check("python", ERROR, f"Python {version} in {sys.prefix}", "Use Python 3.10, 3.11 or 3.12.")
    return Check("python", OK, f"Python {version} in {sys.prefix}")


def check_packages() -> Iterator[Check]:
    """Check the requirements of the package and its extras, and packages that must not be installed together.

    Examples:
        >>> next(check_packages()).name
        'packages'
    """
    declared = {requirement.extra for requirement in requirements()}
    if not declared:
        yield Check(
            "packages", NOTE, f"{PROJECT} was not installed by pip, so its requirements are not known",
            "On a machine without ROS 2: source scripts/environment.sh.",
        )  # fmt: skip
        return
    if wrong := unmet():
        yield Check("packages", ERROR, _named(wrong), pip_line(*map(str, wrong)))
    else:
        yield Check("packages", OK, "everything that is required is installed")
    for extra, purpose in EXTRAS.items():
        if extra not in declared:
            continue
        if wrong := unmet(extra):
            found, remedy = f"for {purpose}: {_named(wrong)}", f"If you need it: {pip_line(f'{PROJECT}[{extra}]')}"
            yield Check(f"extra {extra}", NOTE, found, remedy)
        else:
            yield Check(f"extra {extra}", OK, f"{purpose}: everything is installed")
    for kept, others in (("onnxruntime-gpu", ["onnxruntime"]), ("opencv-python-headless", ["opencv-python"])):
        both = [name for name in [kept, *others] if installed_version(name)]
        if len(both) > 1:
            yield Check(
                kept, ERROR, f"{' and '.join(both)} are both installed, and each overwrites files of the other",
                f"pip uninstall {' '.join(both)}, then pip install {kept}",
            )  # fmt: skip


def _named(wrong: Sequence[Requirement]) -> str:
    found = ((one, installed_version(one.package)) for one in wrong)
    return ", ".join(
        f"{one} is needed, but {version} is installed" if version else f"{one} is missing" for one, version in found
    )


def _check_machine() -> Check:
    """Check CPU cores, shared memory, open files and disk space."""
    cores, files = allotted_cores(), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    free = shutil.disk_usage(Path.cwd()).free
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    found = f"{cores} cores, {free / 1e9:.0f} GB free in {Path.cwd()}, {shared / 1e6:.0f} MB of shared memory"
    if shared < SEGMENT_NEEDED:
        return Check("machine", WARNING, found, "Give the container more shared memory: docker run --shm-size=512m.")
    if files < FILES_NEEDED:
        return Check("machine", WARNING, f"{found}, {files} open files", "Allow more open files: ulimit -n 1024.")
    if free < DISK_NEEDED:
        return Check("machine", WARNING, found, "Free some space: results and caches take gigabytes.")
    return Check("machine", OK, found)


def _check_torch() -> Iterator[Check]:
    """Check that PyTorch can be imported and finds the GPU, if there is one."""
    if importlib.util.find_spec("torch") is None:
        yield Check(
            "torch", NOTE, "not installed; only .onnx models run", "If you need it: pip install torch torchvision"
        )
        return
    works, output = _try_import("torch")
    if not works:
        remedy = "pip install --force-reinstall torch torchvision; without a GPU, no CUDA packages are needed."
        yield Check("torch", ERROR, f"cannot be imported: {output}", remedy)
        return
    version, cuda, available = re.match(r"(\S+) CUDA (\S+) (True|False)", output).groups()  # type: ignore[union-attr]
    if available == "True":
        yield Check("torch", OK, f"PyTorch {output.replace(' True', ' on')}")
    elif cuda != "None" and shutil.which("nvidia-smi"):
        yield Check(
            "torch", WARNING, f"PyTorch {version} for CUDA {cuda} sees no GPU, although nvidia-smi is there",
            f"Is the driver new enough for CUDA {cuda} (nvidia-smi)? Is the container run with --gpus all?",
        )  # fmt: skip
    else:
        yield Check("torch", OK, f"PyTorch {version} on the CPU; there is no GPU")


def _check_onnx_runtime() -> Iterator[Check]:
    """Check that ONNX Runtime can be imported and supports the GPU, if there is one."""
    if importlib.util.find_spec("onnxruntime") is None:
        yield Check(
            "onnxruntime", NOTE, "not installed", "If you need it: pip install onnxruntime (or onnxruntime-gpu)"
        )
        return
    works, output = _try_import("onnxruntime")
    if not works:
        yield Check("onnxruntime", ERROR, f"cannot be imported: {output}", "pip install --force-reinstall onnxruntime")
    elif shutil.which("nvidia-smi") and "CUDAExecutionProvider" not in output:
        yield Check(
            "onnxruntime", WARNING, f"ONNX Runtime {output}; there is a GPU, but this package does not use it",
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu",
        )  # fmt: skip
    else:
        yield Check("onnxruntime", OK, f"ONNX Runtime {output}")


def check_ros(environment: Mapping[str, str]) -> Iterator[Check]:
    """Check rclpy, the ROS packages that the node uses, and the environment variables of the middleware.

    Examples:
        >>> next(check_ros({})).name
        'ros'
    """
    distribution = environment.get("ROS_DISTRO", "")
    works, output = _try_import("rclpy")
    if not works:
        if distribution:
            yield Check(
                "ros", ERROR, f"ROS 2 {distribution} is sourced, but rclpy cannot be imported: {output}",
                "Use the Python of the distribution: python3 -m venv --system-site-packages, or source "
                "scripts/environment.sh in this shell.",
            )  # fmt: skip
        else:
            yield Check(
                "ros", NOTE, f"rclpy is missing ({output}); the offline commands do not need it",
                "For the node: source /opt/ros/DISTRO/setup.bash, or without ROS 2 source scripts/environment.sh.",
            )  # fmt: skip
        return
    yield Check("ros", OK, f"ROS 2 {distribution or 'as wheels'} with {output}")
    yield _check_index(environment)
    for module, purpose in (("vision_msgs", "objects and label_info"), ("tf2_ros", "mounting: tf")):
        works, output = _try_import(module)
        if not works:
            yield Check(
                module, NOTE, f"not installed; {purpose} needs it",
                f"If you need it: apt install ros-{distribution or 'DISTRO'}-{module.replace('_', '-')}",
            )  # fmt: skip
    if "fastrtps" in (environment.get("RMW_IMPLEMENTATION") or output):
        yield check_transport(environment, distribution)
    yield check_discovery(environment)


def _check_index(environment: Mapping[str, str]) -> Check:
    prefixes = [Path(prefix) for prefix in environment.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    if any((prefix / "share/ament_index/resource_index/packages/pebal_ros").is_file() for prefix in prefixes):
        return Check("ament index", OK, "ros2 run and ros2 launch find pebal_ros")
    return Check(
        "ament index", WARNING,
        "ros2 run and ros2 launch do not find pebal_ros, but python -m pebal_ros.anomaly_node still works",
        "source install/setup.bash after colcon build, or scripts/environment.sh",
    )  # fmt: skip


def check_transport(environment: Mapping[str, str], distribution: str) -> Check:
    """Check the Fast DDS profile, without which images between processes get lost.

    Examples:
        >>> check_transport({}, "jazzy").found
        'FASTRTPS_DEFAULT_PROFILES_FILE is not set, so most large images will not arrive'
    """
    name = "transport profile"
    ours = Path(__file__).parents[1] / "config" / "fastdds.xml"
    path = ours if ours.is_file() else Path("…/share/pebal_ros/config/fastdds.xml")
    wanted = OLD_PROFILE if distribution in CONSTRAINED else NEW_PROFILE
    remedy = f"export {wanted}={path}"
    given = environment.get(wanted, "")
    if not given:
        other = OLD_PROFILE if wanted == NEW_PROFILE else NEW_PROFILE
        wrong = (
            f" (only {other} is, which this version does not read)"
            if environment.get(other) and wanted == OLD_PROFILE
            else ""
        )
        return Check(name, WARNING, f"{wanted} is not set{wrong}, so most large images will not arrive", remedy)
    try:
        root = ElementTree.parse(given).getroot()
    except (OSError, ElementTree.ParseError) as error:
        return Check(name, ERROR, f"{wanted} is set to {given}, which cannot be read: {error}", remedy)
    sizes = [int(one.text or 0) for one in root.iter() if one.tag.rpartition("}")[2] == "segment_size"]
    if not sizes or max(sizes) < SEGMENT_NEEDED:
        return Check(name, WARNING, f"{given} sets too little shared memory for images", remedy)
    return Check(name, OK, f"{given}: {max(sizes) >> 20} MB of shared memory per process")


def check_discovery(environment: Mapping[str, str]) -> Check:
    """Check the discovery settings, which can keep nodes from finding each other.

    Examples:
        >>> check_discovery({"ROS_DOMAIN_ID": "7"}).found
        'domain 7, the local network'
        >>> check_discovery({"ROS_DOMAIN_ID": "seven"}).remedy
        'Set it to a number from 0 to 101.'
    """
    domain, reach = environment.get("ROS_DOMAIN_ID", "0"), environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "")
    if not (domain.isdecimal() and int(domain) <= 232):
        return Check("discovery", ERROR, f"ROS_DOMAIN_ID is '{domain}'", "Set it to a number from 0 to 101.")
    if reach.upper() == "OFF":
        return Check(
            "discovery", WARNING, "ROS_AUTOMATIC_DISCOVERY_RANGE is OFF, so nodes find only ROS_STATIC_PEERS",
            "unset ROS_AUTOMATIC_DISCOVERY_RANGE, or set it to SUBNET",
        )  # fmt: skip
    if environment.get("FASTDDS_BUILTIN_TRANSPORTS") == "LARGE_DATA" and reach.upper() == "LOCALHOST":
        return Check(
            "discovery", WARNING, "ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST cancels FASTDDS_BUILTIN_TRANSPORTS",
            "unset FASTDDS_BUILTIN_TRANSPORTS and use the transport profile",
        )  # fmt: skip
    local = environment.get("ROS_LOCALHOST_ONLY") == "1" or reach.upper() == "LOCALHOST"
    return Check("discovery", OK, f"domain {domain}, {'this machine only' if local else 'the local network'}")


def check_model(model: str, engine: str, device: str, precision: str, input_size: InputSize | None = None) -> Check:
    """Load the model with the given settings and run it on one image.

    Examples:
        >>> check_model("missing", "torch", "cpu", "fp32").found
        "There is no model 'missing'"
    """
    try:
        detector = AnomalyDetector.load(model, engine, device, precision, input_size)
        height, width = network_size(tuple(detector.info.input_size or ()) or None, 96, 160)
        detector(np.zeros((height, width, 3), np.uint8))
    except PebalError as error:
        sentence, remedy = [*re.split(r"[:;.] ", str(error), maxsplit=1), "Choose another with --model."][:2]
        return Check("model", ERROR, sentence, remedy[:1].upper() + remedy[1:])
    except Exception as error:  # an engine that loads but cannot compute must be reported as well
        first = next(iter(str(error).splitlines()), "no reason given")
        return Check("model", ERROR, f"{model} cannot be run: {type(error).__name__}: {first}", "Try --device cpu.")
    milliseconds = 1e3 * sum(detector.timings.values())
    runs = (
        f"{detector.model_path.name} ({detector.model_sha256[:12]}) on {detector.engine_name}, {detector.device_name}"
    )
    found = f"{runs}: {milliseconds:.0f} ms for the first {width}×{height} image"
    if detector.info.threshold is None:
        return Check("model", WARNING, f"{found}; it stores no alarm threshold", "Choose one with 'pebal calibrate'.")
    return Check("model", OK, f"{found}; threshold {detector.info.threshold:g} nats")


def _check_data(kind: str, item: str, count: Callable[[str, str], int]) -> Check:
    name, _, folder = item.partition("=")
    if not folder:
        return Check(f"{kind} {item}", ERROR, f"'{item}' does not name a folder", "Write NAME=FOLDER.")
    try:
        number = count(name, folder)
    except PebalError as error:
        return Check(f"{kind} {name}", ERROR, str(error), "Correct the folder or the name.")
    return Check(f"{kind} {name}", OK, f"{number} images in {folder}")


def _count_scenes(layout: str, folder: str) -> int:
    layout, _, split = layout.partition(":")
    return len(open_scenes(layout, folder, split or "val"))


def _try_import(module: str) -> tuple[bool, str]:
    """Run the code of `TRIED` in a separate process; returns whether it succeeds, and its output or the error."""
    try:
        done = subprocess.run([sys.executable, "-c", TRIED[module]], capture_output=True, text=True, timeout=LOADING)
    except subprocess.TimeoutExpired:
        return False, f"nothing happened for {LOADING:.0f} s"
    if done.returncode == 0:
        return True, done.stdout.strip()
    lines = done.stderr.strip().splitlines()
    return False, lines[-1] if lines else f"the process ended with status {done.returncode}"
