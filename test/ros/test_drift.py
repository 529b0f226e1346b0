"""The promise of the model file in /diagnostics, and that it is taken back when the images change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from pebal_core.detector import AnomalyDetector
from pebal_core.guarantee import Request
from pebal_core.model_file import rewrite_info
from pebal_core.objects import IgnoreMask
from pebal_core.training.calibrate import CalibrationScene, calibrate

from .harness import Rig, picture, set_parameter, start_rig, values, wait_until

IMAGE = "/kept/image"


@pytest.fixture(scope="module")
def kept(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A node whose model was calibrated on the pictures that the test shows, and masks the bonnet."""
    folder = tmp_path_factory.mktemp("kept")
    detector = AnomalyDetector.load(tiny_model, "torch", "cpu")
    bonnet = np.zeros((96, 160), bool)
    bonnet[80:] = True
    detector.info.ego_mask = IgnoreMask(bonnet, "The ego mask").encode()
    scenes = [CalibrationScene(str(seed), picture(seed=seed)) for seed in range(8)]
    calibrate(detector, scenes, Request(0.02), "drives", "pictures", relax=True)
    rewrite_info(tiny_model, folder / "kept.safetensors", detector.info)
    with start_rig("/kept", folder / "log", {"model": folder / "kept.safetensors"}) as rig:
        yield rig


def test_a_guarantee_is_stated_and_taken_back_in_the_dark(kept: Rig) -> None:
    camera, labels = kept.client.camera(), kept.client.listen("labels")
    try:
        for seed in range(30):
            labels.wait_for(camera.send(picture(seed=seed % 8)))
        camera.send_until(lambda: values(kept.client.last(IMAGE)).get("finding") == "running")
        assert values(kept.client.last(IMAGE))["drift"] == "none"
        model = kept.client.status("model", lambda s: "guarantee" in values(s))
        assert "drives" in values(model)["guarantee"] and "pictures" in values(model)["guarantee"]

        def said() -> bool:
            camera.send(picture() // 6)
            time.sleep(0.02)
            return values(kept.client.last(IMAGE)).get("finding") == "drift"

        wait_until(said)
        status = kept.client.last(IMAGE)
        assert status.level == DiagnosticStatus.WARN
        assert "The guarantee no longer holds: the images are darker" in status.message
        set_parameter(kept.client, "threshold", -3.0)
        status = kept.client.status("model", lambda s: values(s)["guarantee"].startswith("none"))
        assert "to the threshold of the model" in values(status)["guarantee"]
    finally:
        camera.close()
        labels.close()
