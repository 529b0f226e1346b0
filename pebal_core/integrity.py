"""Whether a model file is what was written: types, digest and plausibility of its tensors, and its description.

No value of a file is taken on trust: each has its type and range, and is refused by name outside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .class_list import NAME
from .errors import PebalError

if TYPE_CHECKING:
    from .model_file import ModelInfo

DIGEST_KEY = "pebal.tensors.sha256"
"""Metadata beside the description: `tensors_sha256`."""
TYPES = ("F32", "F16", "I64")
"""Types in which tensors are stored."""
SIDES = (16, 8192)
"""Least and greatest side of what a network is given, in pixels."""
GREATEST = 1e6
"""Bound of every number in a description, in whatever unit."""


def tensors_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """Hexadecimal SHA-256 of names, types, shapes and values, whatever their order in the file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {values.dtype.str} {tensors[name].shape}\n".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], bool]:
    """All tensors of a .safetensors file, and whether a digest confirms them.

    Raises:
        PebalError: a damaged file; a type in which weights are not stored; values that are not finite; another digest
            than the stored one; in files without a digest, values that no trained network has.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as archive:
            for name in archive.keys():  # noqa: SIM118 an archive is no mapping
                if (kind := archive.get_slice(name).get_dtype()) not in TYPES:
                    raise PebalError(
                        f"The tensor '{name}' of {path} is stored as {kind}, but models hold {', '.join(TYPES)} alone; "
                        f"copy or export the model again."
                    )
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
            stored = (archive.metadata() or {}).get(DIGEST_KEY)
    except (SafetensorError, OSError, ValueError) as error:
        raise PebalError(f"The tensors of {path} cannot be read ({error}); copy or download it again.") from error
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise PebalError(
                f"The tensor '{name}' of {path} holds values that are not finite; train or export it again."
            )
        if name.endswith("running_var") and (values < 0).any():
            raise PebalError(f"The tensor '{name}' of {path} holds negative variances; copy or export the model again.")
    if stored is None:
        for name, values in tensors.items():
            if values.ndim > 1 and not values.any():
                raise PebalError(f"The tensor '{name}' of {path} is zero throughout; copy or export the model again.")
    elif stored != tensors_sha256(tensors):
        raise PebalError(
            f"The tensors of {path} are not those that were written: their SHA-256 differs from the stored one; copy "
            f"or download the file again."
        )
    return tensors, stored is not None


def check_fit(path: Path, network: str, tensors: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> None:
    """Refuse tensors that are not exactly those of a network.

    Args:
        expected: state dict of the network, which may lie on PyTorch's meta device.

    Raises:
        PebalError: a tensor is missing, unknown, or of another shape or kind.
    """
    for keys, fault in ((expected.keys() - tensors, "is missing"), (tensors.keys() - expected, "is unknown to it")):
        if keys:
            raise PebalError(f"The weights in {path} do not fit the network '{network}': '{min(keys)}' {fault}.")
    for name, values in tensors.items():
        like = expected[name]
        if values.shape != tuple(like.shape) or (values.dtype.kind == "f") != like.dtype.is_floating_point:
            raise PebalError(
                f"The weights in {path} do not fit the network '{network}': '{name}' is {values.shape} {values.dtype}, "
                f"the network takes {tuple(like.shape)} {str(like.dtype).removeprefix('torch.')}."
            )


def check_info(info: ModelInfo, source: Path) -> None:
    """Refuse a description with a value of another type, or out of its range.

    Raises:
        PebalError: the message names the field.
    """
    faults = {
        "network": _text(info.network),
        "class_names": isinstance(info.class_names, list)
        and 1 <= len(info.class_names) <= 254
        and all(isinstance(name, str) and NAME.fullmatch(name) for name in info.class_names),
        "palette": isinstance(info.palette, list)
        and 1 <= len(info.palette) <= 256
        and all(_numbers(color, 3, 0, 255, int) for color in info.palette),
        "class_list": isinstance(info.class_list, dict) and _same_classes(info),
        "mean": _numbers(info.mean, 3),
        "std": _numbers(info.std, 3, 1e-6),
        "input_size": info.input_size is None or _numbers(info.input_size, 2, *SIDES, kind=int),
        "smoothing": isinstance(info.smoothing, bool),
        "threshold": info.threshold is None or _numbers([info.threshold], 1),
        "threshold_note": isinstance(info.threshold_note, str),
        "energy_range": _numbers(info.energy_range, 2) and info.energy_range[0] < info.energy_range[1],
        "licence": isinstance(info.licence, str),
        **{name: isinstance(getattr(info, name), dict) for name in ("network_args", "training", "origin", "export")},
    }
    for name, fine in faults.items():
        if not fine:
            raise PebalError(
                f"The metadata of {source} are damaged: {name} cannot be {getattr(info, name)!r:.80}; export the model "
                f"again."
            )


def _same_classes(info: ModelInfo) -> bool:
    """Whether the class list, where there is one, is whole and of the classes that the file names."""
    try:
        return not info.class_list or list(info.classes.names) == info.class_names
    except PebalError:
        return False


def _text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable()


def _numbers(
    values: object, count: int, low: float = -GREATEST, high: float = GREATEST, kind: type[int] | type[float] = float
) -> bool:
    """Whether this is a list of as many numbers within bounds; NaN lies within none."""
    kinds = (int,) if kind is int else (int, float)
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in kinds and low <= value <= high for value in values)
    )
