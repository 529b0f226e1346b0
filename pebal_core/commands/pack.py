"""``pebal pack SOURCE --format fishyscapes|smiyc --out DIR`` writes and checks the submission files of a model.

SOURCE is a folder of images, which need no labels. With ``--set`` it is the folder of an official set as downloaded.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.progress import track

from ..benchmark.submissions import (
    FORMATS,
    SAMPLE,
    SMIYC_SETS,
    OrderKeepingFloat16,
    SubmissionImage,
    check_fishyscapes,
    check_smiyc,
    find_frames,
    require_finite,
    sample_scores,
    write_hdf5,
    write_npy,
)
from ..data.scenes import read_image
from ..errors import PebalError
from .model_options import add_model_arguments, load_detector


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="folder of images, or with --set the official set's folder")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--set", choices=list(SMIYC_SETS), help="for smiyc, the official set in the source folder")
    parser.add_argument("--method", type=str, default="PEBAL", help="for smiyc, the name of the method's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--check-only", action="store_true", help="only check files that exist already")
    add_model_arguments(parser)


def run(args: Namespace) -> None:
    if args.set and args.format != "smiyc":
        raise PebalError("--set names a set of SegmentMeIfYouCan; for Fishyscapes, pass only the folder of its images.")
    if not re.fullmatch(r"[\w.+-]+", args.method) or args.method.startswith("."):
        raise PebalError(f"--method {args.method} names a folder, so only letters, digits and ._+- are allowed.")
    frames = find_frames(args.source, args.set)
    folder = args.out
    if args.format == "smiyc":
        folder = args.out / "anomaly_p" / args.method / (args.set or args.source.resolve().name)
    if not args.check_only:
        (_pack_fishyscapes if args.format == "fishyscapes" else _pack_smiyc)(args, frames, folder)
    check = check_fishyscapes if args.format == "fishyscapes" else check_smiyc
    problems = check(folder, frames)
    if problems:
        print(*problems, sep="\n")
        raise PebalError(
            f"{folder} would not be evaluated correctly, because of the {len(problems)} problems listed above."
        )
    print(f"{folder}: the files of {len(frames)} frames pass the checks of the {args.format} format.")


def _pack_fishyscapes(args: Namespace, frames: list[SubmissionImage], folder: Path) -> None:
    detector = load_detector(args)
    for frame in track(frames, f"packing on {detector.device_name}"):
        result = detector(read_image(frame.path))
        require_finite(result.energy, str(frame.path))
        write_npy(folder / f"{frame.name}_anomaly.npy", result.energy)
        write_npy(folder / f"{frame.name}_segmentation.npy", result.labels)


def _pack_smiyc(args: Namespace, frames: list[SubmissionImage], folder: Path) -> None:
    """Write the files in two passes.

    All frames share one mapping to float16, so the first pass writes all energies (4 bytes a pixel) to disk.
    """
    detector = load_detector(args)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix=".energies-")
    except OSError as error:
        raise PebalError(f"The folder {folder} cannot be written: {error.strerror}; choose another --out.") from error
    with temporary:
        energies = [Path(temporary.name) / f"{frame.name}.npy" for frame in frames]
        samples = []
        for number, frame in enumerate(track(frames, f"running on {detector.device_name}")):
            energy = detector(read_image(frame.path)).energy
            require_finite(energy, str(frame.path))
            samples.append(sample_scores(energy, SAMPLE // len(frames), seed=number))
            write_npy(energies[number], energy)
        to_float16 = OrderKeepingFloat16(np.concatenate(samples))
        for frame, path in zip(track(frames, "writing"), energies):
            write_hdf5(folder / f"{frame.name}.hdf5", to_float16(np.load(path)))
