"""Selects the engine that runs a model; ``auto`` picks the fastest one that can run it."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import PebalError
from ..installation import explained_imports
from ..model_file import ONNX, file_sha256, load_model, read_info
from ..model_info import ModelInfo
from . import Engine, InputSize, network_size

NOMINAL_SIZE = (512, 1024)
"""(height, width) of the image on which engines are compared if the model has no input size."""
TURNS = 3
REST = 0.1
"""Pause in seconds between two runs, because idle threads of ONNX Runtime keep spinning and slow down the next run."""


class EngineSettings(NamedTuple):
    """Requested settings of an engine; see `AnomalyDetector.load`."""

    device: str
    precision: str
    input_size: InputSize | None
    smoothing: bool | None


class Selected(NamedTuple):
    """An engine with its model."""

    engine: Engine
    info: ModelInfo
    path: Path
    reason: str = ""
    """Why this engine was chosen, if there was a choice."""


def select(path: Path, engine: str, settings: EngineSettings) -> Selected:
    """Load a model on the engine ``torch``, ``onnxruntime`` or ``auto``.

    An .onnx file runs only on ONNX Runtime. A .safetensors file runs on PyTorch, and also on ONNX Runtime if its export
    is stored beside it under the same name.

    Raises:
        PebalError: the model cannot run with these settings.

    Examples:
        >>> from pebal_core.model_file import resolve_model
        >>> settings = EngineSettings("cpu", "fp32", input_size=None, smoothing=None)
        >>> engine, info, path, reason = select(resolve_model("starter"), "torch", settings)
        >>> engine.name, engine.device_name, info.num_outputs
        ('torch', 'cpu', 20)
    """
    if path.suffix == ONNX:
        if engine == "torch":
            raise PebalError(
                f"{path} runs only on onnxruntime; for torch, use the .safetensors file that it was made from."
            )
        return _on_onnx_runtime(path, settings)
    if engine == "onnxruntime" or settings.device.startswith("tensorrt"):
        return _on_onnx_runtime(_exported(path), settings)
    if engine == "torch" or not path.with_suffix(ONNX).is_file():
        return _on_torch(path, settings)
    one = _on_torch(path, settings)
    try:  # both run at the same precision, so that `auto` never trades precision for speed
        other = _on_onnx_runtime(_exported(path), settings._replace(precision=one.engine.precision))
    except PebalError as error:
        return one._replace(reason=f"The engine is torch. {error}")
    return _faster(one, other)


def _exported(path: Path) -> Path:
    """Path of the ONNX model that was exported from a .safetensors file and is stored beside it.

    Raises:
        PebalError: there is no such model, or it was exported from another file.
    """
    sibling = path.with_suffix(ONNX)
    if not sibling.is_file():
        raise PebalError(f"There is no {sibling.name} next to {path}; for ONNX Runtime, create it with 'pebal export'.")
    if model_info(sibling).export.get("sha256") != file_sha256(path):
        raise PebalError(f"{sibling} was not made from the present {path.name}; create it again with 'pebal export'.")
    return sibling


def model_info(path: Path) -> ModelInfo:
    """Read the description of a model file of either kind, without its weights.

    Raises:
        PebalError: the file is truncated, or carries no metadata of this project.

    Examples:
        >>> from pebal_core.model_file import resolve_model
        >>> model_info(resolve_model("starter")).network
        'deeplabv3plus'
    """
    if path.suffix != ONNX:
        return read_info(path)
    from .onnx import read_metadata

    return read_metadata(path, str(path))


def _faster(one: Selected, other: Selected) -> Selected:
    """Time both engines on an image, in turns, and return the faster one."""
    height, width = network_size(tuple(one.info.input_size or ()) or None, *NOMINAL_SIZE)
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    seconds: dict[str, list[float]] = {}
    for _ in range(TURNS + 1):
        for selected in (one, other):
            time.sleep(REST)
            started = time.perf_counter()
            selected.engine(image)
            seconds.setdefault(selected.engine.name, []).append(time.perf_counter() - started)
    medians = {name: statistics.median(turns[1:]) for name, turns in seconds.items()}
    best, slower = sorted((one, other), key=lambda selected: medians[selected.engine.name])
    times = (
        f"{1e3 * medians[s.engine.name]:.0f} ms of {s.engine.name} on {s.engine.device_name}" for s in (best, slower)
    )
    reason = (
        f"The engine is {best.engine.name}: {' against '.join(times)} for an image of {height}×{width} "
        f"(medians of {TURNS} in turns)."
    )
    return best._replace(reason=reason)


def _on_torch(path: Path, settings: EngineSettings) -> Selected:
    with explained_imports():
        from .torch import TorchEngine

        network, info = load_model(path)
    device, precision, input_size, smoothing = settings
    if input_size is None and info.input_size is not None:
        input_size = tuple(info.input_size)
    engine = TorchEngine(
        network,
        info,
        device,
        precision,
        input_size=None if input_size == (0, 0) else input_size,
        smoothing=info.smoothing if smoothing is None else smoothing,
    )
    return Selected(engine, info, path)


def _on_onnx_runtime(path: Path, settings: EngineSettings) -> Selected:
    from .onnx import OnnxEngine

    engine = OnnxEngine(path, *settings)
    return Selected(engine, engine.info, path)
