"""The ONNX Runtime engine, which runs an exported model on the CPU, CUDA or TensorRT without PyTorch."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

import numpy as np

from ..errors import PebalError
from ..model_file import METADATA_KEY
from ..model_info import ModelInfo
from ..onnx_scan import scan
from . import InputSize, size_text
from .machine import allotted_cores

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise PebalError(
        "ONNX Runtime is not installed. Run: pip install onnxruntime, or onnxruntime-gpu for CUDA and TensorRT "
        "(never both)."
    ) from error

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pebal/tensorrt"
"""Folder in which TensorRT caches its engines, which take minutes to build."""


class OnnxEngine:
    """Runs a model written by ``pebal export``.

    Args:
        model: the file, or its content.
        device: ``auto`` (CUDA if it works, else the CPU), ``cpu``, ``cuda``, ``tensorrt``, ``cuda:N`` or
            ``tensorrt:N``.
        precision: ``auto``, or the precision of the export.
        input_size: None, or the input size of the export; (0, 0) stands for the size of the image.
        smoothing: None, or the smoothing of the export.
        options: session options, in place of `session_options`.

    Raises:
        PebalError: the file is damaged or was not written by ``pebal export``, the device is unavailable, or a setting
            needs another export.
    """

    name = "onnxruntime"

    def __init__(
        self,
        model: Path | bytes,
        device: str = "auto",
        precision: str = "auto",
        input_size: InputSize | None = None,
        smoothing: bool | None = None,
        options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        kind, index = _parse_device(device)
        title = "the exported model" if isinstance(model, bytes) else str(model)
        self.info = read_metadata(model, title)
        self.precision = self.info.export.get("precision", "fp32")
        if self.precision not in ("fp32", "fp16"):
            raise PebalError(f"The metadata of {title} are damaged, because its precision is {self.precision!r:.80}.")
        _require(self.info, title, precision, input_size, smoothing)
        wanted = [kind] if kind != "auto" else ["cuda", "cpu"] if PROVIDERS["cuda"] in _available() else ["cpu"]
        for kind in wanted:
            choice = _providers(kind, index, model, self.precision)
            self.session = _open(model, title, choice, options or session_options())
            if self.session.get_providers()[0] == PROVIDERS[kind]:
                break
        else:
            raise PebalError(_failure(kind))
        _check_ends(self.session, title)
        self._memory, self._index = ("cpu", 0) if kind == "cpu" else ("cuda", index)
        self.device_name = kind if kind == "cpu" else f"{kind}:{index}"
        self.timings: dict[str, float] = {}

    @property
    def notes(self) -> list[str]:
        """Always empty; see `Engine`. The requested device is in use, or loading has failed."""
        return []

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine`. The timed stages are the copy to the device, the whole graph, and the copy back."""
        started = time.perf_counter()
        binding = self.session.io_binding()
        pixels = onnxruntime.OrtValue.ortvalue_from_numpy(images, self._memory, self._index)
        binding.bind_ortvalue_input("images", pixels)
        for output in ("labels", "energy"):
            binding.bind_output(output, self._memory, self._index)
        prepared = time.perf_counter()
        self.session.run_with_iobinding(binding)
        inferred = time.perf_counter()
        labels, energy = (output.numpy() for output in binding.get_outputs())
        self.timings = {
            "preprocess": prepared - started,
            "inference": inferred - prepared,
            "postprocess": time.perf_counter() - inferred,
        }
        return labels, energy


def _parse_device(name: str) -> tuple[str, int]:
    """Split the name of a device into kind and index.

    Raises:
        PebalError: the name is invalid, or the installed package does not support the device.
    """
    parts = re.fullmatch(r"(auto|cpu)|(cuda|tensorrt)(?::(\d+))?", name)
    if parts is None:
        raise PebalError(f"There is no device '{name}'; use auto, cpu, cuda, tensorrt, cuda:N or tensorrt:N.")
    kind = parts[1] or parts[2]
    if kind != "auto" and PROVIDERS[kind] not in _available():
        raise PebalError(
            f"The device '{name}' is not available, because the installed package {_package()} has no "
            f"{PROVIDERS[kind]}. On a machine with an NVIDIA GPU, run pip uninstall onnxruntime, then pip install "
            "onnxruntime-gpu."
        )
    return kind, int(parts[3] or 0)


def session_options() -> onnxruntime.SessionOptions:
    """Session options with as many threads as the PyTorch engine uses, and a log of errors only.

    Examples:
        >>> options = session_options()
        >>> options.intra_op_num_threads > 0, options.log_severity_level
        (True, 3)
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or allotted_cores())
    options.log_severity_level = 3
    return options


def read_metadata(model: Path | bytes, title: str) -> ModelInfo:
    """Read the description that an exported model carries.

    Args:
        model: the file, or its content.
        title: name of the model in messages.

    Raises:
        PebalError: the model is damaged or was not written by ``pebal export``; also as for `scan`.

    Examples:
        >>> from onnx.helper import make_graph, make_model
        >>> from pebal_core.model_file import onnx_with_info
        >>> empty = make_model(make_graph([], "empty", [], [])).SerializeToString()
        >>> read_metadata(onnx_with_info(empty, ModelInfo("espnetv2", threshold=-4.0)), "empty.onnx").threshold
        -4.0
    """
    try:
        metadata = scan(model if isinstance(model, bytes) else model.read_bytes(), title).metadata
    except OSError as error:
        raise PebalError(f"{title} cannot be read: {error.strerror}.") from error
    if METADATA_KEY not in metadata:
        raise PebalError(f"{title} has no '{METADATA_KEY}' metadata, so it was not written by 'pebal export'.")
    return ModelInfo.from_json(metadata[METADATA_KEY], Path(title))


def _available() -> list[str]:
    return onnxruntime.get_available_providers()


def _providers(kind: str, index: int, model: Path | bytes, precision: str) -> list[tuple[str, dict[str, str]]]:
    """The execution provider and the fallbacks for single operations, each with its options."""
    cpu: tuple[str, dict[str, str]] = (PROVIDERS["cpu"], {})
    cuda = (PROVIDERS["cuda"], {"device_id": str(index)})
    if kind == "cpu":
        return [cpu]
    if kind == "cuda":
        return [cuda, cpu]
    content = model if isinstance(model, bytes) else model.read_bytes()
    # ONNX Runtime adds the GPU's architecture and the shapes to the file names.
    folder = CACHE / f"{hashlib.sha256(content).hexdigest()[:16]}-{onnxruntime.__version__}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PebalError(
            f"TensorRT's cache {folder} cannot be created: {error.strerror}; set XDG_CACHE_HOME to another folder."
        ) from error
    tensorrt = {
        "device_id": str(index),
        "trt_fp16_enable": str(precision == "fp16"),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
    }
    return [(PROVIDERS["tensorrt"], tensorrt), cuda, cpu]


def _open(
    model: Path | bytes, title: str, choice: list[tuple[str, dict[str, str]]], options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    if choice[0][0] != PROVIDERS["cpu"]:
        onnxruntime.preload_dlls()  # finds CUDA and cuDNN if pip installed them
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=choice
        )
    except Exception as error:  # its exceptions have no common base
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise PebalError(f"{title} cannot be loaded by ONNX Runtime ({reason}); copy or export it again.") from error


def _check_ends(session: onnxruntime.InferenceSession, title: str) -> None:
    """Refuse a graph whose inputs and outputs differ from those of ``pebal export``."""
    ends = [(end.name, end.type, len(end.shape)) for end in (*session.get_inputs(), *session.get_outputs())]
    if ends != [("images", "tensor(uint8)", 4), ("labels", "tensor(uint8)", 3), ("energy", "tensor(float)", 3)]:
        raise PebalError(
            f"{title} does not compute labels and energy from images; export it again with 'pebal export'."
        )


def _package() -> str:
    return f"{getattr(onnxruntime, 'package_name', 'onnxruntime')} {onnxruntime.__version__}"


def _failure(kind: str) -> str:
    """Explain why a provider that the package contains could not be started."""
    needed = f"CUDA {getattr(onnxruntime, 'cuda_version', '')}".strip() + " and cuDNN"
    if kind == "tensorrt":
        needed += " and TensorRT"
    return (
        f"ONNX Runtime could not start {PROVIDERS[kind]}; its message is above. {_package()} was built for {needed}. "
        "Install the NVIDIA driver and these libraries, or set device to cpu."
    )


def _require(info: ModelInfo, title: str, precision: str, input_size: InputSize | None, smoothing: bool | None) -> None:
    """Refuse settings that differ from those of the export.

    Raises:
        PebalError: another export is needed.
    """
    stored = info.export.get("precision", "fp32")
    if precision not in ("auto", stored):
        raise PebalError(f"{title} computes in {stored}. For {precision}, export it with --precision {precision}.")
    size = tuple(info.input_size) if info.input_size else (0, 0)
    if input_size not in (None, size):
        option = f"--input-size {' '.join(map(str, input_size))}" if any(input_size) else "--dynamic"
        fixed = f"runs at {size_text(size)}" if any(size) else "runs at the size of the image"
        raise PebalError(f"{title} {fixed}. For another size, export it with {option}.")
    if smoothing not in (None, info.smoothing):
        raise PebalError(
            f"The smoothing of {title} is {info.smoothing} and is part of its graph, so it cannot be changed. Set "
            "smoothing to auto."
        )
