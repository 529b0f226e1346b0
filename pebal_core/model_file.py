"""Reads and writes model files, which hold weights (safetensors) or a graph (ONNX), and a description as metadata."""

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
from .errors import PebalError, one_line
from .files import user_path, write_atomically
from .integrity import DIGEST_KEY, check_fit, check_info, read_tensors, tensors_sha256
from .labels import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE

METADATA_KEY = "pebal"
FORMAT_VERSION = 1
ONNX = ".onnx"
"""Suffix of exported models; all other models are safetensors files."""
MODELS_FOLDER = Path(__file__).parent / "models"
"""Folder of the models that ship with the package and are loaded by name."""


@dataclass
class ModelInfo:
    """The description that a model file carries.

    Examples:
        >>> info = ModelInfo("espnetv2", class_names=["floor", "wall"], palette=[[90, 90, 90], [70, 70, 70]])
        >>> info.num_outputs  # with the abstention channel
        3
    """

    network: str
    """Name for `build_network`."""
    network_args: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=lambda: list(CITYSCAPES_CLASSES))
    """K inlier classes in the order of the logits; the abstention channel follows them, unnamed."""
    palette: list[list[int]] = field(default_factory=lambda: [list(color) for color in CITYSCAPES_PALETTE])
    """RGB per class."""
    class_list: dict[str, Any] = field(default_factory=dict)
    """The class list as `ClassList.as_dict`; empty if only names and colours are known."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Mean of RGB / 255 for the normalisation."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Standard deviation of RGB / 255 for the normalisation."""
    input_size: list[int] | None = None
    """[height, width] at which the network runs, or [longer side], to which larger images are scaled down; None runs it
    at the size of the image."""
    smoothing: bool = True
    """Whether the energy is smoothed by the 7×7 Gaussian."""
    threshold: float | None = None
    """Alarm threshold in nats; None if none was chosen."""
    threshold_note: str = ""
    """How the threshold was chosen."""
    guarantee: dict[str, Any] = field(default_factory=dict)
    """The guarantees at the threshold, in words and figures, as `guarantee.Guarantee.as_dict`."""
    ego_mask: str = ""
    """Mask of the pixels that move with the camera and raise no alarm, as PNG in base64 (`IgnoreMask.encode`)."""
    profile: dict[str, Any] = field(default_factory=dict)
    """Statistics of the calibration frames, as `drift.Profile`."""
    energy_range: list[float] = field(default_factory=lambda: [-15.0, 0.0])
    """Energies in nats that are displayed as 0 and 255."""
    training: dict[str, Any] = field(default_factory=dict)
    """Data, command and figures of the training."""
    licence: str = ""
    """Licence of the weights, which follows from their data."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Origin of imported weights, with file name, SHA-256 and layout."""
    export: dict[str, Any] = field(default_factory=dict)
    """For an ONNX model, its precision, the SHA-256 of the exported model file, and the deviation from it."""

    @property
    def num_outputs(self) -> int:
        """Number of output channels, K + 1."""
        return len(self.class_names) + 1

    @property
    def classes(self) -> ClassList:
        """The class list that the network was trained with, as far as it is known."""
        if self.class_list:
            return ClassList.from_dict(self.class_list, "The class list of the model")
        return described(self.class_names, self.palette)

    def use_classes(self, classes: ClassList) -> None:
        """Set names, colours and class list to those of a class list.

        >>> from pebal_core.class_list import load_class_list
        >>> info = ModelInfo("deeplabv3plus")
        >>> info.use_classes(load_class_list("camvid"))
        >>> info.class_names[:2], info.num_outputs
        (['sky', 'building'], 12)
        """
        self.class_names, self.palette = list(classes.names), classes.palette
        self.class_list = {} if classes == cityscapes_classes() else classes.as_dict()

    def to_json(self) -> str:
        """The description as JSON, which `from_json` reads."""
        return json.dumps({"format": FORMAT_VERSION, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: Path) -> ModelInfo:
        """Parse the metadata of a model file.

        Args:
            text: the metadata.
            source: the file, for messages.

        Raises:
            PebalError: the metadata are foreign or damaged, were written by a newer version, or hold an invalid value.
        """
        try:
            values = json.loads(text)
            version = values.pop("format")
            if version > FORMAT_VERSION:
                raise PebalError(f"{source} was written by a newer version (format {version}); update pebal_ros.")
            known = {f.name for f in fields(cls)}
            info = cls(**{key: value for key, value in values.items() if key in known})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PebalError(
                f"The metadata of {source} is damaged ({one_line(error)}); export the model again."
            ) from error
        check_info(info, source)
        return info


def resolve_model(name: str | Path) -> Path:
    """Path of a model that is given as a file or by the name of a shipped model.

    Raises:
        PebalError: there is no such model; the message lists the shipped ones.

    Examples:
        >>> resolve_model("starter").name
        'starter.safetensors'
    """
    path = user_path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(MODELS_FOLDER.glob("*.safetensors"))}
    if str(name) in shipped:
        return shipped[str(name)]
    raise PebalError(
        f"There is no model '{name!s:.300}'; use the path of a .safetensors or .onnx file written by pebal, or one of "
        f"the shipped models ({', '.join(shipped) or 'none'})."
    )


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "words.txt"
        ...     _ = path.write_bytes(b"abc")
        ...     file_sha256(path)[:16]
        'ba7816bf8f01cfea'
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_info(path: Path) -> ModelInfo:
    """Read the description of a .safetensors file without its weights.

    `engines.selection.model_info` does the same for both .safetensors and .onnx files.

    Raises:
        PebalError: the file is truncated, is no safetensors file, or carries no metadata of this project.

    Examples:
        >>> read_info(resolve_model("starter")).class_names[:2]
        ['road', 'sidewalk']
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as archive:
            metadata = archive.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise PebalError(
            f"{path} is not a complete safetensors file ({one_line(error)}); copy or download it again, or turn a .pth "
            f"checkpoint into one with 'pebal convert'."
        ) from error
    if METADATA_KEY not in metadata:
        raise PebalError(f"{path} has no '{METADATA_KEY}' metadata, so it was not written by pebal.")
    return ModelInfo.from_json(metadata[METADATA_KEY], path)


def load_model(name: str | Path) -> tuple[Any, ModelInfo]:
    """Load a model as a network for training or inspection; `AnomalyDetector.load` loads one for inference.

    Args:
        name: path of a .safetensors file, or name of a shipped model.

    Returns:
        The `SegmentationNetwork` in eval mode on the CPU, and its `ModelInfo`.

    Raises:
        PebalError: the file is missing, truncated, altered or foreign, or its weights do not fit the network it names.

    Examples:
        >>> network, info = load_model("starter")
        >>> network.training, info.num_outputs
        (False, 20)
    """
    import torch

    from .networks import build_network, describe_network

    path = resolve_model(name)
    if path.suffix == ONNX:
        raise PebalError(f"{path} is an exported model; this needs the .safetensors file that it was made from.")
    info = read_info(path)
    tensors, _ = read_tensors(path)
    # Checked before the network is built, so that a few bytes of metadata cannot exhaust the memory.
    check_fit(path, info.network, tensors, describe_network(info.network, info.num_outputs, **info.network_args))
    if info.network == "kept_classes":
        warnings.warn(
            f"{path} runs two networks side by side. To keep the classes in little more than the time of one network, "
            "run 'pebal train --branch true' on the model that it was trained from.",
            stacklevel=2,
        )
    network = build_network(info.network, num_outputs=info.num_outputs, **info.network_args)
    network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    return network.eval(), info


def save_model(path: str | Path, network: Any, info: ModelInfo, half: bool = False) -> None:
    """Write weights and description to a .safetensors file, which appears complete or not at all.

    Args:
        path: the file to write.
        network: the `SegmentationNetwork`.
        info: its description.
        half: whether to store the convolution kernels as float16, which halves the file; statistics and biases stay
            float32.

    Raises:
        PebalError: the folder cannot be written or the disk is full.

    Examples:
        >>> import tempfile
        >>> network, info = load_model("starter")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(Path(folder) / "copy.safetensors", network, info)
        ...     read_info(Path(folder) / "copy.safetensors") == info
        True
    """
    path = Path(path)
    tensors = {key: value.detach().cpu().contiguous().numpy() for key, value in network.state_dict().items()}
    if half:
        tensors = {key: value.astype(np.float16) if value.ndim == 4 else value for key, value in tensors.items()}
    write_atomically(path, _serialised(tensors, info))


def _serialised(tensors: dict[str, np.ndarray], info: ModelInfo) -> bytes:
    """Build the content of a .safetensors file."""
    from safetensors.numpy import save

    return save(tensors, metadata={METADATA_KEY: info.to_json(), DIGEST_KEY: tensors_sha256(tensors)})


def rewrite_info(source: str | Path, target: str | Path, info: ModelInfo) -> None:
    """Copy a model and replace its description; the stored weights are not changed.

    Args:
        source: path of a model file, or name of a shipped model.
        target: the file to write, of the same kind.
        info: the new description.

    Raises:
        PebalError: the source is no model, source and target are of different kinds, or the target cannot be written.

    Examples:
        >>> import tempfile
        >>> info = read_info(resolve_model("starter"))
        >>> info.threshold = -4.5
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder) / "mine.safetensors"
        ...     rewrite_info("starter", target, info)
        ...     read_info(target).threshold
        -4.5
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
    """Replace the description of an ONNX model, given and returned as the content of a file.

    Raises:
        PebalError: the package onnx is not installed.

    Examples:
        >>> from onnx.helper import make_graph, make_model
        >>> empty = make_model(make_graph([], "empty", [], [])).SerializeToString()
        >>> content = onnx_with_info(empty, ModelInfo("espnetv2"))
        >>> sorted(onnx_scan.scan(content, "empty.onnx").metadata)
        ['pebal', 'pebal.graph.sha256']
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise PebalError("Writing an ONNX model needs the package onnx. Run: pip install onnx.") from error
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    digest = onnx_scan.scan(model.SerializeToString(), "the exported model").sha256
    onnx.helper.set_model_props(model, {METADATA_KEY: info.to_json(), onnx_scan.DIGEST_KEY: digest})
    return model.SerializeToString()
