"""``pebal info MODEL``: what a model file says of itself."""

from __future__ import annotations

from dataclasses import fields

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from ..ego_mask import decode_mask
from ..engines.selection import model_info
from ..model_file import ModelInfo, file_sha256, resolve_model

_UNITS = {"threshold": " nats", "energy_range": " nats"}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=str, nargs="?", default="starter", help="model file, or name of a shipped model")


def run(args: Namespace) -> None:
    path = resolve_model(args.model)
    info = model_info(path)
    table = Table("field", "value", title=str(path), show_header=False)
    table.add_row("size", f"{path.stat().st_size / 1e6:.1f} MB")
    table.add_row("sha256", file_sha256(path))
    for name in (f.name for f in fields(ModelInfo) if f.name != "palette"):
        value = getattr(info, name)
        if name == "ego_mask" and value:
            text = f"{100 * decode_mask(value).mean():.1f} % of the image"
        elif name == "guarantee" and value:
            text = value["text"]
        elif isinstance(value, dict):
            text = "\n".join(f"{key}: {item}" for key, item in value.items())
        elif isinstance(value, list):
            text = ", ".join(map(str, value))
        else:
            text = "-" if value in (None, "") else str(value)
        table.add_row(name, text + (_UNITS.get(name, "") if value is not None else ""))
    Console().print(table)
