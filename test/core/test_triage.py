"""Triage of recordings and videos whose moments are known; the network takes red for an anomaly, the rest is real."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pebal_core.commands.main import main
from pebal_core.detector import AnomalyDetector, Result
from pebal_core.errors import PebalError
from pebal_core.fleet.events import Moment, difference_hash, select
from pebal_core.fleet.scan import expand
from pebal_core.footage import FrameSource
from pebal_core.render import VideoWriter

from .bags import START, Messages, write_bag

pytestmark = pytest.mark.slow

HEIGHT, WIDTH, PERIOD = 120, 160, 100_000_000

SEES_RED = """
import numpy as np
from pebal_core.detector import AnomalyDetector, Result

def call(self, images):
    single = isinstance(images, np.ndarray)
    results = []
    for image in [images] if single else images:
        red = (image[..., 0] > 150) & (image[..., 1] < 80)
        energy = np.where(red, image[..., 0] / 100.0 - 3.0, -12)
        results.append(Result(np.zeros(image.shape[:2], np.uint8), energy.astype(np.float32)))
    return results[0] if single else results

AnomalyDetector.__call__ = call
"""


@pytest.fixture(autouse=True)
def sees_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnomalyDetector, "__call__", AnomalyDetector.__call__)  # restored at the end
    exec(SEES_RED, {})


def street(seed: int) -> np.ndarray:
    """A picture of its own, without red."""
    coarse = np.random.default_rng(seed).integers(80, 150, (8, 10, 3), np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).clip(80, 150)


def drive(seed: int, objects: dict[int, int], count: int) -> Iterator[np.ndarray]:
    """Frames of a street, another one every three seconds; those in `objects` show a box of that red."""
    for number in range(count):
        image = street(seed + 100 * (number // 30))
        if number in objects:
            image[80:100, 60:84] = (objects[number], 0, 0)
        yield image


def bag(path: Path, frames: Iterator[np.ndarray], kind: str = "mcap") -> Path:
    made = Messages(kind == "ros1")
    entries = (
        ("/front/image", START + n * PERIOD, made.image(image, "rgb8", START + n * PERIOD))
        for n, image in enumerate(frames)
    )
    return write_bag(path, kind, entries)


def run(*words: object) -> int:
    return main(["triage", *map(str, words)])


def table(out: Path) -> list[dict[str, str]]:
    with (out / "moments.csv").open() as stream:
        return list(csv.DictReader(stream))


def span(first: int, last: int, red: int) -> dict[int, int]:
    return dict.fromkeys(range(first, last + 1), red)


def test_a_folder_of_drives_becomes_a_ranked_gallery(tmp_path: Path) -> None:
    drives, out = tmp_path / "drives", tmp_path / "out"
    (drives / "nested").mkdir(parents=True)
    weak_then_strong = {**span(5, 12, 200), **span(40, 47, 240), 60: 250}  # at 60 it is seen once, so not confirmed
    bag(drives / "one", drive(1, weak_then_strong, 70))
    bag(drives / "nested" / "two", drive(2, span(10, 20, 220), 30), "ros1")
    video = VideoWriter(drives / "three.mp4", 10)
    for image in drive(3, {}, 20):
        video.write(image)
    video.close()
    assert run(drives, "--out", out, "--top", "10") == 0
    rows = table(out)
    shown: list[Any] = [
        (Path(row["source"]).name, float(row["first"]), float(row["last"]), int(row["objects"])) for row in rows
    ]
    assert shown == [
        ("one", pytest.approx(4.0), pytest.approx(4.7), 1),  # it is confirmed in the third frame
        ("two.bag", pytest.approx(1.0), pytest.approx(2.0), 1),
        ("one", pytest.approx(0.5), pytest.approx(1.2), 1),
        ("one", pytest.approx(6.0), pytest.approx(6.0), 0),  # energy alone comes after every confirmed object
    ]
    assert [float(row["energy"]) for row in rows] == pytest.approx([-0.6, -0.8, -1.0, -0.5])
    assert rows[0]["topic"] == "/front/image" and rows[0]["utc"] == "2023-11-14T22:13:24.200+00:00"
    for row in rows:
        frame = cv2.imread(str(out / row["image"]))
        assert frame is not None and frame.shape == (HEIGHT, WIDTH, 3)
        clip = FrameSource(out / row["clip"])
        begin, end = max(0.0, float(row["first"]) - 2), float(row["last"]) + 2
        length = 7.0 if "one" in row["source"] else 3.0
        assert len(list(clip)) == pytest.approx(10 * (min(end, length) - begin), abs=1.5)
    assert len(list((out / "frames").iterdir())) == len(rows) == len(list((out / "clips").iterdir()))


def test_the_page_needs_no_other_file_and_links_what_there_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(bag(tmp_path / "drive", drive(1, span(3, 9, 240), 12)), "--out", out) == 0
    page = (out / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?:http|//)', page) and "<script" not in page
    assert re.findall(r'src="([^"]{30})', page) == ["data:image/jpeg;base64,/9j/4AA"]
    links = set(re.findall(r'href="([^"]+)"', page))
    assert len(links) == 2 and all((out / link).is_file() for link in links)
    assert "/front/image" in page and "1. " in page


def test_the_frames_are_a_source(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(bag(tmp_path / "drive", drive(1, span(3, 9, 240), 12)), "--out", out) == 0
    (frame,) = FrameSource(out / "frames")
    assert np.abs(frame.image.astype(int) - next(drive(1, {0: 240}, 1))).mean() < 4


def test_a_source_that_cannot_be_read_is_named_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, out = bag(tmp_path / "good", drive(1, span(3, 9, 240), 12)), tmp_path / "out"
    cut = bag(tmp_path / "cut", drive(2, span(3, 9, 240), 12))
    file = next(cut.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:-3000])
    assert run(cut, tmp_path / "missing.mp4", good, "--out", out) == 1
    complaints = capsys.readouterr().err
    assert f"The recording {cut} cannot be read" in complaints and "missing.mp4 does not exist" in complaints
    assert [row["source"] for row in table(out)] == [str(good)]
    page = (out / "index.html").read_text()
    assert "missing.mp4 does not exist" in page


def test_of_a_source_that_ends_early_what_came_before_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = bag(tmp_path / "drive", drive(1, span(3, 9, 240), 12), "sqlite3"), tmp_path / "out"
    metadata = source / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("message_count: 12", "message_count: 15"))
    for _ in range(2):  # the second time, the result is there
        assert run(source, "--out", out) == 1
        assert "declares 15 images on /front/image, but only 12 could be read" in capsys.readouterr().err
        assert len(table(out)) == 1


KILLED_AT_THE_SECOND = """
import os, signal
from pebal_core.commands.main import main
import pebal_core.fleet.scan as scanning
scan, done = scanning.scan, []
def scan_until(source, *rest):
    if done:
        call = AnomalyDetector.__call__
        def killed(self, images):
            os.kill(os.getpid(), signal.SIGKILL)
        AnomalyDetector.__call__ = killed
    scan(source, *rest)
    done.append(source)
scanning.scan = scan_until
main()
"""


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [bag(tmp_path / name, drive(seed, span(3, 9, 200 + seed), 12)) for seed, name in enumerate("abc", 1)]
    words, out = [*map(str, sources), "--out"], tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-c", SEES_RED + KILLED_AT_THE_SECOND, "triage", *words, str(out)], capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "index.html").exists()
    assert sorted(folder.name[:2] for folder in (out / "sources").iterdir()) == [".b", "a-"]
    seen: list[int] = []
    answer = AnomalyDetector.__call__

    def count(self: AnomalyDetector, images: np.ndarray) -> Result:
        seen.append(int(images.max()))
        return answer(self, images)

    monkeypatch.setattr(AnomalyDetector, "__call__", count)
    assert run(*words, out) == 0
    assert len(seen) == 24 and set(seen) - {150} <= {202, 203, *range(140, 151)}, "a was not looked at again"
    assert sorted(folder.name[:2] for folder in (out / "sources").iterdir()) == ["a-", "b-", "c-"]
    fresh = tmp_path / "fresh"
    assert run(*words, fresh) == 0
    for name in ("index.html", "moments.csv"):
        assert (out / name).read_bytes() == (fresh / name).read_bytes()
    seen.clear()
    assert run(*words, out, "--rate", "5") == 0
    assert len(seen) == 18, "another setting is another result"


@pytest.mark.parametrize("batch", [1, 5])
def test_batches_change_nothing(tmp_path: Path, batch: int) -> None:
    source, out = bag(tmp_path / "drive", drive(1, span(3, 9, 240), 12)), tmp_path / "out"
    assert run(source, "--out", out, "--batch", batch) == 0
    (folder,) = (out / "sources").iterdir()
    (moment,) = json.loads((folder / "moments.json").read_text())["moments"]
    assert (moment["name"], moment["energy"]) == (f"000005_{START + 5 * PERIOD}", pytest.approx(-0.6))


def test_an_older_moment_that_is_chosen_no_longer_is_removed(tmp_path: Path) -> None:
    weak = bag(tmp_path / "weak", drive(1, span(3, 9, 210), 12))
    strong = bag(tmp_path / "strong", drive(2, span(3, 9, 250), 12))
    out = tmp_path / "out"
    assert run(weak, "--out", out, "--top", "1") == 0
    assert run(weak, strong, "--out", out, "--top", "1") == 0
    assert [file.name[:6] for folder in ("frames", "clips") for file in (out / folder).iterdir()] == ["strong"] * 2


def test_a_parked_robot_gives_one_moment_but_a_new_object_gives_another(tmp_path: Path) -> None:
    def parked(seconds: int, red: int, box: slice) -> Iterator[np.ndarray]:
        noise = np.random.default_rng(red)
        for number in range(seconds * 10):
            image = (street(7).astype(int) + noise.integers(-2, 3, (HEIGHT, WIDTH, 1))).clip(0, 150).astype(np.uint8)
            if number > 3:
                image[80:100, box] = (red, 0, 0)
                image[85:90, box] = (red, 70, 60 if box.start > 80 else 0)
            yield image

    same = [bag(tmp_path / f"same{red}", parked(2, red, slice(60, 84))) for red in (200, 240)]
    other = bag(tmp_path / "other", parked(2, 220, slice(100, 140)))
    out = tmp_path / "out"
    assert run(*same, other, "--out", out) == 0
    assert [Path(row["source"]).name for row in table(out)] == ["same240", "other"]
    assert "3 found, 1 left out for looking like a shown moment" in (out / "index.html").read_text()


def test_the_recording_for_rerun(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    source, out, rrd = bag(tmp_path / "drive", drive(1, span(3, 9, 240), 12)), tmp_path / "out", tmp_path / "out.rrd"
    assert run(source, "--out", out, "--rerun", rrd) == 0
    shown = subprocess.run([sys.executable, "-m", "rerun", "rrd", "print", rrd], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    (folder,) = (out / "sources").iterdir()
    for entity in ("/moment/image", "/moment/overlay", "/moment/image/objects", f"/sources/{folder.name}/energy"):
        assert entity.replace(".", "\\.") in shown.stdout or entity in shown.stdout, entity
    lines = (folder / "series.csv").read_text().splitlines()
    assert lines[0] == "seconds,energy,confirmed" and len(lines) == 13
    assert [int(line.rpartition(",")[2]) for line in lines[1:]] == [0] * 5 + [1] * 5 + [0] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"drive", "out", "out.rrd"}


def moment(energy: float, image: np.ndarray, crop: np.ndarray | None) -> Moment:
    look = difference_hash(crop) if crop is not None else ""
    objects = () if crop is None else ({"id": 1, "box": [5, 5, 20, 20], "distance_m": 5.0},)
    return Moment("a", "", "f", 0.0, 0, 0.0, 0.0, energy, objects, difference_hash(image), look)


def test_selection_leaves_out_what_looks_alike_and_keeps_the_stronger() -> None:
    one, other = street(1), street(2)
    moments = [
        moment(1, one, one),
        moment(3, one, one),
        moment(2, one, other),
        moment(9, one, None),
        moment(0, other, one),
    ]
    chosen, left_out = select(moments, 10)
    assert [found.energy for found in chosen] == [3, 2, 0, 9] and left_out == 1
    assert [found.energy for found in select(moments, 2)[0]] == [3, 2]


@pytest.mark.parametrize("kind", ["mcap", "sqlite3", "ros1", "video", "folder"])
def test_a_part_of_a_source(tmp_path: Path, kind: str) -> None:
    frames = [np.full((48, 64, 3), 8 * number, np.uint8) for number in range(30)]
    path = tmp_path / "drive"
    if kind == "video":
        path = tmp_path / "drive.mp4"
        video = VideoWriter(path, 10)
        for image in frames:
            video.write(image)
        video.close()
    elif kind == "folder":
        path.mkdir()
        for number, image in enumerate(frames):
            cv2.imwrite(str(path / f"{number:03d}.png"), image)
    else:
        path = bag(path, iter(frames), kind)
    for begin, end, expected in ((1.0, 1.5, range(10, 16)), (-3.0, 0.1, range(2)), (2.8, 99.0, range(28, 30))):
        part = list(FrameSource(path).between(begin, end))
        assert [frame.seconds for frame in part] == pytest.approx([number / 10 for number in expected])
        assert [frame.image.mean() for frame in part] == pytest.approx([8 * number for number in expected], abs=4)


def test_what_a_folder_stands_for(tmp_path: Path) -> None:
    one = bag(tmp_path / "a" / "drive", drive(1, {}, 2))
    loose = tmp_path / "b" / "loose.mcap"
    loose.parent.mkdir()
    loose.write_bytes(next(one.glob("*.mcap")).read_bytes())
    (tmp_path / "b" / "notes.txt").touch()
    (tmp_path / "c").mkdir()
    cv2.imwrite(str(tmp_path / "c" / "1.png"), street(1))
    assert expand([str(tmp_path), str(one)]) == [str(one), str(loose), str(tmp_path / "c")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(PebalError, match="empty contains no recordings, videos or images"):
        expand([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["drive", "--out", "file/out"], "file/out"),
        (["empty", "--out", "out"], "The folder empty contains no recordings, videos or images"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("empty").mkdir()
    bag(Path("drive"), drive(1, {}, 2))
    assert main(["triage", *words]) == 1
    assert sentence in capsys.readouterr().err
