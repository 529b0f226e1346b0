"""`pebal adapt` on a small synthetic drive, the ego mask, and what footage is refused."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pebal_core.adaptation.check import Figures
from pebal_core.adaptation.ego import find_ego, moved_mounting
from pebal_core.adaptation.footage import collect
from pebal_core.adaptation.run import _refuse
from pebal_core.commands.main import main
from pebal_core.errors import PebalError
from pebal_core.model_file import load_model, read_info
from pebal_core.objects import IgnoreMask

pytestmark = pytest.mark.slow


def scene(number: int, bonnet: bool = True, height: int = 90, width: int = 160) -> np.ndarray:
    """Texture that is another one in every frame, over a bonnet with fixed edges."""
    rng = np.random.default_rng(number)
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 4)
    image = cv2.normalize(image, None, 20, 235, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    if bonnet:
        image[height - 12 :] = (150, 20, 20)
        image[height - 12 : height - 9] = (250, 240, 230)
    return image


def write_drive(folder: Path, count: int, first: int = 0, **options: int) -> Path:
    folder.mkdir()
    for number in range(first, first + count):
        cv2.imwrite(str(folder / f"{number:04d}.png"), scene(number, **options)[..., ::-1])  # type: ignore[arg-type]
    return folder


def test_the_bonnet_is_found_and_nothing_else() -> None:
    images = [scene(n) for n in range(30)]
    labels = np.full((90, 160), 13, np.uint8)
    mask = find_ego(images, [labels] * 30)
    assert mask[80:].mean() > 0.9 and mask[:70].mean() < 0.02
    without = find_ego([scene(n, bonnet=False) for n in range(30)], [np.zeros((90, 160), np.uint8)] * 30)
    assert without.mean() < 0.02
    assert moved_mounting(mask, mask[::-1]) and not moved_mounting(mask, mask)


def test_the_borders_of_a_straight_road_are_no_vehicle() -> None:
    images = []
    for number in range(30):
        image = scene(number, bonnet=False).astype(int)
        image[60:, 40:50] = 200
        image[60:, 50:60] = 60
        noise = np.random.default_rng(number).normal(0, 15, image.shape)
        images.append((image + noise).clip(0, 255).astype(np.uint8))
    vehicle, road = (np.full((90, 160), label, np.uint8) for label in (13, 0))
    assert find_ego(images, [vehicle] * 30)[70:, 45:55].mean() > 0.5
    assert not find_ego(images, [road] * 30).any()


def test_a_still_camera_has_no_ego_mask() -> None:
    rng = np.random.default_rng(0)
    images = [
        (scene(0).astype(int) + rng.integers(-2, 3, (90, 160, 3))).clip(0, 255).astype(np.uint8) for _ in range(20)
    ]
    with pytest.raises(PebalError, match="does not move"):
        find_ego(images, [np.zeros((90, 160), np.uint8)] * 20)


def test_a_mask_travels_in_the_model_file_and_fits_any_size() -> None:
    mask = np.zeros((720, 1280), bool)
    mask[650:] = True
    text = IgnoreMask(mask, "The mask").encode()
    decoded = IgnoreMask.decode(text)
    assert decoded is not None and decoded.mask.shape == (270, 480) and len(text) < 2000
    scaled = decoded.at(360, 640)
    assert scaled[326:].all() and not scaled[:322].any()
    assert decoded.share == pytest.approx(70 / 720, abs=0.01) and IgnoreMask.decode("") is None
    with pytest.raises(PebalError, match="another camera"):
        decoded.at(480, 640)
    for damaged in ("AAAA", "no base64"):
        with pytest.raises(PebalError, match="damaged"):
            IgnoreMask.decode(damaged)


def test_neighbours_never_stand_on_two_sides(tmp_path: Path) -> None:
    footage = collect([str(write_drive(tmp_path / "drive", 100))], tmp_path / "frames", 0.1, 5.0, 1000)
    numbers = {int(item.file[3:9]): item.part for item in footage.kept}
    assert all(numbers.get(n + 1, part) == part for n, part in numbers.items())
    assert set(numbers.values()) == {"adapt", "calibrate", "check"}
    assert footage.left_out["next to a frame of another part"] > 0 and footage.unit == "blocks of 10 images"


def test_few_images_are_blocks_of_their_own(tmp_path: Path) -> None:
    drive = write_drive(tmp_path / "pictures", 8)
    footage = collect([str(drive)], tmp_path / "frames", 0.1, 5.0, 1000)
    assert [item.part for item in footage.kept].count("adapt") == 5 and len(footage.kept) == 8
    assert footage.unit == "images" and "Successive frames" in footage.notes[0]
    again = collect([str(drive)], tmp_path / "frames", 0.1, 5.0, 1000)
    assert again == footage


def test_drives_of_one_shape_are_brought_to_one_size(tmp_path: Path) -> None:
    first = write_drive(tmp_path / "first", 10)
    second = write_drive(tmp_path / "second", 10, first=10, height=180, width=320)
    footage = collect([str(first), str(second)], tmp_path / "frames", 0.1, 5.0, 1000)
    assert footage.notes[-1] == "The frames of second were scaled to 160×90 pixels."
    assert {cv2.imread(str(tmp_path / "frames" / item.file)).shape for item in footage.kept} == {(90, 160, 3)}  # type: ignore[union-attr]


def test_footage_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path) -> None:
    single = write_drive(tmp_path / "single", 1)
    with pytest.raises(PebalError, match="too few"):
        collect([str(single)], tmp_path / "a", 0.1, 5.0, 100)
    wide = write_drive(tmp_path / "wide", 3, width=200)
    with pytest.raises(PebalError, match="another aspect ratio"):
        collect([str(single), str(wide)], tmp_path / "b", 0.1, 5.0, 100)
    black = tmp_path / "black"
    black.mkdir()
    for number in range(5):
        cv2.imwrite(str(black / f"{number}.png"), np.full((90, 160, 3), 255 * (number % 2), np.uint8))
    damaged = tmp_path / "d"
    damaged.mkdir()
    (damaged / "frames.json").write_text('{"sources"')
    with pytest.raises(PebalError, match="is damaged"):
        collect([str(single)], damaged, 0.1, 5.0, 100)
    with pytest.raises(PebalError, match="3 black, 2 overexposed"):
        collect([str(black)], tmp_path / "c", 0.1, 5.0, 100)


def test_an_adaptation_that_does_not_pay_is_not_kept() -> None:
    first = Figures(threshold=-3, false_objects=2.0, alarmed=0.01, recall=0.8, ap=0.9)
    cases = {0.5: "", 1.6: "", 1.7: "too small a gain", 3.0: "too small a gain"}
    for false, reason in cases.items():
        said = _refuse(first, replace(first, false_objects=false))
        assert reason in said and bool(reason) == bool(said)
    calm = replace(first, false_objects=0.0)
    assert "too small a gain" in _refuse(calm, calm), "there is nothing to gain"


def test_a_model_for_a_camera(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, out = write_drive(tmp_path / "drive", 140), tmp_path / "out"
    command = ["adapt", str(drive), "--out", str(out), "--samples=20", "--block=1"]
    assert main(command) == 0
    info = read_info(out / "model.safetensors")
    assert info.ego_mask and info.guarantee["unit"] == "blocks of 10 images" and info.profile["frames"] > 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["before"]["recall"] <= summary["after_at_equal_recall"]["recall"] + 1e-9
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") > 10 and 'src="http' not in page
    monkeypatch.setattr("pebal_core.adaptation.run.GAIN", -1.0)
    assert main(command) == 0, "a finished run continues at its end"
    summary, page = json.loads((out / "summary.json").read_text()), (out / "report.html").read_text()
    assert summary["kept_the_first_model"] and html.escape(summary["verdict"]) in page
    kept, start = (load_model(path)[0].state_dict() for path in (out / "model.safetensors", "starter"))
    assert all(torch.equal(kept[name], value) for name, value in start.items())
    assert main([*command[:-2], "--samples=2"]) == 1
    assert "another samples" in capsys.readouterr().err
