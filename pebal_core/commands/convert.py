"""``pebal convert CHECKPOINT OUT.safetensors`` converts third-party checkpoints, folders and Hub models."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..checkpoints import load_checkpoint
from ..class_list import load_class_list
from ..errors import PebalError
from ..model_file import save_model
from ..model_folders import is_folder, load_folder
from ..ranges import Whole


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=str,
        help="a .pth file of NVIDIA, PEBAL or EdgeNets, recognised by its content; a folder that transformers or "
        "segmentation-models-pytorch wrote with save_pretrained; or hf:ORG/NAME, which downloads such a folder",
    )
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--source", type=str, default="", help="where the checkpoint came from; kept in the model file")
    parser.add_argument("--licence", type=str, default="", help="licence of the weights; kept in the model file")
    parser.add_argument(
        "--seed",
        type=Whole(0, 2**32 - 1),
        default=0,
        help="seed of the random abstention row, if the checkpoint has none",
    )
    parser.add_argument(
        "--classes",
        type=str | None,
        default=None,
        help="class list of a folder whose outputs have no names, a YAML file or the name of a shipped list",
    )


def run(args: Namespace) -> None:
    if args.out.suffix != ".safetensors":
        raise PebalError(f"'{args.out}' must end in .safetensors, the suffix of model files.")
    stated = (args.source, args.licence, args.seed)
    if is_folder(args.checkpoint):
        classes = None if args.classes is None else load_class_list(args.classes)
        network, info = load_folder(args.checkpoint, *stated, classes)
    elif args.classes is not None:
        raise PebalError(f"--classes applies only to folders; {args.checkpoint} has the classes of Cityscapes.")
    else:
        network, info = load_checkpoint(args.checkpoint, *stated)
    save_model(args.out, network, info)
    print(f"{args.out}: {info.origin['layout']}.")
    print(f"{info.origin['file']} has SHA-256 {info.origin['sha256']}, source {info.origin['source']}.")
