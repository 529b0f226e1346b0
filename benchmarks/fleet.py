"""How fast a fleet's recordings are looked at, what that costs, and what limits it on many machines.

python benchmarks/fleet.py drive.mp4 --drives 6 --frames 60 --workers 1 2

Cuts recordings of JPEG images from a video, times the stages of one process, then whole triages on local Ray clusters.
The model for more machines: workers share nothing but the storage, so the rate grows with their number until the bytes
that they read and write per second reach what the storage gives; choosing moments is one process's work at the end.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pebal_core.engines.machine import allotted_cores
from pebal_core.errors import PebalError
from pebal_core.fleet.cluster import HERE, Cluster, open_workers
from pebal_core.fleet.events import EventFinder, select
from pebal_core.fleet.scan import Job, ModelChoice, Scanner, ScanRequest, stored
from pebal_core.footage import FrameSource
from pebal_core.footage.bag_writer import BagWriter
from pebal_core.footage.bags import open_reader
from pebal_core.outputs import ObjectOptions, ObjectReader, messages

RATE = 10.0
"""Frames per second of the recordings."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="video")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--drives", type=int, default=6)
    parser.add_argument("--frames", type=int, default=60, help="of each drive")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--price", type=float, default=0.04, help="per hour of a core, in any currency")
    parser.add_argument("--speed", type=float, default=50.0, help="of the vehicles, in km/h")
    parser.add_argument("--storage", type=float, default=10.0, help="what the shared storage gives, in GB/s")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-", dir=args.folder) as folder:
        try:
            report(args, Path(folder))
        except PebalError as error:
            print(f"fleet: {error}", file=sys.stderr)
            return 1
    return 0


def report(args: argparse.Namespace, folder: Path) -> None:
    drives = list(record(args.source, args.drives, args.frames, folder))
    size = sum(path.stat().st_size for path in drives) / (len(drives) * args.frames)
    choice, request = ModelChoice(args.model, device="cpu"), ScanRequest(50, "", 0, 1, ObjectOptions())
    stages = Table("stage", "ms per frame", title="One process")
    for name, seconds in time_stages(drives[0], choice).items():
        stages.add_row(name, f"{1e3 * seconds / args.frames:.2f}")
    table = Table(
        "workers", "cores each", "frames/s", "cost of 1000 km", "MB/s read", title="Triage on a local Ray cluster"
    )
    frames_of_1000_km = 1000 / args.speed * 3600 * RATE
    rates = {}
    for workers in args.workers:
        rates[workers] = rate = time_triage(drives, args.frames, workers, choice, request, folder / f"out{workers}")
        cores = allotted_cores() // workers
        cost = frames_of_1000_km / rate / 3600 * args.price * workers * cores
        table.add_row(str(workers), str(cores), f"{rate:.1f}", f"{cost:.2f}", f"{rate * size / 1e6:.1f}")
    began = time.perf_counter()
    moments = [moment for out in sorted((folder / f"out{args.workers[0]}").iterdir()) for moment, _ in stored(out)[0]]
    select(moments, 50)
    choosing = (time.perf_counter() - began) / len(drives)
    per_worker = rates[args.workers[-1]] / args.workers[-1]
    model = Table("workers", "frames/s", "GB/s read", "limited by", title="Extrapolated, not measured")
    for workers in (10, 100, 1000, 10_000):
        wanted = per_worker * workers * size / 1e9
        rate = per_worker * workers * min(1.0, args.storage / wanted)
        limit = "the workers" if wanted <= args.storage else f"the storage ({args.storage:g} GB/s)"
        model.add_row(str(workers), f"{rate:.0f}", f"{min(wanted, args.storage):.2f}", limit)
    for one in (stages, table, model):
        Console().print(one)
    print(
        f"{size / 1e3:.0f} kB per frame; choosing takes {1e3 * choosing:.1f} ms per source on one process at the end."
    )
    print(f"Storage of {args.storage:g} GB/s feeds {args.storage * 1e9 / (per_worker * size):.0f} such workers.")


def record(source: str, count: int, frames: int, folder: Path) -> Iterator[Path]:
    """Recordings of the same frames of a video."""
    images = [frame.image for frame in islice(FrameSource(source), frames)]
    if len(images) < frames:
        raise PebalError(f"{source} has only {len(images)} frames; pass --frames {len(images)}.")
    first = folder / "drive0.mcap"
    with BagWriter(first) as bag:
        for number, image in enumerate(images):
            stamp = round(number / RATE * 1e9)
            bag.write("/image/compressed", messages.compressed(image, "jpeg", messages.header(stamp, "camera")), stamp)
    yield first
    for number in range(1, count):
        yield Path(shutil.copyfile(first, folder / f"drive{number}.mcap"))


def time_stages(drive: Path, choice: ModelChoice) -> dict[str, float]:
    """Seconds of each stage for one recording, one after the other."""
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        seconds[name] = time.perf_counter() - began
        began = time.perf_counter()

    reader = open_reader(drive)
    for _ in reader.messages():
        pass
    reader.close()
    lap("reading and unpacking")
    source = FrameSource(drive)
    began = time.perf_counter()
    frames = list(source)
    lap("the same and decoding")
    detector = choice.load()
    detector(frames[0].image)
    began = time.perf_counter()
    results = [detector(frame.image) for frame in frames]
    lap("network")
    read, finder = ObjectReader(ObjectOptions(), detector.info, source), EventFinder(str(drive), 50, None)
    for frame, result in zip(frames, results):
        finder.add(frame, read(frame, result), None)
    finder.finish()
    lap("objects, events and pictures")
    return seconds


def time_triage(
    drives: list[Path], frames: int, workers: int, choice: ModelChoice, request: ScanRequest, out: Path
) -> float:
    """Frames per second of a local cluster, from when each worker has done one recording: loading does not count."""
    jobs = [Job(str(drive), out / drive.stem) for drive in drives]
    if len(jobs) < 2 * workers or workers > allotted_cores():
        raise PebalError(f"{workers} workers need the same number of cores and at least {2 * workers} --drives.")
    done = []
    cluster, load = Cluster(HERE, allotted_cores() // workers), partial(Scanner, request, choice.everywhere())
    with open_workers(cluster, load, workers) as started:
        for _, _, error in started.results(jobs):
            if error is not None:
                raise error
            done.append(time.perf_counter())
    return (len(jobs) - workers) * frames / (done[-1] - done[workers - 1])


if __name__ == "__main__":
    sys.exit(main())
