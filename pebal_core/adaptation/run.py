"""Adapts a model to one camera (``pebal adapt``).

The output folder receives model.safetensors, summary.json, report.html and ego_mask.png. The intermediate results in
work/ let an interrupted run continue. The model itself labels the frames, so footage is the only input. What is learned
is one linear function of the network's features (`pebal_core.training.shift`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from rich.console import Console
from rich.progress import track

from ..data.coco import OutlierSet
from ..data.outlier_mix import RichMix
from ..detector import AnomalyDetector
from ..errors import PebalError, one_line
from ..files import write_atomically
from ..guarantee import Request
from ..labels import VOID
from ..model_file import file_sha256, load_model, resolve_model, save_model
from ..model_info import ModelInfo
from ..objects import IgnoreMask
from ..training.calibrate import CalibrationScene, calibrate
from ..training.samples import DataConfig, SceneSource, TrainingSamples, open_outliers
from ..training.shift import OutlierStatistics, add_function, collect_pixels, fit_function
from .check import Figures, energies, figures
from .ego import FEWEST, find_ego, moved_mounting
from .footage import PARTS, Kept, collect, load
from .report import write_report
from .shapes import HELD_BACK, write_shapes

CLASSES = "classes.yaml"
EGO_FRAMES = 40
EGO_BLOCKS = 8
"""Fewest blocks of time over which the scene can be trusted to have changed."""
CHECKED = 40
OUTSTANDING = 5.0
"""A frame whose peak energy is this many robust standard deviations above the median may contain an anomaly."""
SUSPECTS_SHOWN = 6
GAIN = 0.8
"""Largest share of the first model's false objects that an adapted model may show to replace it."""
ADAPTED = "adapted.safetensors"


@dataclass(frozen=True)
class AdaptConfig:
    """Everything that defines one adaptation."""

    sources: list[str]
    out: Path
    topic: str = ""
    """Name or type of the image topic in recordings; empty if there is only one."""
    model: str = "starter"
    outliers: Path | None = None
    """Folder written by ``pebal prepare-coco``; None draws random shapes with random textures."""
    ego_mask: Path | None = None
    """Image file of an ego mask; None finds the mask in the footage."""
    samples: int = 300
    """Number of crops of the footage from which the adaptation learns."""
    interval: float = 0.5
    block: float = 4.0
    frames: int = 300
    request: Request = field(default_factory=Request)


def adapt(config: AdaptConfig) -> dict[str, Any]:
    """Run all stages; an interrupted run continues where it stopped.

    Returns:
        The content of summary.json.

    Raises:
        PebalError: the footage or an option cannot be used.

    Examples:
        >>> config = AdaptConfig(sources=["monday.mp4", "tuesday.mp4"], out=Path("my_camera"))
        >>> summary = adapt(config)  # doctest: +SKIP
    """
    started, work = time.monotonic(), config.out / "work"
    identity = _identity(config)
    _same_run(work / "run.json", identity)
    footage = collect(config.sources, work / "frames", config.interval, config.block, config.frames, config.topic)
    parts = {part: [item for item in footage.kept if item.part == part] for part in PARTS}
    parts["check"] = parts["check"][:: max(1, len(parts["check"]) // CHECKED)]
    print(f"{len(footage.kept)} frames kept: " + ", ".join(f"{len(items)} to {part}" for part, items in parts.items()))
    for reason, number in footage.left_out.items():
        print(f"  {number} left out: {reason}")
    for note in footage.notes:
        print(note)

    before = AnomalyDetector.load(config.model, engine="torch")
    if before.info.threshold is None:
        raise PebalError(f"{config.model} has no threshold; choose one with 'pebal calibrate' first.")
    ego, note = _ego(config, before, work / "frames", parts["adapt"])
    print(f"Ego mask: {note}")
    before.info.ego_mask = "" if ego is None else IgnoreMask(ego, "The ego mask").encode()
    outliers = config.outliers or work / "shapes"
    if config.outliers is None:
        write_shapes(outliers)
    suspects = _write_scenes(work, before, parts["adapt"], ego)
    if suspects:
        print(
            f"{len(suspects)} frames are left out of the training, because their highest energies are far above those "
            "of the other frames, so they may show something foreign. Look at them in report.html."
        )
    adapted = _fit(config, work, outliers, before.info.threshold)
    after = AnomalyDetector.load(adapted, engine="torch")
    images = [load(work / "frames", item) for item in parts["check"]]
    base = [before(image).labels for image in images]
    held = OutlierSet.open(outliers)
    held = held.hold_back(HELD_BACK)[1] if config.outliers is None else held
    runs = {"before": energies(before, images, base, ego, held), "after": energies(after, images, base, ego, held)}
    size = config.request.object_size
    first = figures(runs["before"], before.info.threshold, size)
    # The same recall of the same pasted objects makes the two models comparable.
    equal = figures(runs["after"], runs["after"].threshold_of(first.recall), size)
    refused = _refuse(first, equal)
    if refused:
        print(refused)
    chosen = before if refused else after
    chosen.info.ego_mask = before.info.ego_mask
    scenes = (
        CalibrationScene(f"{item.drive}/{item.block}", load(work / "frames", item)) for item in parts["calibrate"]
    )
    promised = calibrate(chosen, scenes, config.request, footage.unit, _names(config.sources), relax=True)
    final = figures(runs["before" if refused else "after"], promised.threshold, size)
    chosen.info.training = {**chosen.info.training, "adapted_to": _names(config.sources)}
    network, _ = load_model(config.model if refused else adapted)
    save_model(config.out / "model.safetensors", network, chosen.info)
    summary = {
        "sources": [Path(source).name for source in config.sources],
        "frames": {part: len(items) for part, items in parts.items()},
        "left_out": footage.left_out,
        "notes": footage.notes,
        "ego_mask": note,
        "before": first.as_dict(),
        "after_at_equal_recall": equal.as_dict(),
        "after": final.as_dict(),
        "kept_the_first_model": bool(refused),
        "verdict": refused,
        "suspects": suspects,
        "guarantee": promised.as_dict(),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_atomically(config.out / "summary.json", json.dumps(summary, indent=2).encode())
    shown = runs["before" if refused else "after"]
    foreign = [load(work / "frames", item) for item in parts["adapt"] if item.file in suspects][:SUSPECTS_SHOWN]
    write_report(config.out / "report.html", summary, images, runs["before"], shown, promised.threshold, ego, foreign)
    return summary


def _refuse(first: Figures, adapted: Figures) -> str:
    """Say why the model from before the adaptation is kept; an empty text if the adapted one is better.

    Args:
        first: figures of the first model.
        adapted: figures of the adapted model at the same recall of pasted objects.
    """
    if adapted.false_objects > GAIN * first.false_objects or first.false_objects == 0:
        return (
            f"At equal recall of pasted objects, the adapted model shows {adapted.false_objects:.2f} false objects per "
            f"frame and the first model {first.false_objects:.2f}. This is too small a gain for what an adaptation "
            "costs on other roads, so the model from before the adaptation is kept, with a new threshold and ego mask."
        )
    return ""


def _identity(config: AdaptConfig) -> dict[str, Any]:
    """The options that must not change when an interrupted run continues, and the digest of the model."""
    values = {key: str(value) for key, value in asdict(config).items() if key not in ("out", "request")}
    return {**values, "model": file_sha256(resolve_model(config.model))}


def _same_run(path: Path, identity: dict[str, Any]) -> None:
    """Refuse an output folder that was started with other options."""
    if path.is_file():
        try:
            stored = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise PebalError(f"{path} is damaged ({one_line(error)}); delete {path.parent} to start over.") from error
        if changed := [key for key in identity if stored.get(key) != identity[key]]:
            raise PebalError(
                f"{path.parent.parent} contains an adaptation with another {changed[0]} ({stored.get(changed[0])}); "
                "restore that option, or choose another --out."
            )
    write_atomically(path, json.dumps(identity).encode())


def _names(sources: Sequence[str]) -> str:
    return ", ".join(Path(source).name for source in sources)


def _ego(
    config: AdaptConfig, detector: AnomalyDetector, folder: Path, items: list[Kept]
) -> tuple[np.ndarray | None, str]:
    """The ego mask at the size of the frames (H×W bool) or None, and a sentence about it."""
    images = [load(folder, item) for item in items[:: max(1, len(items) // EGO_FRAMES)]]
    if config.ego_mask is not None:
        ego: np.ndarray = IgnoreMask.read(config.ego_mask).at(*images[0].shape[:2])
        note = f"{100 * ego.mean():.1f} % of the image, from {config.ego_mask.name}."
    elif (blocks := len({(item.drive, item.block) for item in items})) < EGO_BLOCKS:
        return (
            None,
            f"none. Finding it takes {EGO_BLOCKS} blocks of time, but the part that adapts has only {blocks}. Record "
            "longer drives.",
        )
    else:
        try:
            ego = find_ego(images, [detector(image).labels for image in images], detector.info.classes)
        except PebalError as error:
            return None, f"none. {error}"
        if not ego.any():
            return None, "none. Nothing stays in place at the border of all frames."
        note = f"{100 * ego.mean():.1f} % of the image stays in place.{_mountings(detector, folder, items)}"
    picture = ego.astype(np.uint8) * np.uint8(255)
    write_atomically(config.out / "ego_mask.png", cv2.imencode(".png", picture)[1].tobytes())
    return ego, f"{note} To change it, edit ego_mask.png and pass it with --ego-mask."


def _mountings(detector: AnomalyDetector, folder: Path, items: list[Kept]) -> str:
    """A warning if the camera was remounted between two drives, otherwise an empty text."""
    masks = []
    for drive in sorted({item.drive for item in items}):
        images = [load(folder, item) for item in items if item.drive == drive][:EGO_FRAMES]
        if len(images) >= FEWEST:
            masks.append(find_ego(images, [detector(image).labels for image in images], detector.info.classes))
    if any(moved_mounting(first, second) for first, second in pairwise(masks)):
        return " The mounting changed between drives, so only what is fixed in all of them is masked."
    return ""


def _write_scenes(work: Path, detector: AnomalyDetector, items: list[Kept], ego: np.ndarray | None) -> list[str]:
    """Write the frames with the detector's labels as a labelled data set, in which the ego mask is void.

    Returns:
        Files of the frames that are left out of training. They may contain an anomaly, because their strongest energies
        are far above those of the other frames. The calibration part keeps such frames, because without them the
        threshold would not keep its promise.
    """
    done = work / "scenes" / "suspects.json"
    if done.is_file():
        try:
            return [str(file) for file in json.loads(done.read_text())]
        except (ValueError, TypeError) as error:
            raise PebalError(f"{done} is damaged ({one_line(error)}); delete {work} to start over.") from error
    peaks: dict[str, float] = {}
    classes = detector.info.classes.numbered().as_dict()
    write_atomically(work / CLASSES, yaml.safe_dump(classes, allow_unicode=True, sort_keys=False).encode())
    images, labels = (work / "scenes" / kind / "train" for kind in ("images", "labels"))
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for item in track(items, "labels of the frames", console=Console(stderr=True)):
        stem = Path(item.file).stem
        result = detector(load(work / "frames", item))
        ids = result.labels.copy()
        if ego is not None:
            ids[ego] = VOID
        peaks[item.file] = float(np.quantile(result.energy[ids != VOID], 0.999))
        write_atomically(labels / f"{stem}.png", cv2.imencode(".png", ids)[1].tobytes())
        link = images / f"{stem}.png"
        if not link.exists():
            link.hardlink_to(work / "frames" / item.file)
    suspects = outstanding(peaks)
    for file in suspects:
        (work / "scenes" / "images" / "train" / f"{Path(file).stem}.png").unlink()
    write_atomically(done, json.dumps(suspects).encode())
    return suspects


def outstanding(peaks: dict[str, float]) -> list[str]:
    """The frames whose peak energy lies more than `OUTSTANDING` robust standard deviations above the median.

    Args:
        peaks: peak energy in nats by file.

    Examples:
        >>> outstanding({"a": -5.0, "b": -5.2, "c": -4.9, "d": -5.1, "e": 1.0})
        ['e']
    """
    values = np.array(list(peaks.values()))
    spread = np.median(np.abs(values - np.median(values))) * 1.4826 + 0.1
    return [file for file, peak in peaks.items() if peak > np.median(values) + OUTSTANDING * spread]


def _samples_of(work: Path, classes_file: Path, outliers: Path, shapes: bool, info: ModelInfo) -> TrainingSamples:
    """Crops of the labelled frames in ``scenes``, some with pasted outliers; random shapes hold some families back."""
    config = DataConfig(
        root=str(work),
        scenes=[SceneSource("folders", "scenes", "train", 360, str(classes_file))],
        validation=[],
        outliers=str(outliers),
        held_back=list(HELD_BACK) if shapes else [],
        rich_mix=RichMix(height=[0.15, 3.5], anywhere=0.35, anywhere_height=[0.05, 0.9], pieces=0.5),
        outlier_share=0.6,
        crop=[320, 384],
        scale=[0.75, 2.0],
        color=0.2,
    )
    return TrainingSamples(config, open_outliers(config)[0], 0, info.classes)


def _fit(config: AdaptConfig, work: Path, outliers: Path, threshold: float) -> Path:
    """Path of the adapted model, which is made now unless an interrupted run has done so."""
    path = work / ADAPTED
    if path.is_file():
        return path
    network, info = add_function(*load_model(config.model))
    statistics = info.outlier_statistics
    remembered = OutlierStatistics.decode(statistics, sum(network.channels)) if statistics else None
    samples = _samples_of(work, work / CLASSES, outliers, config.outliers is None, info)
    pixels = collect_pixels(network, info, samples, config.samples, threshold)
    try:
        network.set_last(*fit_function(pixels, threshold, remembered))
    except PebalError as error:
        print(f"{error} The energies stay as they are.")
    info.training = {
        "command": "pebal adapt",
        "samples": config.samples,
        "started_from": {"sha256": file_sha256(resolve_model(config.model)), "training": info.training},
    }
    save_model(path, network, info)
    return path
