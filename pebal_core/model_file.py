"""Reads and writes model files, which hold weights (safetensors) or a graph (ONNX), and a description as metadata."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from . import onnx_scan
from .errors import PebalError, one_line
from .files import user_path, write_atomically
from .integrity import DIGEST_KEY, check_fit, read_tensors, tensors_sha256
from .model_info import ModelInfo

METADATA_KEY = "pebal"
ONNX = ".onnx"
"""Suffix of exported models; all other models are safetensors files."""
MODELS_FOLDER = Path(__file__).parent / "models"
"""Folder of the models that ship with the package and are loaded by name."""


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
