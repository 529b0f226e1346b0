"""`pebal predict` on a clip whose object is known: files, lines and distances."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from pebal_core.commands.main import main
from pebal_core.detector import AnomalyDetector, Result
from pebal_core.fleet.frames import batches
from pebal_core.footage import Frame

CALIBRATION = """
image_width: 320
image_height: 240
camera_matrix: {rows: 3, cols: 3, data: [300, 0, 160, 0, 300, 120, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}
"""


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six frames with a red box that stands 15 m ahead; the network takes red for an anomaly."""

    def sees_red(self: AnomalyDetector, image: np.ndarray) -> Result:
        labels = np.zeros(image.shape[:2], np.uint8)
        red = (image[..., 0] > 200) & (image[..., 1] < 80)
        return Result(labels, np.where(red, -0.5, -12).astype(np.float32))

    monkeypatch.setattr(AnomalyDetector, "__call__", sees_red)
    folder = tmp_path / "drive"
    folder.mkdir()
    for number in range(6):
        image = np.full((240, 320, 3), 90, np.uint8)
        image[131:151, 150 + number : 170 + number] = (0, 0, 255)  # 30 px below the horizon: 300 · 1.5 / 30 m
        cv2.imwrite(str(folder / f"{number:03d}.png"), image)
    return folder


@pytest.mark.slow
def test_objects_of_a_drive(drive: Path, tmp_path: Path) -> None:
    calibration, out = tmp_path / "camera.yaml", tmp_path / "out"
    calibration.write_text(CALIBRATION)
    assert main(["predict", str(drive), "--out", str(out), "--camera-info", str(calibration)]) == 0
    lines = [json.loads(line) for line in (out / "objects.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [f"{number:03d}" for number in range(6)]
    assert [line["time"] for line in lines] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    for number, line in enumerate(lines):
        (found,) = line["objects"]
        assert found["id"] == 1 and found["box"] == [150 + number, 131, 20, 20] and found["area"] == 400
        assert found["confirmed"] == (number >= 2)
        assert found["peak_energy"] == found["mean_energy"] == -0.5
        assert found["contact"][1] == 150 and found["distance_m"] == pytest.approx(15, rel=0.01)
        numbers = cv2.imread(str(out / "objects" / f"{line['name']}.png"), cv2.IMREAD_UNCHANGED)
        assert numbers is not None and numbers.dtype == np.uint16
        assert np.bincount(numbers.ravel()).tolist() == [320 * 240 - 400, 400]


def test_batches_hold_frames_of_one_size_and_are_full_as_soon_as_they_can_be() -> None:
    drawn: list[int] = []

    def frames() -> Iterator[Frame]:
        for number, side in enumerate([8, 8, 8, 4, 4, 8]):
            drawn.append(number)
            yield Frame(str(number), np.zeros((side, side, 3), np.uint8), number / 10)

    made = [([frame.name for frame in batch], len(drawn)) for batch in batches(frames(), 2)]
    assert made == [(["0", "1"], 2), (["2"], 4), (["3", "4"], 5), (["5"], 6)]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--ignore-mask", "missing.png"], "ignore mask missing.png is missing or is not an image"),
        (["--camera-info", "missing.yaml"], "calibration missing.yaml cannot be read"),
        (["--camera-info", "other.yaml"], "other.yaml is not a calibration file as ROS writes it"),
        (["--camera-info", "camera.yaml", "--camera-pitch", "-60"], "horizon lies below the image"),
        (["--camera-info", "wide.yaml"], "The calibration is for 640×240 pixels, but the frames are 320×240"),
    ],
)
def test_options_that_cannot_be_used(
    drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("camera.yaml").write_text(CALIBRATION)
    Path("wide.yaml").write_text(CALIBRATION.replace("320", "640"))
    Path("other.yaml").write_text("image_width: 320\n")
    assert main(["predict", str(drive), "--out", "out", *words]) == 1
    assert sentence in capsys.readouterr().err
