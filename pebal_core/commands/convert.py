"""``pebal convert CHECKPOINT OUT.safetensors``: a third-party checkpoint → a model file."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..checkpoints import load_checkpoint
from ..errors import PebalError
from ..model_file import save_model
from ..ranges import Whole


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a .pth file of NVIDIA, PEBAL or EdgeNets, recognised by content")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--source", type=str, default="", help="where the checkpoint came from; kept in the model file")
    parser.add_argument("--licence", type=str, default="", help="of the weights; kept in the model file")
    parser.add_argument(
        "--seed", type=Whole(0, 2**32 - 1), default=0, help="of the abstention row, where the checkpoint has none"
    )


def run(args: Namespace) -> None:
    if args.out.suffix != ".safetensors":
        raise PebalError(f"'{args.out}' must end in .safetensors, the form of a model file.")
    network, info = load_checkpoint(args.checkpoint, args.source, args.licence, args.seed)
    save_model(args.out, network, info)
    print(f"{args.out}: {info.origin['layout']}.")
    print(f"{args.checkpoint.name} has SHA-256 {info.origin['sha256']}, source {info.origin['source']}.")
