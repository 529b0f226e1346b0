"""Scans the bytes of an ONNX file for references before ONNX Runtime loads it, without onnx or protobuf.

An ONNX file may refer to other files that hold tensors or compiled parts, which ONNX Runtime would open. Field numbers
follow onnx.proto, and the encoding is Protocol Buffers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .errors import PebalError, one_line

DIGEST_KEY = "pebal.graph.sha256"
"""Key in the metadata under which `Scan.sha256` is stored."""
METADATA_PROPS = 14
"""Field number of the metadata."""
REFERRING = (b"EPContext",)
"""Operations that load the content of another file, or run compiled code on a GPU."""
FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2"), 11: np.dtype("<f8")}
"""Floating-point data types of TensorProto by number."""
DEEPEST = 32
"""Deepest nesting of graphs within graphs."""

# Nested messages of each kind of message, by field number.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}


class Scan(NamedTuple):
    """Digest and metadata of a file without references to others."""

    sha256: str
    """Digest of everything except the metadata."""
    metadata: dict[str, str]


def scan(content: bytes, title: str) -> Scan:
    """Scan a model.

    Args:
        content: the content of the file.
        title: name of the model in messages.

    Raises:
        PebalError: the file is damaged, refers to another file or holds a compiled part, its weights are not finite, or
            its digest differs from the stored one.

    Examples:
        >>> from onnx.helper import make_graph, make_model, set_model_props
        >>> model = make_model(make_graph([], "empty", [], []))
        >>> set_model_props(model, {"author": "me"})
        >>> scan(model.SerializeToString(), "empty.onnx").metadata
        {'author': 'me'}
    """
    digest, metadata = hashlib.sha256(), dict[str, str]()
    view = memoryview(content)
    try:
        for number, value, start, stop in _fields(view):
            if number == METADATA_PROPS:
                pair = {n: bytes(v).decode() for n, v, *_ in _fields(value)}
                metadata[pair[1]] = pair[2]
            else:
                digest.update(view[start:stop])
                if (kind := _FIELDS["model"].get(number)) is not None:
                    _check_message(value, kind, title, 0)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise PebalError(
            f"{title} is damaged or is not an ONNX model ({one_line(error)}); copy or export it again."
        ) from error
    if metadata.get(DIGEST_KEY, digest.hexdigest()) != digest.hexdigest():
        raise PebalError(
            f"The graph of {title} has changed since it was written, because its SHA-256 differs from the stored one. "
            "Copy or export it again."
        )
    return Scan(digest.hexdigest(), metadata)


def _check_message(message: Any, kind: str, title: str, depth: int) -> None:
    """Refuse forbidden content in a message of this kind and in its nested messages."""
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} levels of graphs")
    if kind == "tensor":
        return _check_tensor(message, title)
    for number, value, *_ in _fields(message):
        if kind == "node" and number == 4 and bytes(value) in REFERRING:
            raise PebalError(
                f"{title} contains a compiled part ({_word(value)}), which is never loaded; export it again."
            )
        if (inner := _FIELDS[kind].get(number)) is not None:
            _check_message(value, inner, title, depth + 1)


def _check_tensor(message: Any, title: str) -> None:
    dimensions, kind, raw, name = 0, 0, None, ""
    for number, value, *_ in _fields(message):
        if number == 13 or (number == 14 and value == 1):
            raise PebalError(
                f"{title} keeps tensors in other files, which are never opened. Save it as one file, in Python with "
                "onnx.save_model(onnx.load(…), …, save_as_external_data=False)."
            )
        if number == 1:
            dimensions += len(value) if isinstance(value, memoryview) else 1
        elif number == 2:
            kind = value
        elif number == 8:
            name = _word(value)
        elif number == 9:
            raw = value
    # Bounds and fill values may be infinite, but weights may not; they have more than one dimension.
    values = FLOATS.get(kind) if isinstance(kind, int) else None
    if (
        raw is not None
        and dimensions > 1
        and values is not None
        and not np.isfinite(np.frombuffer(bytes(raw), values)).all()
    ):
        raise PebalError(f"The tensor '{name}' of {title} contains values that are not finite; export the model again.")


def _fields(message: Any) -> Iterator[tuple[int, Any, int, int]]:
    """Yield number, value, start and end of each field; values are integers or parts of the message."""
    position, end = 0, len(message)
    while position < end:
        start = position
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(message, position)
        elif wire in (1, 2, 5):
            length, position = (8 if wire == 1 else 4, position) if wire != 2 else _varint(message, position)
            value, position = message[position : position + length], position + length
        else:
            raise ValueError(f"wire type {wire}")
        if position > end:
            raise ValueError("it ends early")
        yield number, value, start, position


def _varint(message: Any, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than ten bytes")


def _word(value: Any) -> str:
    return bytes(value[:80]).decode(errors="replace")
