"""Runs any segmentation network from an ONNX file whose output is the logits. It serves benchmarks only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..detector import AnomalyDetector, check_input_size
from ..engines import InputSize, network_size
from ..engines.logits import Logits, LogitsEngine
from ..errors import PebalError, one_line
from ..labels import CITYSCAPES_CLASSES
from ..model_file import METADATA_KEY
from ..model_info import ModelInfo
from ..onnx_scan import scan

MULTIPLE = 32
"""The sides of images are padded to a multiple of this where the network takes any size."""


class _OnnxLogits(LogitsEngine):
    """Runs the network in ONNX Runtime on the CPU.

    Args:
        session: an `onnxruntime.InferenceSession` with one input N×3×H×W float32 (normalised RGB) and an output of
            logits N×K×h×w, or N×(K+1)×h×w where the abstention channel is the last.
        info: of a model with K classes.
        input_size: as of `LogitsEngine`; a network with a fixed size runs at its own.
    """

    name = "onnxruntime, logits"
    precision = "fp32"

    def __init__(self, session: Any, info: ModelInfo, input_size: InputSize | None) -> None:
        shape = session.get_inputs()[0].shape
        self._fixed = (shape[2], shape[3]) if isinstance(shape[2], int) and isinstance(shape[3], int) else None
        super().__init__(self._fixed or input_size, info.smoothing)
        self.session, self.info = session, info
        self.device_name = "cpu"
        self._mean = np.array(info.mean, np.float32).reshape(1, 3, 1, 1) * 255
        self._std = np.array(info.std, np.float32).reshape(1, 3, 1, 1) * 255

    def logits(self, images: np.ndarray, input_size: InputSize | None) -> Logits:
        seen = network_size(input_size, images.shape[1], images.shape[2])
        if self._fixed is not None and seen != self._fixed:
            raise PebalError(
                f"The network accepts only images of {self._fixed[0]}×{self._fixed[1]}, so windows of another size "
                "cannot be evaluated. Export it with free sizes, or use another protocol than pebal."
            )
        started = time.perf_counter()
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        if tuple(pixels.shape[-2:]) != seen:
            pixels = F.interpolate(pixels, seen, mode="bilinear", antialias=True)
        height, width = seen
        if self._fixed is None:
            pixels = F.pad(pixels, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        batch = (pixels.numpy() - self._mean) / self._std
        prepared = time.perf_counter()
        values = torch.from_numpy(_find_logits(self.session.run(None, {self.session.get_inputs()[0].name: batch})))
        if values.shape[1] == len(self.info.class_names):  # without abstention; nothing reads this channel
            values = F.pad(values, (0, 0, 0, 0, 0, 1))
        self.timings = {"preprocess": prepared - started, "inference": time.perf_counter() - prepared}
        return Logits(values, (batch.shape[2], batch.shape[3]), (height, width))


def load_onnx(path: Path, input_size: InputSize | None = None) -> AnomalyDetector:
    """Load an ONNX file with logits as a detector.

    A file without metadata of this project is assumed to take RGB images with ImageNet's normalisation. Then 19 outputs
    are the Cityscapes trainIds, 20 are the same and an abstention, and any other number are unnamed classes.

    Raises:
        PebalError: no such file, no ONNX Runtime, or a file without logits.

    Examples:
        >>> import tempfile
        >>> from onnx import TensorProto, helper, save
        >>> shape = TensorProto.FLOAT, ["n", 3, "h", "w"]
        >>> image, logits = (helper.make_tensor_value_info(name, *shape) for name in ("image", "logits"))
        >>> node = helper.make_node("Identity", ["image"], ["logits"])
        >>> graph = helper.make_graph([node], "colours", [image], [logits])
        >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/colours.onnx")
        ...     load_onnx(Path(folder) / "colours.onnx").info.class_names
        ['class 0', 'class 1', 'class 2']
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise PebalError("Benchmarking an ONNX file needs ONNX Runtime. Run: pip install onnxruntime.") from error
    if not path.is_file():
        raise PebalError(f"There is no model '{path}'.")
    if input_size is not None:
        check_input_size(input_size)
    metadata = scan(path.read_bytes(), str(path)).metadata
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the module's exceptions have no common base class
        raise PebalError(f"{path} cannot be loaded by ONNX Runtime ({one_line(error)}); export it again.") from error
    first, outputs = session.get_inputs()[0], session.get_outputs()
    channels = [output.shape[1] for output in outputs if output.type == "tensor(float)" and len(output.shape) == 4]
    if first.type != "tensor(float)" or len(first.shape) != 4 or not channels or not isinstance(channels[0], int):
        raise PebalError(
            f"{path} provides no logits. It must have an input N×3×H×W float32 and an output N×K×h×w float32 with K "
            "fixed."
        )
    if METADATA_KEY in metadata:
        info = ModelInfo.from_json(metadata[METADATA_KEY], path)
    elif channels[0] in (len(CITYSCAPES_CLASSES), len(CITYSCAPES_CLASSES) + 1):
        info = ModelInfo(f"ONNX file {path.name}")
    else:
        names = [f"class {i}" for i in range(channels[0])]
        info = ModelInfo(f"ONNX file {path.name}", class_names=names)
    if channels[0] not in (len(info.class_names), info.num_outputs):
        raise PebalError(f"{path} has {channels[0]} outputs, but its metadata name {len(info.class_names)} classes.")
    if input_size is None and info.input_size is not None:
        input_size = tuple(info.input_size)
    return AnomalyDetector(_OnnxLogits(session, info, None if input_size == (0, 0) else input_size), info, path)


def _find_logits(outputs: list[np.ndarray]) -> np.ndarray:
    return next(output for output in outputs if output.ndim == 4 and output.dtype == np.float32)
