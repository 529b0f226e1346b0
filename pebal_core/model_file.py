"""One file that explains itself: weights as safetensors (or a whole graph as ONNX), and how to use them as metadata."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from . import onnx_scan
from .class_list import ClassList, cityscapes_classes, described
from .errors import PebalError
from .files import user_path, write_atomically
from .integrity import DIGEST_KEY, check_fit, check_info, read_tensors, tensors_sha256
from .labels import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE

METADATA_KEY = "pebal"
FORMAT_VERSION = 1
ONNX = ".onnx"
"""Suffix of exported models; all others are safetensors."""
MODELS_FOLDER = Path(__file__).parent / "models"
"""Models that ship with the package, loaded by their bare name."""


@dataclass
class ModelInfo:
    """What a model file says of itself."""

    network: str
    """Name for `build_network`."""
    network_args: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=lambda: list(CITYSCAPES_CLASSES))
    """K inlier classes in the order of the logits; the abstention channel follows them, unnamed."""
    palette: list[list[int]] = field(default_factory=lambda: [list(color) for color in CITYSCAPES_PALETTE])
    """RGB per class."""
    class_list: dict[str, Any] = field(default_factory=dict)
    """What the classes are to a vehicle: `ClassList.as_dict`; empty: only names and colours are known."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Normalisation of RGB / 255."""
    input_size: list[int] | None = None
    """[height, width] at which the network runs best; None: at the image's own size."""
    smoothing: bool = True
    """Whether the energy is published after the 7×7 Gaussian."""
    threshold: float | None = None
    """Alarm threshold in nats, or None where none was chosen."""
    threshold_note: str = ""
    """How the threshold was chosen."""
    guarantee: dict[str, Any] = field(default_factory=dict)
    """What is promised at the threshold, in words and figures: `guarantee.Guarantee.as_dict`."""
    ego_mask: str = ""
    """What moves with the camera and raises no alarm: a PNG in base64 (`IgnoreMask.encode`), or nothing."""
    profile: dict[str, Any] = field(default_factory=dict)
    """What the energies of the camera's own scenes look like: `drift.Profile`."""
    energy_range: list[float] = field(default_factory=lambda: [-15.0, 0.0])
    """Energies in nats that are shown as 0 and 255."""
    training: dict[str, Any] = field(default_factory=dict)
    """Data, command and figures of the training."""
    licence: str = ""
    """Licence of the weights, which follows from their data."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Where imported weights came from: file name, SHA-256, layout."""
    export: dict[str, Any] = field(default_factory=dict)
    """Of an ONNX model: precision, SHA-256 of the model file that it was made from, and how far it is from that."""

    @property
    def num_outputs(self) -> int:
        """K + 1."""
        return len(self.class_names) + 1

    @property
    def classes(self) -> ClassList:
        """The class list that the network was trained with, as far as it is known."""
        if self.class_list:
            return ClassList.from_dict(self.class_list, "The class list of the model")
        return described(self.class_names, self.palette)

    def use_classes(self, classes: ClassList) -> None:
        """Describe a network of these classes."""
        self.class_names, self.palette = list(classes.names), classes.palette
        self.class_list = {} if classes == cityscapes_classes() else classes.as_dict()

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT_VERSION, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: Path) -> ModelInfo:
        """Parse the metadata of a model file.

        Raises:
            PebalError: not ours, damaged, written by a newer version, or with a value that cannot be.
        """
        try:
            values = json.loads(text)
            version = values.pop("format")
            if version > FORMAT_VERSION:
                raise PebalError(f"{source} was written by a newer version (format {version}); update pebal_ros.")
            known = {f.name for f in fields(cls)}
            info = cls(**{key: value for key, value in values.items() if key in known})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PebalError(f"The metadata of {source} is damaged ({error}); export the model again.") from error
        check_info(info, source)
        return info


def resolve_model(name: str | Path) -> Path:
    """Path of a model given as a file or as the bare name of a shipped model.

    Raises:
        PebalError: there is no such model; the message lists the shipped ones.
    """
    path = user_path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(MODELS_FOLDER.glob("*.safetensors"))}
    if str(name) in shipped:
        return shipped[str(name)]
    raise PebalError(
        f"There is no model '{name!s:.300}': give the path of a .safetensors or .onnx file written by pebal, or one of "
        f"the shipped models ({', '.join(shipped) or 'none'})."
    )


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_info(path: Path) -> ModelInfo:
    """Metadata of a .safetensors file, without reading weights (`engines.selection.model_info` takes .onnx files, too).

    Raises:
        PebalError: the file is truncated, is no safetensors file, or carries no metadata of ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as archive:
            metadata = archive.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise PebalError(
            f"{path} is not a complete safetensors file ({error}); copy or download it again, or turn a .pth "
            f"checkpoint into one with 'pebal convert'."
        ) from error
    if METADATA_KEY not in metadata:
        raise PebalError(f"{path} has no '{METADATA_KEY}' metadata: it was not written by pebal.")
    return ModelInfo.from_json(metadata[METADATA_KEY], path)


def load_model(name: str | Path) -> tuple[Any, ModelInfo]:
    """Network in eval mode on the CPU and its description.

    Args:
        name: path of a model file, or bare name of a shipped model.

    Returns:
        (`SegmentationNetwork`, `ModelInfo`)

    Raises:
        PebalError: missing, truncated, altered or foreign file, or weights that do not fit the network it names.
    """
    import torch

    from .networks import build_network, describe_network

    path = resolve_model(name)
    if path.suffix == ONNX:
        raise PebalError(f"{path} is an exported model; this needs the .safetensors file that it was made from.")
    info = read_info(path)
    tensors, _ = read_tensors(path)
    # Before a network of that size is made: a few bytes of metadata must not take all memory.
    check_fit(path, info.network, tensors, describe_network(info.network, info.num_outputs, **info.network_args))
    if info.network == "kept_classes":
        warnings.warn(
            f"{path} runs two networks side by side; 'pebal train --branch true' on the model that it started from "
            f"makes one that keeps its classes in little more than the time of one.",
            stacklevel=2,
        )
    network = build_network(info.network, num_outputs=info.num_outputs, **info.network_args)
    network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    return network.eval(), info


def save_model(path: str | Path, network: Any, info: ModelInfo, half: bool = False) -> None:
    """Write weights and description; the file appears whole or not at all.

    Args:
        half: store the convolution kernels as float16, which halves the file; statistics and biases stay float32.

    Raises:
        PebalError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    tensors = {key: value.detach().cpu().contiguous().numpy() for key, value in network.state_dict().items()}
    if half:
        tensors = {key: value.astype(np.float16) if value.ndim == 4 else value for key, value in tensors.items()}
    write_atomically(path, _serialised(tensors, info))


def _serialised(tensors: dict[str, np.ndarray], info: ModelInfo) -> bytes:
    """The content of a .safetensors file."""
    from safetensors.numpy import save

    return save(tensors, metadata={METADATA_KEY: info.to_json(), DIGEST_KEY: tensors_sha256(tensors)})


def rewrite_info(source: str | Path, target: str | Path, info: ModelInfo) -> None:
    """Copy a model with another description; the weights stay as they are stored.

    Raises:
        PebalError: the source is no model, source and target are of different kinds, or the target cannot be written.
    """
    path, target = resolve_model(source), Path(target)
    if (path.suffix == ONNX) != (target.suffix == ONNX):
        raise PebalError(f"'{target}' must end in {path.suffix}, as the model {path} does.")
    if path.suffix == ONNX:
        content = path.read_bytes()
        onnx_scan.scan(content, str(path))
        return write_atomically(target, onnx_with_info(content, info))
    write_atomically(target, _serialised(read_tensors(path)[0], info))


def onnx_with_info(content: bytes, info: ModelInfo) -> bytes:
    """An ONNX model with this description.

    Raises:
        PebalError: the package onnx is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise PebalError("Writing an ONNX model needs the package onnx: pip install onnx.") from error
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    digest = onnx_scan.scan(model.SerializeToString(), "the exported model").sha256
    onnx.helper.set_model_props(model, {METADATA_KEY: info.to_json(), onnx_scan.DIGEST_KEY: digest})
    return model.SerializeToString()
