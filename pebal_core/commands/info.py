"""``pebal info MODEL`` shows the description that a model file carries."""

from __future__ import annotations

from dataclasses import fields

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..engines.selection import model_info
from ..integrity import read_tensors
from ..model_file import ONNX, file_sha256, resolve_model
from ..model_info import ModelInfo
from ..objects import IgnoreMask

_UNITS = {"threshold": " nats", "energy_range": " nats"}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=str, nargs="?", default="starter", help="model file, or name of a shipped model")


def run(args: Namespace) -> None:
    path = resolve_model(args.model)
    info = model_info(path)
    table = Table("field", "value", title=_plain(str(path)), show_header=False)
    table.add_row("size", f"{path.stat().st_size / 1e6:.1f} MB")
    table.add_row("sha256", file_sha256(path))
    if path.suffix != ONNX:  # `model_info` has already verified the graph of an ONNX file
        confirmed = read_tensors(path)[1]
        table.add_row(
            "tensors", "as they were written" if confirmed else "plausible; the file stores no digest of them"
        )
    for name in (f.name for f in fields(ModelInfo) if f.name != "palette"):
        value = getattr(info, name)
        if name == "ego_mask":
            mask = IgnoreMask.decode(value)
            text = "" if mask is None else f"{100 * mask.share:.1f} % of the image"
        elif name == "outlier_statistics" and value:
            text = f"stored, {len(value) // 1024} KB"
        elif name == "guarantee" and value:
            text = str(value.get("text", "damaged"))
        elif isinstance(value, dict):
            text = "\n".join(f"{key}: {item}" for key, item in value.items())
        elif isinstance(value, list):
            text = ", ".join(map(str, value))
        else:
            text = "-" if value in (None, "") else str(value)
        table.add_row(name, _plain(text + (_UNITS.get(name, "") if value is not None else "")))
    Console().print(table)


def _plain(text: str) -> str:
    """Remove control characters and markup from a file's text, so that it is safe to print in a terminal."""
    return escape("".join(c if c.isprintable() or c == "\n" else "�" for c in text))
