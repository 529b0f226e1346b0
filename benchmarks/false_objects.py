"""False objects per minute on footage that shows nothing foreign, with the object rules and the tracker of the node.

    python benchmarks/false_objects.py drives/*.mp4
    python benchmarks/false_objects.py --model front_camera/model.safetensors --rate 5 drives/*.mp4

Every object that is ever confirmed counts once, however long it stays.
"""

from __future__ import annotations

import argparse

from pebal_core.detector import AnomalyDetector
from pebal_core.footage import FrameSource
from pebal_core.objects import IgnoreMask, ObjectRules, ObjectTracker, TrackRules, find_objects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--rate", type=float, default=5.0, help="frames looked at in a second")
    args = parser.parse_args()
    detector = AnomalyDetector.load(args.model)
    rules, mask = ObjectRules.for_model(detector.info), IgnoreMask.decode(detector.info.ego_mask)
    print(
        "| clip | seconds | frames | candidates per frame | confirmed objects | per minute |\n|---|---|---|---|---|---|"
    )
    total_seconds, total = 0.0, 0
    for path in args.clips:
        clip, tracker = FrameSource(path), ObjectTracker(TrackRules())
        step, confirmed, frames, candidates, seconds = max(1, round(clip.rate / args.rate)), set(), 0, 0, 0.0
        for number, frame in enumerate(clip):
            if number % step:
                continue
            result = detector(frame.image)
            ignore = None if mask is None else mask.at(*result.energy.shape)
            found = find_objects(result.energy, result.labels, rules, ignore).objects
            confirmed |= {one.id for one in tracker.update(found, frame.seconds) if one.confirmed}
            frames, candidates, seconds = frames + 1, candidates + len(found), frame.seconds
        name, minutes = path.rpartition("/")[2], max(seconds, 1e-9) / 60
        print(
            f"| {name} | {seconds:.1f} | {frames} | {candidates / max(frames, 1):.2f} | {len(confirmed)} | "
            f"{len(confirmed) / minutes:.1f} |",
            flush=True,
        )
        total_seconds, total = total_seconds + seconds, total + len(confirmed)
    print(f"| all | {total_seconds:.1f} | | | {total} | {total / max(total_seconds, 1e-9) * 60:.1f} |")


if __name__ == "__main__":
    main()
