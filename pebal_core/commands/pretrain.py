"""``pebal pretrain`` trains a segmentation network from labelled images."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from ..training.pretrain import PretrainConfig, pretrain


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(PretrainConfig)


def run(args: Namespace) -> None:
    options = args.as_dict()
    options.pop("config")
    print(f"Model written to {pretrain(PretrainConfig(**options))}")
