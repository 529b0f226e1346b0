"""Verifies the tensors of model files: their types, digest, plausibility, and fit to a network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import PebalError, one_line

DIGEST_KEY = "pebal.tensors.sha256"
"""Key in the metadata under which `tensors_sha256` is stored."""
TYPES = ("F32", "F16", "I64")
"""Types in which tensors may be stored."""


def tensors_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """Hexadecimal SHA-256 of names, types, shapes and values, independent of their order in the file.

    Examples:
        >>> one, two = np.zeros(2, np.float32), np.ones((1, 3), np.float32)
        >>> tensors_sha256({"a": one, "b": two}) == tensors_sha256({"b": two, "a": one})
        True
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {values.dtype.str} {tensors[name].shape}\n".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], bool]:
    """Read all tensors of a .safetensors file.

    Returns:
        The tensors by name, and whether a stored digest confirms them.

    Raises:
        PebalError: the file is damaged, a tensor has an unexpected type, values are not finite, or the digest differs
            from the stored one. For a file without a digest, a tensor holds values that no trained network has.

    Examples:
        >>> from pebal_core.model_file import resolve_model
        >>> tensors, confirmed = read_tensors(resolve_model("starter"))
        >>> tensors["classify.weight"].shape, confirmed
        ((20, 128, 1, 1), True)
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as archive:
            for name in archive.keys():  # noqa: SIM118 an archive is no mapping
                if (kind := archive.get_slice(name).get_dtype()) not in TYPES:
                    raise PebalError(
                        f"The tensor '{name}' of {path} is stored as {kind}, but models contain only "
                        f"{', '.join(TYPES)}; copy or export the model again."
                    )
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
            stored = (archive.metadata() or {}).get(DIGEST_KEY)
    except (SafetensorError, OSError, ValueError) as error:
        raise PebalError(
            f"The tensors of {path} cannot be read ({one_line(error)}); copy or download it again."
        ) from error
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise PebalError(
                f"The tensor '{name}' of {path} contains values that are not finite; train or export it again."
            )
        if name.endswith("running_var") and (values < 0).any():
            raise PebalError(
                f"The tensor '{name}' of {path} contains negative variances; copy or export the model again."
            )
    if stored is None:
        for name, values in tensors.items():
            if values.ndim > 1 and not values.any():
                raise PebalError(f"The tensor '{name}' of {path} is zero throughout; copy or export the model again.")
    elif stored != tensors_sha256(tensors):
        raise PebalError(
            f"The tensors of {path} have changed since they were written, because their SHA-256 differs from the "
            "stored one. Copy or download the file again."
        )
    return tensors, stored is not None


def check_fit(path: Path, network: str, tensors: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> None:
    """Refuse tensors that do not match a network exactly.

    Args:
        path: the file, for messages.
        network: name of the network, for messages.
        tensors: the tensors of the file.
        expected: state dict of the network, which may be on PyTorch's meta device.

    Raises:
        PebalError: a tensor is missing or unknown, or differs in shape or kind.

    Examples:
        >>> expected = {"weight": np.zeros((4, 3)), "bias": np.zeros(4)}
        >>> check_fit(Path("a.safetensors"), "linear", {"weight": np.zeros((4, 3))}, expected)
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: The weights in a.safetensors do not fit the network 'linear': 'bias' is missing.
    """
    for keys, fault in ((expected.keys() - tensors, "is missing"), (tensors.keys() - expected, "is unknown to it")):
        if keys:
            raise PebalError(f"The weights in {path} do not fit the network '{network}': '{min(keys)}' {fault}.")
    for name, values in tensors.items():
        like = expected[name]
        if values.shape != tuple(like.shape) or (values.dtype.kind == "f") != like.dtype.is_floating_point:
            raise PebalError(
                f"The weights in {path} do not fit the network '{network}': '{name}' is {values.shape} "
                f"{values.dtype}, but the network takes {tuple(like.shape)} {str(like.dtype).removeprefix('torch.')}."
            )
