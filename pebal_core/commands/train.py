"""``pebal train --config config/train_….yaml`` fine-tunes a segmentation network with PEBAL."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..training.finetune import FinetuneConfig, finetune


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(FinetuneConfig)


def read_config(args: Namespace) -> FinetuneConfig:
    """Build the configuration from the parsed arguments.

    Examples:
        >>> parser = ArgumentParser()
        >>> add_arguments(parser)
        >>> words = ["--model=starter", "--data.scenes=[]", "--data.validation=[]", "--data.outliers=outliers"]
        >>> read_config(parser.instantiate(parser.parse_args(words))).data.outliers
        'outliers'
    """
    return FinetuneConfig(**{field.name: args[field.name] for field in fields(FinetuneConfig)})


def run(args: Namespace) -> None:
    config = read_config(args)
    best = finetune(config)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in best.items())
    print(f"Models in {Path(config.out)}; the best: {figures}.")
