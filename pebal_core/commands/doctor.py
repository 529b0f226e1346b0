"""``pebal doctor`` checks this installation and suggests remedies; the exit status is 1 if there is an error."""

from __future__ import annotations

import json

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from ..doctor import ERROR, NOTE, OK, WARNING, examine
from .model_options import add_model_arguments

COLORS = {OK: "green", NOTE: "dim", WARNING: "yellow", ERROR: "red"}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON instead of a table")
    parser.add_argument(
        "--dataset", action="append", type=str, metavar="NAME=PATH", help="check an evaluation set; repeatable"
    )
    parser.add_argument(
        "--scenes",
        action="append",
        type=str,
        metavar="LAYOUT[:SPLIT]=PATH",
        help="check labelled scenes (default split: val); repeatable",
    )
    add_model_arguments(parser)


def run(args: Namespace) -> int:
    size = tuple(args.input_size) if args.input_size else None
    checks = []
    table = Table("", "check", "found and remedy", show_edge=False, box=None)
    for check in examine(
        args.model, args.engine, args.device, args.precision, size, args.dataset or [], args.scenes or []
    ):
        checks.append(check)
        remedy = f"\n→ {check.remedy}" if check.remedy else ""
        table.add_row(f"[{COLORS[check.level]}]{check.level}", check.name, check.found + remedy)
    if args.json:
        print(json.dumps([check.as_json() for check in checks], indent=2))
    else:
        Console().print(table)
    return 1 if any(check.level == ERROR for check in checks) else 0
