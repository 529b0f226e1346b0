"""False objects per minute on footage that shows nothing foreign, with the object rules and the tracker of the node.

    python benchmarks/false_objects.py drives/*.mp4
    python benchmarks/false_objects.py --model front_camera/model.safetensors --rate 5 drives/*.mp4

Every object that is ever confirmed counts once, however long it stays. The last column shows the number if every
sighting counts, however much the outline changes (`min_overlap: 0`).
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
        "| clip | seconds | frames | candidates per frame | confirmed objects | per minute | with any outline |\n"
        "|---|---|---|---|---|---|---|"
    )
    total_seconds, total, total_any = 0.0, 0, 0
    for path in args.clips:
        clip, trackers = FrameSource(path), [ObjectTracker(TrackRules()), ObjectTracker(TrackRules(min_overlap=0))]
        step, frames, candidates, seconds = max(1, round(clip.rate / args.rate)), 0, 0, 0.0
        confirmed: list[set[int]] = [set(), set()]
        for number, frame in enumerate(clip):
            if number % step:
                continue
            result = detector(frame.image)
            ignore = None if mask is None else mask.at(*result.energy.shape)
            found = find_objects(result.energy, result.labels, rules, ignore).objects
            for tracker, numbers in zip(trackers, confirmed):
                numbers |= {one.id for one in tracker.update(found, frame.seconds) if one.confirmed}
            frames, candidates, seconds = frames + 1, candidates + len(found), frame.seconds
        steady, anyhow = map(len, confirmed)
        name, minutes = path.rpartition("/")[2], max(seconds, 1e-9) / 60
        print(
            f"| {name} | {seconds:.1f} | {frames} | {candidates / max(frames, 1):.2f} | {steady} | "
            f"{steady / minutes:.1f} | {anyhow} |",
            flush=True,
        )
        total_seconds, total, total_any = total_seconds + seconds, total + steady, total_any + anyhow
    per_minute = total / max(total_seconds, 1e-9) * 60
    print(f"| all | {total_seconds:.1f} | | | {total} | {per_minute:.1f} | {total_any} |")


if __name__ == "__main__":
    main()
