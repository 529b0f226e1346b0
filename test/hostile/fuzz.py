"""Coverage-guided fuzzing of the parsers of foreign bytes, on demand and not in continuous integration.

    pip install atheris
    python -m test.hostile.fuzz header 600     # seconds; also onnx, message

Inputs that reach new code are kept in test/hostile/corpus/, and the tests run them all. A finding ends the run with
its traceback, and its input lies in the folder from which it was started.

header: model files; onnx: the scan of ONNX files; message: camera images, raw and compressed, as they come in.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pebal_core.errors import PebalError
from pebal_core.integrity import read_tensors
from pebal_core.model_file import read_info
from pebal_core.model_info import ModelInfo
from pebal_core.onnx_scan import scan

CORPUS = Path(__file__).parent / "corpus"
TARGETS = ("header", "onnx", "message")


def read_header(data: bytes) -> None:
    """A whole file, and the same bytes as its header and as the description in it."""
    described = json.dumps({"__metadata__": {"pebal": data.decode(errors="replace")}}).encode()
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        path = Path(file.name)
        for header in (None, data, described):
            path.write_bytes(data if header is None else struct.pack("<Q", len(header)) + header + bytes(64))
            for read in (read_info, read_tensors):
                with contextlib.suppress(PebalError):
                    read(path)
    with contextlib.suppress(PebalError):
        ModelInfo.from_json(data.decode(errors="replace"), path)


def read_onnx(data: bytes) -> None:
    with contextlib.suppress(PebalError):
        scan(data, "fuzzed")


def read_message(data: bytes) -> None:
    """The first bytes are the fields of the message, the rest its data."""
    from sensor_msgs.msg import CompressedImage, Image

    from pebal_core.footage.ros_images import ENCODINGS, from_compressed, to_rgb

    if len(data) < 8:
        return
    height, width, step, kind, order = struct.unpack("<HHHBB", data[:8])
    names = [*ENCODINGS, "rgb16", "bayer_rggb16", "32FC1", "", "x"]
    raw = Image(height=height, width=width, step=step, encoding=names[kind % len(names)], is_bigendian=order)
    raw.data.frombytes(data[8:])
    packed = CompressedImage(format="jpeg")
    packed.data.frombytes(data[8:])
    with contextlib.suppress(PebalError):
        to_rgb(raw)
    with contextlib.suppress(PebalError):
        from_compressed(packed)


RUN: dict[str, Callable[[bytes], None]] = {"header": read_header, "onnx": read_onnx, "message": read_message}


def main() -> None:
    """Fuzz one target for some seconds."""
    import atheris

    target, seconds = sys.argv[1], int(sys.argv[2])
    from pebal_core import integrity, model_file, onnx_scan
    from pebal_core.footage import ros_images

    modules = [ros_images] if target == "message" else [integrity, model_file, onnx_scan]
    for module in modules:
        for item in list(vars(module).values()):
            if inspect.isfunction(item) and item.__module__ == module.__name__:
                atheris.instrument_func(item)
    corpus = CORPUS / target
    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-max_len=4096", "-timeout=20"], RUN[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
