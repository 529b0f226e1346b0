"""``pebal ablate --config config/train_….yaml``: train the variants of the objective on the same samples and compare.

The variants come from the paper's ablation: entropy maximisation (EM), abstention alone (AL), energy alone (EBM), and
both together with a fixed or with the adaptive penalty, each with and without the regularisers. One more run trains
with a single outlier class.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from ..errors import PebalError, one_line
from ..files import write_atomically
from ..losses import LossConfig
from ..ranges import Number
from ..training.finetune import FinetuneConfig, finetune
from .train import read_config

COLUMNS = {"val_ap": "AP", "val_fpr95": "FPR95", "val_auroc": "AUROC", "val_miou": "mIoU"}


def variants(loss: LossConfig, fixed_penalty: float) -> dict[str, LossConfig]:
    """The objectives by name, with the margins and weights of the configuration.

    Examples:
        >>> found = variants(LossConfig(), fixed_penalty=144.0)
        >>> len(found), found["EM"].classification, found["AL"].hinge_weight
        (10, 'cross_entropy', 0.0)
    """
    plain = {
        "EM": replace(loss, classification="cross_entropy", entropy_weight=0.1, hinge_weight=0.0),
        "AL": replace(loss, penalty=fixed_penalty, hinge_weight=0.0),
        "EBM": replace(loss, classification="cross_entropy"),
        "joint, fixed penalty": replace(loss, penalty=fixed_penalty),
        "joint, adaptive penalty": loss,
    }
    bare = {
        f"{name}, no regularisers": replace(variant, smoothness_weight=0.0, sparsity_weight=0.0)
        for name, variant in plain.items()
    }
    return plain | bare


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="a configuration of pebal train")
    parser.add_argument(
        "--fixed-penalty",
        type=Number(1e-6, 1e6),
        default=144.0,
        help="value a of the fixed penalty; the default is E² at an energy of -12",
    )
    parser.add_argument("--one-class", type=str, default="laptop", help="COCO category of the one-class run")
    parser.add_argument("--variants", type=str, nargs="+", help="names of the variants to run; default: all")
    parser.add_class_arguments(FinetuneConfig)


def run(args: Namespace) -> None:
    config = read_config(args)
    runs = {name: replace(config, loss=loss) for name, loss in variants(config.loss, args.fixed_penalty).items()}
    runs[f"joint, {args.one_class} only"] = replace(config, data=replace(config.data, only=[args.one_class]))
    results: dict[str, dict[str, float]] = {}
    if strange := [name for name in args.variants or () if name not in runs]:
        raise PebalError(f"There is no variant '{strange[0]}'; choose one of: {'; '.join(runs)}.")
    for name in args.variants or runs:
        folder = Path(config.out) / name.replace(", ", "-").replace(" ", "-")
        # A finished variant is not trained again.
        done = folder / "figures.json"
        if done.is_file():
            results[name] = _finished(done)
            continue
        results[name] = finetune(replace(runs[name], out=str(folder)))
        write_atomically(done, json.dumps(results[name]).encode())
    write_atomically(Path(config.out) / "ablation.md", _markdown(results).encode())
    Console().print(_table_of(results))


def _finished(path: Path) -> dict[str, float]:
    """Read the figures of a variant that was already trained."""
    try:
        figures = json.loads(path.read_text())
        return {key: float(figures[key]) for key in COLUMNS}
    except (ValueError, TypeError, LookupError) as error:
        raise PebalError(f"{path} is damaged ({one_line(error)}); delete it to train this variant again.") from error


def _table_of(results: dict[str, dict[str, float]]) -> Table:
    """The figures of the variants as a table for the terminal."""
    table = Table("objective", *COLUMNS.values(), title="best on the validation set, in %")
    for name, figures in results.items():
        table.add_row(name, *(f"{100 * figures[key]:.2f}" for key in COLUMNS))
    return table


def _markdown(results: dict[str, dict[str, float]]) -> str:
    """The figures of the variants as a Markdown table."""
    rows = [["objective", *COLUMNS.values()], ["---"] * (len(COLUMNS) + 1)]
    rows += [[name, *(f"{100 * figures[key]:.2f}" for key in COLUMNS)] for name, figures in results.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
