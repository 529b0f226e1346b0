"""Recordings as footage: every kind that rosbag writes, the choice of a topic, and everything that can be wrong."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from pebal_core.errors import PebalError
from pebal_core.footage import FrameSource

from .bags import KINDS, PERIOD, START, Messages, drive, picture, write_bag

TOPIC = "/front/image_raw"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_recording_gives_every_frame(tmp_path: Path, kind: str) -> None:
    entries = [*drive(kind), ("/chat", START + 1, Messages(kind == "ros1").text("hello"))]
    path = write_bag(tmp_path / "drive", kind, sorted(entries, key=lambda entry: entry[1]))
    source = FrameSource(path)
    assert source.rate == pytest.approx(20) and source.count == 5 and source.is_video and source.topics == [TOPIC]
    for _ in range(2):  # it can be read again
        frames = list(source)
        assert [frame.name for frame in frames] == [f"{n:06d}_{START + n * PERIOD}" for n in range(5)]
        assert [frame.seconds for frame in frames] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
        for number, frame in enumerate(frames):
            np.testing.assert_array_equal(frame.image, picture(number))
            assert frame.recorded is not None
            assert frame.recorded.log_ns == START + number * PERIOD + 3_000_000
            assert frame.recorded.message.header.frame_id == "front"


@pytest.mark.parametrize("kind", ["mcap", "sqlite3"])
def test_a_single_storage_file_is_a_recording(tmp_path: Path, kind: str) -> None:
    folder = write_bag(tmp_path / "drive", kind, drive(kind))
    (file,) = (file for file in folder.iterdir() if file.suffix != ".yaml")
    assert len(list(FrameSource(file))) == 5


@pytest.mark.parametrize(("codec", "tolerance"), [("png", 0), ("jpeg", 4)])
@pytest.mark.parametrize("kind", ["mcap", "ros1"])
def test_compressed_images(tmp_path: Path, kind: str, codec: str, tolerance: float) -> None:
    messages = Messages(kind == "ros1")
    entries = [("/image/compressed", START + n, messages.compressed(picture(n), codec, START + n)) for n in range(3)]
    frames = list(FrameSource(write_bag(tmp_path / "drive", kind, entries)))
    assert len(frames) == 3
    for number, frame in enumerate(frames):
        assert np.abs(frame.image.astype(int) - picture(number)).mean() <= tolerance


def several(tmp_path: Path) -> Path:
    """Two cameras with the same stamps, one of them also compressed, and something else."""
    messages = Messages(False)
    entries = []
    for number in range(3):
        stamp = START + number * PERIOD
        entries += [
            ("/left/image", stamp, messages.image(picture(number), "rgb8", stamp, "left")),
            ("/right/image", stamp, messages.image(picture(number + 10), "rgb8", stamp, "right")),
            ("/right/image/compressed", stamp, messages.compressed(picture(number + 20), "png", stamp, "right")),
            ("/chat", stamp, messages.text("hello")),
        ]
    return write_bag(tmp_path / "several", "mcap", entries)


@pytest.mark.parametrize(
    ("topic", "first"),
    [
        ("/left/image", 0),
        ("/right/image", 10),
        ("/right/image/compressed", 20),
        ("CompressedImage", 20),
        ("sensor_msgs/CompressedImage", 20),
        ("sensor_msgs/msg/CompressedImage", 20),
    ],
)
def test_a_topic_is_chosen_by_name_or_type(tmp_path: Path, topic: str, first: int) -> None:
    reds = [int(frame.image[0, 0, 0]) for frame in FrameSource(several(tmp_path), topic)]
    assert reds == [10 * number for number in range(first, first + 3)]


@pytest.mark.parametrize(
    ("topic", "sentence"),
    [
        ("", "several image topics; choose one as the topic: /left/image (Image), /right/image (Image), /right"),
        ("Image", "several image topics"),
        ("/rear/image", "has no topic /rear/image; its image topics are: /left/image (Image), /right/image (Image), "),
        ("/chat", "The topic /chat of the recording .* carries no images (std_msgs/msg/String); its image topics"),
    ],
)
def test_a_topic_that_cannot_be_chosen(tmp_path: Path, topic: str, sentence: str) -> None:
    with pytest.raises(PebalError, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        FrameSource(several(tmp_path), topic)


def test_a_raw_topic_and_its_compressed_twin_are_one_camera(tmp_path: Path) -> None:
    messages = Messages(False)
    entries = [
        ("/image", START, messages.image(picture(1), "rgb8", START)),
        ("/image/compressed", START, messages.compressed(picture(2), "png", START)),
        ("/image/compressedDepth", START, messages.compressed(picture(3), "png", START)),
    ]
    assert FrameSource(write_bag(tmp_path / "twins", "mcap", entries)).topics == ["/image"]


def test_a_topic_is_for_recordings_only(tmp_path: Path) -> None:
    with pytest.raises(PebalError, match="is not a recording. Leave the topic out"):
        FrameSource(tmp_path, "/image")


def test_a_topic_that_changes_its_type(tmp_path: Path) -> None:
    messages = Messages(False)
    pictures = [
        ("/image", START, messages.image(picture(1), "rgb8", START)),
        ("/image", START + 1, messages.compressed(picture(2), "png", START + 1)),
    ]
    frames = list(FrameSource(write_bag(tmp_path / "both", "mcap", pictures)))
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [10, 20], "both are images, so both are read"
    mixed = write_bag(tmp_path / "mixed", "mcap", [*pictures, ("/image", START + 2, messages.text("hello"))])
    with pytest.raises(
        PebalError, match="/image of the recording .* changes its type .*CompressedImage and .*Image and "
    ):
        FrameSource(mixed, "/image")


def test_a_type_that_nobody_knows(tmp_path: Path) -> None:
    """Beside the images it does no harm; chosen, it is said to carry none."""
    with Writer(tmp_path / "drive", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        made = Messages(False)
        strange = writer.add_connection("/strange", "lab_msgs/msg/Strange", msgdef="float17 x", rihs01="RIHS01_00")
        camera = writer.add_connection("/image", "sensor_msgs/msg/Image", typestore=made.store)
        for number in range(3):
            writer.write(strange, START + number, b"\x00\x01\x00\x00junk")
            image = made.image(picture(number), "rgb8", START + number)
            writer.write(camera, START + number, made.store.serialize_cdr(image, image.__msgtype__))
    assert [int(frame.image[0, 0, 0]) for frame in FrameSource(tmp_path / "drive")] == [0, 10, 20]
    with pytest.raises(PebalError, match=r"/strange .* carries no images \(lab_msgs/msg/Strange\)"):
        FrameSource(tmp_path / "drive", "/strange")


def test_images_may_change_size_and_encoding(tmp_path: Path) -> None:
    messages = Messages(False)
    entries = [
        ("/image", START, messages.image(picture(1), "rgb8", START)),
        ("/image", START + 1, messages.image(picture(2, 16, 20)[..., 0], "mono8", START + 1)),
    ]
    shapes = [frame.image.shape for frame in FrameSource(write_bag(tmp_path / "drive", "mcap", entries))]
    assert shapes == [(32, 48, 3), (16, 20, 3)]


def test_stamps_of_zero_give_way_to_the_time_of_recording(tmp_path: Path) -> None:
    messages = Messages(False)
    entries = [("/image", START + n * PERIOD, messages.image(picture(n), "rgb8", 0)) for n in range(4)]
    source = FrameSource(write_bag(tmp_path / "drive", "mcap", entries))
    frames = list(source)
    assert source.rate == pytest.approx(20) and [frame.seconds for frame in frames] == pytest.approx(
        [0, 0.05, 0.1, 0.15]
    )
    assert len({frame.name for frame in frames}) == 4
    assert frames[2].recorded is not None and frames[2].recorded.stamp_ns == 0, "the stamp itself stays what it is"


def test_malformed_images_are_skipped_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = drive("mcap", 8)
    topic, _, good = entries[0]
    entries[1] = (topic, entries[1][1], replace(entries[1][2], data=good.data[:-1]))
    entries[4] = (topic, entries[4][1], replace(entries[4][2], encoding="rgb99"))
    entries[6] = (topic, entries[6][1], b"\x00\x01\x00\x00\x01")
    source = FrameSource(write_bag(tmp_path / "drive", "mcap", entries))
    with caplog.at_level(logging.WARNING):
        numbers = [int(frame.name[:6]) for frame in source]
    assert numbers == [0, 2, 3, 5, 7] and source.skipped == 3
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and f"image 1 on {TOPIC} was skipped: 4607 bytes of data came with" in said[0]
    assert "'rgb99' is not supported" in said[1] and "its 5 bytes are not" in said[2]


def test_a_recording_of_malformed_images_only(tmp_path: Path) -> None:
    entries = [(topic, log_ns, replace(message, encoding="16SC1")) for topic, log_ns, message in drive("mcap", 7)]
    source = FrameSource(write_bag(tmp_path / "drive", "mcap", entries))
    with pytest.raises(PebalError, match="None of the 7 images on /front/image_raw of .* could be decoded"):
        list(source)


# ---- damaged recordings ----


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def storage(path: Path) -> Path:
    return path if path.is_file() else next(file for file in path.iterdir() if file.suffix != ".yaml")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("kind", ["mcap", "mcap-chunk-zstd", "sqlite3", "sqlite3-file-zstd", "ros1"])
def test_a_recording_that_was_cut_short(tmp_path: Path, kind: str, share: float) -> None:
    path = write_bag(tmp_path / "drive", kind, drive(kind, 40))
    cut(storage(path), share)
    with pytest.raises(PebalError, match=f"The recording {path} .*(mcap recover|rosbag reindex|ros2 bag reindex)"):
        list(FrameSource(path))


@pytest.mark.parametrize("kind", ["mcap", "sqlite3", "ros1"])
def test_a_recording_of_noise(tmp_path: Path, kind: str) -> None:
    path = write_bag(tmp_path / "drive", kind, drive(kind))
    noise = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    storage(path).write_bytes(noise)
    with pytest.raises(PebalError, match=f"The recording {path} cannot be read"):
        list(FrameSource(path))


@pytest.mark.parametrize("kind", ["mcap", "mcap-chunk-zstd"])
def test_flipped_bytes_never_give_fewer_frames_in_silence(tmp_path: Path, kind: str) -> None:
    path = write_bag(tmp_path / "drive", kind, drive(kind, 40))
    content = storage(path).read_bytes()
    for position in np.random.default_rng(1).integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        storage(path).write_bytes(bytes(damaged))
        try:
            source = FrameSource(path)
            assert len(list(source)) + source.skipped == 40
        except PebalError:
            pass


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "metadata.yaml").write_text("a: [b"), "cannot be read"),
        (lambda folder: (folder / "metadata.yaml").write_text("a: b"), "cannot be read"),
        (lambda folder: (folder / "metadata.yaml").unlink(), "no metadata.yaml. Name one of the files, or create"),
        (lambda folder: next(folder.glob("*.mcap")).unlink(), "Some database files are missing"),
    ],
)
def test_a_folder_that_is_not_complete(tmp_path: Path, damage: Callable[[Path], object], sentence: str) -> None:
    folder = write_bag(tmp_path / "drive", "mcap", drive("mcap"))
    damage(folder)
    with pytest.raises(PebalError, match=sentence):
        FrameSource(folder)


@pytest.mark.parametrize("kind", ["mcap", "sqlite3", "ros1"])
def test_an_empty_recording(tmp_path: Path, kind: str) -> None:
    with pytest.raises(PebalError, match="has no image topic; it contains no topics"):
        FrameSource(write_bag(tmp_path / "nothing", kind, []))
    if kind != "ros1":
        silent = write_bag(tmp_path / "silent", kind, [], [("/image", "sensor_msgs/msg/Image")])
        with pytest.raises(PebalError, match="The topic /image of the recording .* contains no image"):
            FrameSource(silent)
    other = write_bag(tmp_path / "other", kind, [("/chat", START, Messages(kind == "ros1").text("hello"))])
    with pytest.raises(PebalError, match="has no image topic; its topics are: /chat .std_msgs/msg/String"):
        FrameSource(other)


def test_an_mcap_without_index_is_read_by_scanning(tmp_path: Path) -> None:
    folder = write_bag(tmp_path / "drive", "mcap", drive("mcap"))
    content = bytearray(storage(folder).read_bytes())
    content[-28:-12] = bytes(16)  # the footer's offsets of the summary: there is none
    file = tmp_path / "unindexed.mcap"
    file.write_bytes(content)
    assert [int(frame.image[0, 0, 0]) for frame in FrameSource(file)] == [0, 10, 20, 30, 40]


def test_a_database_that_was_not_closed(tmp_path: Path) -> None:
    file = storage(write_bag(tmp_path / "drive", "sqlite3", drive("sqlite3")))
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("DELETE FROM messages WHERE id = 1")
    database.commit()
    kept = tmp_path / "crashed.db3"
    shutil.copy(file, kept)  # as after a crash: the log was never merged
    shutil.copy(f"{file}-wal", f"{kept}-wal")
    database.close()
    with pytest.raises(PebalError, match="was not closed properly, and crashed.db3-wal still contains messages"):
        FrameSource(kept)


@pytest.mark.parametrize("kind", ["mcap", "mcap-chunk-zstd", "sqlite3", "ros1"])
def test_memory_does_not_grow_with_the_recording(tmp_path: Path, kind: str) -> None:
    def peak(count: int) -> int:
        messages = Messages(kind == "ros1")
        noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
        entries = ((TOPIC, START + n * PERIOD, messages.image(noise, "rgb8", START + n * PERIOD)) for n in range(count))
        path = write_bag(tmp_path / f"drive{count}", kind, entries)
        tracemalloc.start()
        for _ in FrameSource(path):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(3)  # what is imported and allocated once
    assert peak(60) < peak(15) + 2_000_000, "45 more images of 600 kB each cost no memory"
