"""``pebal export MODEL OUT.onnx`` exports a model to ONNX; pre- and postprocessing are part of the graph.

The export is compared with PyTorch on the photographs that come with scikit-image or on those of ``--images``, and with
``--labelled`` also in average precision (AP). A model that differs too much from PyTorch is not written.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from ..data.anomaly_sets import open_set
from ..data.scenes import list_images, read_image
from ..errors import PebalError
from ..model_info import SIDES
from ..ranges import Whole

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
"""The colour photographs that come with scikit-image."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=str, help="model file, or name of a shipped model")
    parser.add_argument("out", type=Path, help="the .onnx file to write")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--input-size",
        type=Whole(*SIDES),
        nargs="+",
        metavar="SIDE",
        help="height and width at which the network runs, or only the longer side, to which larger images are scaled "
        "down; default: the model's input size, or --dynamic if it has none",
    )
    size.add_argument("--dynamic", action="store_true", help="the network runs at the size of each image")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="precision of the network")
    parser.add_argument("--images", type=Path, help="folder of images to compare on; default: those of scikit-image")
    parser.add_argument("--labelled", type=str, metavar="NAME=FOLDER", help="an anomaly set, as for pebal benchmark")


def run(args: Namespace) -> None:
    if args.out.suffix != ".onnx":
        raise PebalError(f"'{args.out}' must end in .onnx.")
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]:
        raise PebalError(f"An export needs {', '.join(missing)}. Run: pip install 'pebal_ros[onnx]'.")
    from ..export import export

    images = [read_image(path) for path in (list_images(args.images) if args.images else _photographs())]
    size = (0, 0) if args.dynamic else tuple(args.input_size) if args.input_size else None
    labelled = _read_labelled(args.labelled) if args.labelled else []
    parity = export(args.model, args.out, images, labelled, size, args.precision)
    print(
        f"{args.out}: {args.precision}, {args.out.stat().st_size / 1e6:.1f} MB. Compared with PyTorch in fp32 on "
        f"{parity.images} images, the energy differs by {parity.energy_max:.1e} nats at most and "
        f"{parity.energy_mean:.1e} on average; {parity.labels_equal:.3%} of the labels are equal."
    )
    if parity.ap is not None and parity.ap_torch is not None:
        print(f"AP on {len(labelled)} labelled images: {parity.ap:.4f}, PyTorch {parity.ap_torch:.4f}.")


def _photographs() -> list[Path]:
    """Paths of the photographs that come with scikit-image.

    Raises:
        PebalError: scikit-image is not installed.
    """
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise PebalError(
            "An export is compared with PyTorch on images. Name a folder with --images, or install scikit-image."
        )
    return [path for name in PHOTOGRAPHS if (path := Path(found.origin).parent / "data" / name).is_file()]


def _read_labelled(entry: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read an anomaly set that is given as NAME=FOLDER.

    Returns:
        Pairs of image (H×W×3 uint8 RGB) and target (H×W uint8).

    Raises:
        PebalError: as for `open_set`, or NAME is missing.
    """
    name, equals, folder = entry.partition("=")
    if not equals:
        raise PebalError(f"--labelled takes NAME=FOLDER, such as RoadAnomaly21=/data/AnomalyTrack; got '{entry}'.")
    data = open_set(name, folder)
    return [(frame.image, frame.target) for frame in map(data.load, range(len(data)))]
