"""Labelled sequences: composited, read back, and the figures of objects over time."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from pebal_core.commands.main import main
from pebal_core.data.cutouts import Cutout
from pebal_core.data.sequences import Approach, Road, open_sequences, place, write_sequence
from pebal_core.detector import AnomalyDetector, Result
from pebal_core.errors import PebalError
from pebal_core.footage import FrameSource
from pebal_core.metrics.sequences import SequenceMetrics
from pebal_core.objects import RoadObject

pytestmark = pytest.mark.slow

RED = Cutout(
    np.full((40, 40, 3), (255, 0, 0), np.uint8), np.ones((40, 40), np.float32), np.full((40, 40), 254, np.uint8)
)
ROAD = Road(width=320, horizon=100, centre=160, focal=230, camera_height=1.3)
EMPTY = np.empty((0, 2), np.int32)


def box(x: int, y: int, width: int, height: int, number: int) -> RoadObject:
    mask = np.ones((height, width), bool)
    return RoadObject((x, y, width, height), mask.size, -3, -2, 0, (x, y), EMPTY, EMPTY, mask, number, True)


def truth(x: int, y: int, width: int, height: int, number: int = 1) -> np.ndarray:
    labelled = np.zeros((100, 200), np.uint8)
    labelled[y : y + height, x : x + width] = number
    return labelled


def test_an_object_stands_where_its_distance_puts_it() -> None:
    approach = Approach(farthest=20, nearest=5, frames=4, object_width=1.0)
    image = np.full((240, 320, 3), 90, np.uint8)
    for frame, distance in enumerate((20, 15, 10, 5)):
        picture, mask = place(image, RED, ROAD, approach, frame)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert rows[-1] == pytest.approx(100 + 230 * 1.3 / distance - 1, abs=1)
        assert len(columns) == pytest.approx(230 / distance, abs=1) and columns.mean() == pytest.approx(160, abs=1)
        assert (picture[mask > 0][:, 0] > 120).all()
    assert (image == 90).all(), "the frame that was given stays as it is"


def test_figures_of_a_sequence_by_hand() -> None:
    metrics = SequenceMetrics()
    metrics.begin(rate=10, frames=6)
    metrics.update([], truth(50, 50, 5, 5), 0.0)  # 25 px: it has not appeared yet
    metrics.update([], truth(50, 50, 10, 10), 0.1)  # it appears
    metrics.update([box(50, 50, 4, 4, 7)], truth(50, 50, 10, 10), 0.2)  # 16 % of it is covered
    metrics.update([box(50, 50, 6, 6, 7), box(150, 10, 10, 10, 8)], truth(50, 50, 12, 12), 0.3)  # 25 % of it
    metrics.update([box(50, 50, 9, 9, 9), box(150, 10, 10, 10, 8)], truth(50, 50, 12, 12), 0.4)  # another number
    metrics.update([box(50, 50, 9, 9, 9), box(0, 0, 200, 10, 10)], truth(0, 0, 200, 100, 255), 0.5)  # void alone
    figures = metrics.compute()
    assert (figures.sequences, figures.frames, figures.objects, figures.reported) == (1, 6, 1, 1)
    assert figures.minutes == pytest.approx(0.01) and figures.share_reported == 1
    assert figures.seconds_to_report == pytest.approx(0.2) and figures.width_at_report == 12
    assert figures.id_switches == 1
    assert figures.false_objects == 1 and figures.false_per_minute == pytest.approx(100)
    assert figures.false_per_frame == pytest.approx(2 / 6)


def test_without_objects_there_is_no_share() -> None:
    metrics = SequenceMetrics()
    metrics.begin(10, 1)
    metrics.update([], truth(0, 0, 0, 0), 0.0)
    figures = metrics.compute()
    assert figures.share_reported is None and figures.seconds_to_report is None and figures.false_per_minute == 0


@pytest.fixture
def drive(tmp_path: Path) -> FrameSource:
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"clip_{number:02d}.png"), np.full((240, 320, 3), 90, np.uint8))
    return FrameSource(tmp_path)


def test_the_benchmark_of_sequences(
    drive: FrameSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that sees red, and blinks red at one place for a single frame."""
    approach = Approach(farthest=12, nearest=5, frames=12)
    write_sequence(tmp_path / "set" / "red", drive, RED, ROAD, approach, 12)
    write_sequence(tmp_path / "set" / "clean", drive, None, ROAD, approach, 12)
    calls = []

    def sees_red(self: AnomalyDetector, image: np.ndarray) -> Result:
        calls.append(1)
        energy = np.where((image[..., 0] > 170) & (image[..., 1] < 110), -0.5, -12).astype(np.float32)
        if len(calls) == 6:
            energy[200:220, 20:40] = -0.5
        return Result(np.zeros(image.shape[:2], np.uint8), energy)

    monkeypatch.setattr(AnomalyDetector, "__call__", sees_red)
    assert main(["benchmark", "--sequences", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "sequences.json").read_text())
    assert results["confirmed"]["share_reported"] == results["at once"]["share_reported"] == 1
    assert results["confirmed"]["seconds_to_report"] == pytest.approx(0.2)
    assert results["at once"]["seconds_to_report"] == 0
    assert (results["confirmed"]["false_objects"], results["at once"]["false_objects"]) == (0, 1)
    assert "false objects per minute" in capsys.readouterr().out


def test_damaged_sequences_are_refused(drive: FrameSource, tmp_path: Path) -> None:
    with pytest.raises(PebalError, match="contains no sequences"):
        open_sequences(tmp_path)
    folder = tmp_path / "set" / "one"
    write_sequence(folder, drive, None, ROAD, Approach(), 2)
    (folder / "sequence.json").write_text("{}")
    with pytest.raises(PebalError, match="must contain the rate"):
        open_sequences(tmp_path / "set")
    (folder / "sequence.json").write_text('{"rate": 10}')
    (folder / "objects" / "00001.png").unlink()
    with pytest.raises(PebalError, match=r"00001.png is missing; every image of a sequence"):
        open_sequences(tmp_path / "set")


def test_nothing_to_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--out", str(tmp_path)]) == 1
    assert "--dataset NAME=PATH, or pass --sequences FOLDER" in capsys.readouterr().err
