"""The guarantee: exact thresholds, the statements, and MAPIE's figures beside ours."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from pebal_core.errors import PebalError
from pebal_core.guarantee import Request, guarantee
from pebal_core.metrics.score_counts import ScoreCounts
from pebal_core.risk_control import (
    Loss,
    critical_energy,
    hoeffding_bentkus,
    largest_confident_risk,
    largest_mean_risk,
    mean_risk,
    object_loss,
    pixel_loss,
    smallest_alpha,
    smallest_threshold,
    units_needed,
)

NO_PIXEL = np.empty(0, np.float32)


def pixel_unit(rng: np.random.Generator, bound: float, size: int = 400) -> tuple[np.ndarray, Loss]:
    # Two decimals: many pixels share an energy.
    energy = np.round(rng.normal(rng.normal(), 1, size), 2).astype(np.float32)
    counts = ScoreCounts()
    for part in np.array_split(energy, 3):
        counts.add(NO_PIXEL, part)
    return energy, pixel_loss(counts, bound)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_exact_at_the_energies(seed: int) -> None:
    """At the threshold the condition holds by the definition, and one float32 lower it fails."""
    rng, bound, alpha = np.random.default_rng(seed), 0.2, 0.05
    pairs = [pixel_unit(rng, bound) for _ in range(12)]
    losses = [loss for _, loss in pairs]
    threshold = smallest_threshold(losses, largest_mean_risk(alpha, bound, 12))

    def condition(t: float) -> bool:
        mean = np.mean([min(bound, float((energy >= np.float32(t)).mean())) for energy, _ in pairs])
        assert mean_risk(losses, t) == pytest.approx(mean, abs=1e-12)
        return bool((12 * mean + bound) / 13 <= alpha + 1e-12)

    assert condition(threshold)
    assert not condition(float(np.nextafter(np.float32(threshold), np.float32(-np.inf))))


def test_a_frame_shows_an_object_up_to_its_critical_energy() -> None:
    rng = np.random.default_rng(3)
    energy = np.round(cv2.GaussianBlur(rng.normal(size=(60, 80)), (0, 0), 2) * 10, 1).astype(np.float32)
    ignore = np.zeros(energy.shape, bool)
    ignore[:20] = True
    for size in (1, 7, 40, 400):
        critical = critical_energy(energy, size, ignore)
        for threshold in np.unique(energy):
            alarm = ((energy >= threshold) & ~ignore).astype(np.uint8)
            areas = cv2.connectedComponentsWithStats(alarm, connectivity=8)[2][1:, cv2.CC_STAT_AREA]
            assert (threshold <= critical) == bool((areas >= size).any())
    assert critical_energy(energy, 81 * 60) == -math.inf
    assert critical_energy(energy, 1, np.ones_like(ignore)) == -math.inf


def test_the_share_of_frames_with_a_false_object() -> None:
    loss = object_loss([2.0, 1.0, 2.0, -math.inf])
    assert [loss.at(t) for t in (2.1, 2.0, 1.5, 1.0, -9.0)] == [0, 0.5, 0.5, 0.75, 0.75]


def test_p_values_and_fixed_sequence_equal_mapies() -> None:
    pytest.importorskip("mapie", reason="MAPIE, the oracle, is not installed")
    from mapie.risk_control.fwer_control import control_fwer
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    rng = np.random.default_rng(0)
    for units, alpha in ((5, 0.3), (40, 0.1), (300, 0.02)):
        means = rng.uniform(0, 1.2 * alpha, 50)
        expected = compute_hoeffding_bentkus_p_value(means, units, alpha)[:, 0]
        ours = [hoeffding_bentkus(float(mean), alpha, units) for mean in means]
        np.testing.assert_allclose(ours, np.minimum(expected, 1), rtol=1e-9)
        # Thresholds from the highest down have rising risks.
        rising = np.sort(means)
        kept = control_fwer(compute_hoeffding_bentkus_p_value(rising, units, alpha)[:, 0], 0.05, "fixed_sequence")
        largest = largest_confident_risk(alpha, 1.0, units, 0.95)
        assert len(kept) == np.count_nonzero(rising <= largest)


def test_conformal_thresholds_equal_mapies() -> None:
    pytest.importorskip("mapie", reason="MAPIE, the oracle, is not installed")
    from mapie.risk_control.methods import find_best_predict_param, get_r_hat_plus

    rng = np.random.default_rng(1)
    losses = [object_loss(rng.normal(rng.normal(), 1, 30).tolist()) for _ in range(25)]
    grid = np.unique(np.concatenate([loss.energies for loss in losses]))
    above = np.nextafter(grid, np.float32(np.inf))
    risks = np.array([[loss.at(float(t)) for t in above] for loss in losses])
    _, plus = get_r_hat_plus(risks, above, "crc", None, None, None)
    for alpha in (0.0703, 0.1003, 0.3003, 0.5003):
        # MAPIE asks for < alpha; these values meet none exactly.
        expected = find_best_predict_param(above, plus, np.array([alpha]))[0]
        assert smallest_threshold(losses, largest_mean_risk(alpha, 1.0, 25)) == float(expected)


def test_units_needed_are_needed() -> None:
    assert units_needed(0.001, 1.0) == 999 and units_needed(0.001, 0.05) == 49
    for alpha, bound, confidence in ((0.01, 0.05, None), (0.2, 1.0, 0.95), (0.003, 0.05, 0.9)):
        needed = units_needed(alpha, bound, confidence)
        reach = [
            largest_mean_risk(alpha, bound, n) > -1e-9
            if confidence is None
            else largest_confident_risk(alpha, bound, n, confidence) >= 0
            for n in (needed - 1, needed)
        ]
        assert reach == [False, True]
        assert (
            smallest_alpha(bound, needed, confidence) <= alpha + 1e-12 < smallest_alpha(bound, needed - 1, confidence)
        )


@pytest.mark.slow
def test_promises_hold_on_average_and_with_confidence() -> None:
    """Drawn anew 400 times: the mean of the true risk keeps alpha, and few draws break the confident promise."""
    rng, alpha, units = np.random.default_rng(2), 0.1, 60
    request = Request(alpha, clip=0.4, confident=True)

    def draw() -> Loss:
        # A unit of 50 pixels; the true risk at t is known from a large sample below.
        values = -np.sort(-(rng.normal(0, 1) + rng.normal(0, 1, 50))).astype(np.float32)
        return Loss(values, np.minimum(np.arange(1, 51) / 50, 0.4))

    truth = [draw() for _ in range(4000)]
    mean, broken = [], 0
    for _ in range(400):
        promised = guarantee({"pixels": [draw() for _ in range(units)]}, request, "units", 60, "draws")
        average, confident = promised.statements
        assert average.threshold is not None and confident.threshold == promised.threshold
        mean.append(mean_risk(truth[:500], average.threshold))
        broken += mean_risk(truth[:500], confident.threshold) > alpha
    assert np.mean(mean) == pytest.approx(alpha, abs=0.012)
    assert broken <= 0.05 * 400


def test_what_is_out_of_reach_says_how_much_is_needed() -> None:
    losses = [object_loss([1.0, 2.0])] * 3
    with pytest.raises(PebalError, match=r"9 drives are needed .* 0.1, .* has 3.*--object-alpha 0.25"):
        guarantee({"pixels": losses, "objects": losses}, Request(0.04, object_alpha=0.1), "drives", 6, "trips")
    relaxed = guarantee({"pixels": losses}, Request(0.001), "drives", 6, "trips", relax=True)
    assert "at most 1.25 %" in relaxed.text and "Not promised" in relaxed.text
    for bad in ({"alpha": 0.0}, {"alpha": 0.2}, {"confidence": 1.0}, {"object_size": 0}):
        with pytest.raises(PebalError, match="option"):
            Request(**bad)


@pytest.mark.slow
def test_the_command_promises_about_footage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pebal_core.commands.main import main
    from pebal_core.model_file import read_info

    rng = np.random.default_rng(0)
    for drive in range(5):
        (tmp_path / f"drive{drive}").mkdir()
        for number in range(2):
            image = cv2.GaussianBlur(rng.integers(0, 256, (64, 96, 3), np.uint8), (0, 0), 3)
            cv2.imwrite(str(tmp_path / f"drive{drive}" / f"{number}.png"), image)
    out, drives = tmp_path / "model.safetensors", [str(tmp_path / f"drive{n}") for n in range(5)]
    assert main(["calibrate", *drives, "--out", str(out), "--object-alpha=0.2", "--object-size=20"]) == 0
    info = read_info(out)
    assert info.guarantee["units"] == 5 and info.guarantee["unit"] == "drives" and info.guarantee["frames"] == 10
    assert "false object of 20 pixels" in info.guarantee["text"]
    assert main(["info", str(out)]) == 0
    assert "false object of 20 pixels" in " ".join(capsys.readouterr().out.split())
    assert main(["calibrate", *drives, "--out", str(out), "--alpha=0.001"]) == 1
    assert "49 blocks of 5 s are needed to promise alpha 0.001" in capsys.readouterr().err
