"""The demo: real footage through real ROS 2, and an account of what came back.

Two processes, `camera_player` and `anomaly_node`, talk over the middleware as in a vehicle; this third one subscribes
like any user's node. It writes summary.json, overlay.mp4 and a few stills, and prints the figures as a table.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import rclpy
from demo_footage import APPROACH, fetch_drive, frames_with_object
from demo_listener import Listener
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pebal_core.data.scenes import read_ids, read_image
from pebal_core.engines.selection import model_info
from pebal_core.errors import PebalError
from pebal_core.footage import FrameSource
from pebal_core.metrics.pooled import PooledMetrics
from pebal_core.metrics.sequences import SequenceMetrics
from pebal_core.objects import ObjectRules, ObjectTracker, TrackRules, find_objects
from pebal_core.render import VideoWriter

ROOT = Path(__file__).resolve().parent.parent
LOADING, ANSWERING = 120.0, 60.0
"""Seconds of patience: until the model is loaded, and between two answers."""
STILLS = 4
SENT = "sent.csv"
"""Written by the player: stamp and name of every frame it published."""


def main() -> int:
    args = parse_arguments()
    try:
        run(args)
    except PebalError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted.", file=sys.stderr)
        return 130
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo.sh", description=__doc__.split("\n")[0])
    parser.add_argument("--source", help="video, recording, folder of images, or camera index; default: a real drive")
    parser.add_argument("--topic", default="", help="of a recording, the image topic; default: the only one")
    parser.add_argument("--frames", type=int, default=180, help="camera frames to send (default: 180)")
    parser.add_argument("--rate", type=float, default=10.0, help="camera frames per second (default: 10)")
    parser.add_argument("--model", default="starter", help="model file, or name of a shipped model")
    parser.add_argument("--out", type=Path, default=ROOT / "demo_output", help="folder for the results")
    parser.add_argument("--no-object", action="store_true", help="do not put a foreign object on the default footage")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    if args.frames < 1 or args.rate <= 0:
        raise PebalError("--frames and --rate must be positive.")
    footage = Path(args.source) if args.source else fetch_drive(ROOT / ".cache")
    source = FrameSource(args.source or footage, args.topic)
    with_object = args.source is None and not args.no_object
    frames = min(args.frames, source.count or args.frames)
    out = prepare_folder(args.out)
    if with_object:
        played: str | Path = out / "camera"
        composite(source, frames, out)
    else:
        played = source.source
    rclpy.init()
    node = start("anomaly_node", model=args.model)
    processes = [node]
    listener = Listener(out / "received")
    try:
        with Progress(
            SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
        ) as bar:
            task = bar.add_task("loading the model", total=None)
            wait_for(listener, lambda: listener.node_is_active, LOADING, node)
            player = start(
                "camera_player",
                source=played,
                **({"topic": args.topic} if args.topic else {}),
                rate=args.rate,
                count=frames,
                wait_for_subscribers=1,
                manifest=out / SENT,
            )
            processes.append(player)
            bar.update(task, description="camera frames seen by the model", total=frames)
            watch(listener, lambda: bar.update(task, completed=listener.settled()), player, node)
    finally:
        for process in reversed(processes):
            stop(process)
    summary = summarise(listener, out, with_object)
    listener.destroy_node()
    rclpy.try_shutdown()
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_pictures(out)
    print_table(summary, out)


def prepare_folder(out: Path) -> Path:
    """An empty output folder; only what an earlier demo wrote is removed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("camera", "masks", "received"):
            shutil.rmtree(out / name, ignore_errors=True)
            (out / name).mkdir()
    except OSError as error:
        raise PebalError(f"The folder {out} cannot be used: {error.strerror}; choose another --out.") from error
    return out


def composite(source: FrameSource, frames: int, out: Path) -> None:
    """Write the first frames with the object on the road to ``camera/``, its numbers to ``masks/``."""
    for number, (frame, mask) in enumerate(islice(frames_with_object(source), frames)):
        cv2.imwrite(str(out / "camera" / f"{frame.name}.jpg"), frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        cv2.imwrite(str(out / "masks" / f"{frame.name}.png"), mask * (number // APPROACH.frames + 1))


def start(executable: str, **parameters: object) -> subprocess.Popen[bytes]:
    """Run an executable of pebal_ros as a process of its own."""
    command = [sys.executable, "-m", f"pebal_ros.{executable}", "--ros-args"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={value}"]
    return subprocess.Popen(command)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process as a terminal would; kill it if it does not end."""
    if process.poll() is None:
        process.send_signal(2)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(listener: Listener, ready: Callable[[], bool], patience: float, node: subprocess.Popen[bytes]) -> None:
    """Spin until ready.

    Raises:
        PebalError: the node ended, or patience did.
    """
    until = time.monotonic() + patience
    while not ready():
        rclpy.spin_once(listener, timeout_sec=0.1)
        if node.poll() is not None:
            raise PebalError("The node ended. Its last line above gives the reason.")
        if time.monotonic() > until:
            raise PebalError(
                f"Nothing came from the node for {patience:.0f} s. Check in its log above what it is waiting for."
            )


def watch(
    listener: Listener, progress: Callable[[], None], player: subprocess.Popen[bytes], node: subprocess.Popen[bytes]
) -> None:
    """Spin until the footage has ended and every frame is accounted for."""

    def answered_or_ended() -> bool:
        progress()
        return listener.answered > before or (player.poll() is not None and listener.complete())

    while player.poll() is None or not listener.complete():
        before = listener.answered
        wait_for(listener, answered_or_ended, ANSWERING, node)
    if player.returncode:
        raise PebalError("The camera player failed. Its last line above gives the reason.")
    if not listener.answered:
        raise PebalError("None of the node's answers arrived. Check in its log above what happened to the frames.")


def summarise(listener: Listener, out: Path, with_object: bool) -> dict[str, object]:
    """Everything worth knowing of the run, as plain values."""
    with (out / SENT).open(newline="") as stream:
        sent = {int(row["stamp_ns"]): row["name"] for row in csv.DictReader(stream)}
    return {
        "frames": {"published": len(sent), **listener.frame_counts()},
        "latency_ms": listener.latencies(),
        "stages_ms": listener.stage_times(),
        "model": listener.model,
        "quality": quality(listener.folder, sent, out / "masks") if with_object else None,
        "objects": objects(listener, sent, out / "masks" if with_object else None),
    }


def quality(energies: Path, sent: dict[int, str], masks: Path) -> dict[str, object]:
    """Pixel metrics of the energy on the object's mask, all answered frames pooled."""
    metrics = PooledMetrics()
    for path in sorted(energies.glob("*.npy")):
        name = sent[int(path.stem)]
        metrics.update(np.load(path), (read_ids(masks / f"{name}.png") > 0).astype(np.uint8), name=name)
    result = metrics.compute()
    return {"auroc": result.auroc, "ap": result.ap, "fpr95": result.fpr95, "frames": result.images,
            "object_pixels": result.outliers, "other_pixels": result.inliers}  # fmt: skip


def objects(listener: Listener, sent: dict[int, str], masks: Path | None) -> dict[str, object]:
    """What the confirmed objects of the answered frames are worth, found and tracked as the node does it.

    The object of the default footage is labelled; on other footage every object counts as false.
    """
    info = model_info(Path(listener.model["model"]))
    tracker, rules, metrics = ObjectTracker(TrackRules()), ObjectRules.for_model(info), SequenceMetrics()
    stamps = sorted(int(path.stem) for path in listener.folder.glob("*.npy"))
    seconds = [1e-9 * (stamp - stamps[0]) for stamp in stamps]
    metrics.begin(len(stamps) / max(seconds[-1], 1e-9), len(stamps))
    for stamp, second in zip(stamps, seconds):
        energy = np.load(listener.folder / f"{stamp}.npy")
        labels = listener.folder / f"{stamp}_labels.png"
        if not labels.is_file():
            continue
        name = sent[stamp]
        truth = read_ids(masks / f"{name}.png") if masks is not None else np.zeros(energy.shape, np.uint8)
        found = tracker.update(find_objects(energy, read_ids(labels), rules).objects, second)
        metrics.update([one for one in found if one.confirmed], truth, second)
    figures = metrics.compute()
    seen = [truth.confirmed for truth in metrics.truths if truth.confirmed is not None]
    return {
        "objects": figures.objects,
        "confirmed": figures.reported,
        "first confirmed in frame": sent[stamps[seconds.index(seen[0])]] if seen else None,
        "width in pixels when first confirmed": figures.width_at_report,
        "seconds from its appearance": figures.seconds_to_report,
        "false objects": figures.false_objects,
        "false objects per minute": figures.false_per_minute,
    }


def write_pictures(out: Path) -> None:
    """overlay.mp4 of all answered frames, and stills at even distances."""
    pictures = sorted((out / "received").glob("*_overlay.png"))
    video = VideoWriter(out / "overlay.mp4", 5)
    for path in pictures:
        video.write(read_image(path))
    video.close()
    # Of an answer that was replaced on its way, one of the two can be missing.
    pairs = [
        (path, labels)
        for path in pictures
        if (labels := path.with_name(path.name.replace("_overlay", "_label_colors"))).is_file()
    ]
    for number, index in enumerate(np.linspace(0, len(pairs) - 1, STILLS).round().astype(int) if pairs else []):
        views = [read_image(path) for path in pairs[index]]
        cv2.imwrite(str(out / f"still_{number}.png"), np.hstack(views)[..., ::-1])
    shutil.rmtree(out / "received")


def print_table(summary: dict[str, object], out: Path) -> None:
    table = Table(title="What came back", show_header=False)
    for section, values in summary.items():
        if isinstance(values, dict):
            for name, value in values.items():
                shown = f"{value:.4f}" if isinstance(value, float) and section == "quality" else (
                    f"{value:.1f}" if isinstance(value, float) else str(value))  # fmt: skip
                table.add_row(section, name, shown)
            table.add_section()
    Console().print(table)
    print(f"Results: {out}/summary.json, overlay.mp4, still_*.png")


if __name__ == "__main__":
    sys.exit(main())
