"""Score one image and list the objects in it that the network was not trained on.

python examples/score_image.py image.jpg [model.safetensors]
"""

from __future__ import annotations

import sys

import cv2

import pebal_core


def main(path: str, model: str = "starter") -> None:
    bgr = cv2.imread(path)
    if bgr is None:
        sys.exit(f"{path} cannot be read as an image.")
    detector = pebal_core.AnomalyDetector.load(model)
    result = detector(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
    print(
        f"The highest energy is {result.energy.max():.2f} nats, and the alarm threshold is {detector.info.threshold} "
        "nats"
    )
    rules = pebal_core.ObjectRules.for_model(detector.info)
    for found in pebal_core.find_objects(result.energy, result.labels, rules).objects:
        print(
            f"There is an object of {found.area} pixels in the box {found.box}, {found.mean_energy:.2f} nats on average"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
