"""`pebal pack`: files as the benchmarks' official tools read them, and what the check refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pebal_core.benchmark.submissions import (
    OrderKeepingFloat16,
    SubmissionImage,
    check_fishyscapes,
    check_smiyc,
    find_frames,
    require_finite,
    write_hdf5,
    write_npy,
)
from pebal_core.commands.main import main
from pebal_core.data.scenes import read_image
from pebal_core.detector import AnomalyDetector
from pebal_core.errors import PebalError
from pebal_core.metrics.pooled import PooledMetrics

SMALL = ["--input-size", "64", "128"]


def write_images(folder: Path, names: list[str], shape: tuple[int, int], suffix: str = ".png") -> list[SubmissionImage]:
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True)
    for name in names:
        coarse = rng.integers(0, 256, (8, 16, 3), np.uint8)
        cv2.imwrite(str(folder / f"{name}{suffix}"), cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC))
    return [SubmissionImage(name, folder / f"{name}{suffix}") for name in names]


def test_smiyc_files_hold_the_order_of_the_models_energies(tmp_path: Path) -> None:
    frames = write_images(tmp_path / "dataset" / "images", ["b_1", "a_0"], (72, 120))
    command = ["pack", str(tmp_path / "dataset" / "images"), "--format", "smiyc", "--method", "mine", "--out"]
    assert main([*command, str(tmp_path / "out"), *SMALL]) == 0
    folder = tmp_path / "out" / "anomaly_p" / "mine" / "images"
    assert sorted(path.name for path in folder.iterdir()) == ["a_0.hdf5", "b_1.hdf5"]
    detector = AnomalyDetector.load("starter", input_size=(64, 128))
    energies, packed = [], []
    for frame in frames:
        energies.append(detector(read_image(frame.path)).energy)
        with h5py.File(folder / f"{frame.name}.hdf5") as file:
            assert list(file) == ["value"]
            packed.append(file["value"][()])
        assert packed[-1].dtype == np.float16 and packed[-1].shape == (72, 120)
    # One map for both frames: sorted by energy, the packed scores never fall.
    order = np.argsort(np.concatenate(energies), axis=None)
    assert (np.diff(np.concatenate(packed).ravel()[order].astype(np.float32)) >= 0).all()
    assert len(np.unique(packed)) > 5000
    assert main([*command, str(tmp_path / "out"), "--check-only"]) == 0


def test_fishyscapes_files_are_energy_and_labels(tmp_path: Path) -> None:
    (frame,) = write_images(tmp_path / "input", ["0003_street"], (1024, 2048))
    command = ["pack", str(tmp_path / "input"), "--format", "fishyscapes", "--out", str(tmp_path / "output")]
    assert main([*command, *SMALL]) == 0
    result = AnomalyDetector.load("starter", input_size=(64, 128))(read_image(frame.path))
    anomaly = np.load(tmp_path / "output" / "0003_street_anomaly.npy")
    assert anomaly.dtype == np.float32 and np.array_equal(anomaly, result.energy)
    assert np.array_equal(np.load(tmp_path / "output" / "0003_street_segmentation.npy"), result.labels)


@given(st.lists(st.floats(-60, 20, width=32), min_size=2, max_size=400).filter(lambda x: len(set(x)) > 1))
def test_the_map_never_exchanges_two_scores(scores: list[float]) -> None:
    array = np.array(scores, np.float32)
    mapped = OrderKeepingFloat16(array)(array)
    assert mapped.dtype == np.float16 and mapped.min() > 0 and mapped.max() == 1
    assert (np.diff(mapped[np.argsort(array)].astype(np.float32)) >= 0).all()


def test_the_map_keeps_metrics_where_plain_float16_does_not() -> None:
    """Scores with a large offset: float16 merges them all near -500, the map does not mind."""
    rng = np.random.default_rng(0)
    target = (rng.random((400, 500)) < 0.01).astype(np.uint8)
    score = (rng.normal(size=target.shape) + 3 * target - 500).astype(np.float32)
    plain, mapped = score.astype(np.float16), OrderKeepingFloat16(score)(score)
    figures = []
    for array in (score, plain, mapped):
        metrics = PooledMetrics()
        metrics.update(array.astype(np.float32), target, name="frame")
        figures.append(metrics.compute())
    exact, of_plain, of_mapped = figures
    assert exact.ap and exact.fpr95 and of_plain.ap and of_plain.fpr95 and of_mapped.ap and of_mapped.fpr95
    assert abs(of_plain.ap - exact.ap) > 1e-2
    assert abs(of_mapped.ap - exact.ap) < 2e-4 and abs(of_mapped.fpr95 - exact.fpr95) < 2e-4


def test_equal_scores_and_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(PebalError, match="All scores are -3"):
        OrderKeepingFloat16(np.full(10, -3.0, np.float32))
    with pytest.raises(PebalError, match=r"a\.png: 1 of 2 scores are not finite"):
        require_finite(np.array([1, np.inf], np.float32), "a.png")


def hdf5(name: str, data: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset(name, data=data)

    return write


RAMP = np.linspace(0, 1, 20 * 32, dtype=np.float16).reshape(20, 32)
BROKEN_HDF5: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, r"a\.hdf5: missing"),
    "garbage": (lambda path: path.write_bytes(b"no"), "cannot be read as HDF5"),
    "name": (hdf5("scores", RAMP), "contains no data set 'value'"),
    "float32": (hdf5("value", RAMP.astype(np.float32)), "float32, not float16"),
    "transposed": (hdf5("value", RAMP.T), "the scores are 32×20, the image is 20×32"),
    "scalar": (hdf5("value", np.float16(1)), "the scores are a single number"),
    "nan": (hdf5("value", np.where(RAMP > 0.9, np.nan, RAMP).astype(np.float16)), "not finite"),
    "constant": (hdf5("value", np.zeros_like(RAMP)), "all scores are equal"),
    "stranger": (lambda path: path.rename(path.with_name("c.hdf5")), r"c\.hdf5: belongs to no frame"),
}


@pytest.mark.parametrize("fault", BROKEN_HDF5)
def test_the_smiyc_check_names_what_is_wrong(tmp_path: Path, fault: str) -> None:
    frames = write_images(tmp_path / "images", ["a", "b"], (20, 32))
    for frame in frames:
        write_hdf5(tmp_path / f"{frame.name}.hdf5", RAMP)
    assert check_smiyc(tmp_path, frames) == []
    spoil, message = BROKEN_HDF5[fault]
    spoil(tmp_path / "a.hdf5")
    problems = check_smiyc(tmp_path, frames)
    assert re.search(message, "\n".join(problems))
    assert len(problems) == (2 if fault == "stranger" else 1)


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("anomaly", np.zeros((1024, 2048), np.float32), "all scores are equal"),
        ("anomaly", np.zeros((1024, 2048), np.float64), "float64, not float32"),
        ("anomaly", np.zeros((1, 1024, 2048), np.float32), "1×1024×2048, not 1024×2048"),
        ("segmentation", np.full((1024, 2048), 20, np.uint8), "from 20 to 20 are not trainIds below 20"),
        ("segmentation", np.zeros((1024, 2048), np.float32), "float32 from 0.0 to 0.0 are not trainIds"),
        ("segmentation", np.array([{}], object), "cannot be read as an array"),
    ],
)
def test_the_fishyscapes_check_names_what_is_wrong(tmp_path: Path, kind: str, array: np.ndarray, message: str) -> None:
    frames = [SubmissionImage("0_a", tmp_path / "0_a.png")]
    ramp = np.linspace(-20, 0, 1024 * 2048, dtype=np.float32).reshape(1024, 2048)
    write_npy(tmp_path / "0_a_anomaly.npy", ramp)
    write_npy(tmp_path / "0_a_segmentation.npy", np.zeros(ramp.shape, np.uint8))
    assert check_fishyscapes(tmp_path, frames) == []
    np.save(tmp_path / f"0_a_{kind}.npy", array, allow_pickle=True)
    (problem,) = check_fishyscapes(tmp_path, frames)
    assert problem.startswith(f"0_a_{kind}.npy: ") and message in problem


def test_fishyscapes_names_must_carry_distinct_numbers(tmp_path: Path) -> None:
    frames = [SubmissionImage(name, tmp_path) for name in ("street", "01_a", "1_b")]
    problems = [problem for problem in check_fishyscapes(tmp_path, frames) if "missing" not in problem]
    assert problems == [
        "street: the name does not begin with the number that the labels are matched by",
        "1_b: 01_a has the same number, 1",
    ]


def test_official_sets_are_found_by_their_layout_and_must_be_complete(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [f"scene{i:04d}" for i in range(109)], (8, 16))
    with pytest.raises(PebalError, match="109 images, but AnomalyTrack-all has 110"):
        find_frames(tmp_path, "AnomalyTrack-all")
    assert len(find_frames(tmp_path, "ObstacleTrack-all")) == 109
    with pytest.raises(PebalError, match="contains no images that match leftImg8bit/test"):
        find_frames(tmp_path, "LostAndFound-test")
    street = tmp_path / "leftImg8bit" / "test" / "02_Street"
    street.mkdir(parents=True)
    for i in range(1203):
        (street / f"02_Street_{i:06d}_leftImg8bit.png").touch()
    assert find_frames(tmp_path, "LostAndFound-test")[7].name == "02_Street_000007"
    write_images(tmp_path / "twice", ["a"], (8, 16))
    write_images(tmp_path / "more", ["a"], (8, 16), ".jpg")
    (tmp_path / "more" / "a.jpg").rename(tmp_path / "twice" / "a.jpg")
    with pytest.raises(PebalError, match="have the same frame name"):
        find_frames(tmp_path / "twice")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "fishyscapes", "--set", "AnomalyTrack-all"], "--set names a set of SegmentMeIfYouCan"),
        (["--format", "smiyc", "--method", "../up"], "--method ../up names a folder"),
        (["--format", "smiyc", "--check-only"], "would not be evaluated correctly, because of the 1 problems"),
    ],
)
def test_wrong_options_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    write_images(tmp_path / "images", ["a"], (20, 32))
    assert main(["pack", str(tmp_path / "images"), "--out", str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err
