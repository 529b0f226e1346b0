"""Objects of one image: hysteresis, size, place, bounds; and the filtered energy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pebal_core.errors import PebalError
from pebal_core.model_info import ModelInfo
from pebal_core.objects import ObjectRules, filter_energy, find_objects, finding

HEIGHT, WIDTH = 120, 160
RULES = ObjectRules(threshold=-4.0, grow=-6.0, min_area=20, reference_width=WIDTH, reach=4, smoothing=0)
ROAD, BUILDING, SKY = 0, 2, 10


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A calm scene: buildings above row 60, road below."""
    labels = np.full((HEIGHT, WIDTH), BUILDING, np.uint8)
    labels[60:] = ROAD
    return np.full((HEIGHT, WIDTH), -10, np.float32), labels


def test_object_grows_from_its_seed_to_the_lower_threshold() -> None:
    energy, labels = scene()
    energy[70:80, 40:60] = -5  # of this alone there is no object
    assert not find_objects(energy, labels, RULES).objects
    energy[72, 45] = -3
    (found,) = find_objects(energy, labels, RULES).objects
    assert found.box == (40, 70, 20, 10) and found.area == 200
    assert found.peak_energy == -3 and found.mean_energy == pytest.approx((199 * -5 - 3) / 200)
    assert found.contact == (50, 79)
    assert found.foot[:, 0].tolist() == list(range(40, 60)) and (found.foot[:, 1] == 79).all()
    assert found.mask.shape == (10, 20) and found.mask.all()


def test_pixels_that_touch_at_corners_are_one_object() -> None:
    energy, labels = scene()
    energy[70:75, 40:45] = energy[75:80, 45:50] = -3
    (found,) = find_objects(energy, labels, RULES).objects
    assert found.area == 50


def test_component_inside_the_hole_of_another_is_an_object_of_its_own() -> None:
    energy, labels = scene()
    energy[65:115, 20:120] = -3
    energy[70:110, 30:110] = -10
    energy[85:95, 60:80] = -3
    outer, inner = find_objects(energy, labels, RULES).objects
    assert outer.area == 50 * 100 - 40 * 80 and inner.box == (60, 85, 20, 10)


def test_what_does_not_stand_on_the_ground_is_no_object() -> None:
    energy, labels = scene()
    energy[20:35, 40:60] = -3  # amid buildings
    energy[90:105, 40:60] = -3  # on the road
    (found,) = find_objects(energy, labels, RULES).objects
    assert found.box[1] == 90
    anywhere = replace(RULES, carriers=None)
    assert len(find_objects(energy, labels, anywhere).objects) == 2


def test_share_of_the_foot_decides() -> None:
    energy, labels = scene()
    energy[50:60, 40:60] = -3
    labels[60:, :55] = BUILDING  # a quarter of the foot stands on the road
    assert not find_objects(energy, labels, RULES).objects
    labels[60:, 53:55] = ROAD
    (found,) = find_objects(energy, labels, RULES).objects
    assert found.foot[:, 0].tolist() == list(range(53, 60))


def test_minimum_area_scales_with_the_width_of_the_image() -> None:
    energy, labels = scene()
    energy[70:74, 40:46] = -3  # 24 px
    assert find_objects(energy, labels, RULES).objects
    twice = replace(RULES, reference_width=WIDTH // 2)
    assert not find_objects(energy, labels, twice).objects  # which asks for 80 px here


def test_ignore_mask_hides_and_may_hide_the_foot() -> None:
    energy, labels = scene()
    energy[100:, 40:60] = -3
    labels[110:] = BUILDING
    ignore = np.zeros((HEIGHT, WIDTH), bool)
    ignore[110:] = True
    (found,) = find_objects(energy, labels, RULES, ignore).objects
    assert found.box == (40, 100, 20, 10)
    ignore[:] = True
    assert not find_objects(energy, labels, RULES, ignore).objects


def test_object_at_the_lower_border_stands_on_ground_that_is_not_seen() -> None:
    energy, labels = scene()
    energy[100:, 40:60] = -3
    (found,) = find_objects(energy, labels, RULES).objects
    assert found.contact[1] == HEIGHT - 1


def test_a_thin_edge_does_not_alarm_and_outlines_stay_sharp() -> None:
    energy, labels = scene()
    energy[90:92, 20:140] = -3  # an edge, two pixels high
    energy[100:115, 60:80] = -3
    smoothing = replace(RULES, smoothing=3)
    assert len(find_objects(energy, labels, RULES).objects) == 2
    (found,) = find_objects(energy, labels, smoothing).objects
    assert found.box == (60, 100, 20, 15) and found.peak_energy == -3


def test_an_object_within_the_glow_of_what_stands_on_no_ground_is_cut_out() -> None:
    energy, labels = scene()
    energy[50:63, 20:140] = -5.5  # a tree line that glows, above the threshold at one place
    energy[50:53, 30:40] = -3.5
    labels[60:75] = BUILDING
    energy[60:90, 70:80] = -1  # what stands before it, and reaches down to the road
    (found,) = find_objects(energy, labels, RULES).objects
    assert found.box == (70, 60, 10, 30) and found.contact[1] == 89


def test_work_is_bounded_and_said() -> None:
    energy, labels = scene()
    for y in range(62, 116, 9):
        for x in range(2, 150, 9):
            energy[y : y + 6, x : x + 6] = -3
    found = find_objects(energy, labels, RULES)
    assert len(found.objects) == RULES.max_objects and found.left_out == 6 * 17 - RULES.max_objects


@pytest.mark.parametrize("name", ["labels", "ignore mask"])
def test_sizes_must_agree(name: str) -> None:
    energy, labels = scene()
    arrays = {"labels": labels, "ignore mask": np.zeros((HEIGHT, WIDTH), bool)}
    arrays[name] = arrays[name][1:]
    with pytest.raises(PebalError, match=f"The {name} is 119×160 pixels .* the energy is 120×160"):
        find_objects(energy, arrays["labels"], RULES, arrays["ignore mask"])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"grow": -3.0}, "lies above the threshold"),
        ({"threshold": float("nan")}, "must be finite"),
        ({"min_area": 0}, "min_area .* between 1 and"),
        ({"foot_share": 1.5}, "foot_share .* between 0 and 1"),
        ({"max_objects": 0}, "max_objects"),
    ],
)
def test_rules_are_checked(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(PebalError, match=reason):
        ObjectRules(**{"threshold": -4.0, "grow": -6.0, **settings})


def test_rules_of_a_model() -> None:
    info = ModelInfo("deeplabv3plus", threshold=-4.0, energy_range=[-12.0, 0.8])
    rules = ObjectRules.for_model(info, carriers=["road", "terrain"])
    assert (rules.threshold, rules.grow, rules.carriers) == (-4.0, -6.0, (0, 9))
    assert ObjectRules.for_model(info).carriers == (0, 1)
    assert ObjectRules.for_model(info, carriers=[]).carriers is None
    with pytest.raises(PebalError, match="no class 'lawn'; its classes are: road, sidewalk"):
        ObjectRules.for_model(info, carriers=["lawn"])
    with pytest.raises(PebalError, match="stores no alarm threshold"):
        ObjectRules.for_model(ModelInfo("deeplabv3plus"))


def test_filtered_energy_keeps_objects_and_lowers_the_rest() -> None:
    energy, labels = scene()
    energy[20:35, 40:60] = -3
    energy[90:105, 40:60] = -3
    energy[95:100, 45:55] = -1
    energy[70:72, 100:102] = 0  # too small
    filtered = filter_energy(energy, labels, RULES)
    assert (filtered[90:105, 40:60] == energy[90:105, 40:60]).all()
    assert filtered[:90].max() == -10 and filtered[70, 100] == -10


@pytest.mark.slow
@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_what_a_threshold_on_the_filtered_energy_reports_passes_the_rules(seed: int) -> None:
    """Above a level, the filtered energy shows exactly what passed at that level or at a higher one."""
    random = np.random.default_rng(seed)
    energy = random.uniform(-10, 0, (HEIGHT // 6, WIDTH // 6)).astype(np.float32).repeat(6, 0).repeat(6, 1)
    labels = random.choice([ROAD, BUILDING], energy.shape).astype(np.uint8)
    filtered = filter_energy(energy, labels, RULES)
    assert (filtered <= energy).all()
    for threshold in np.linspace(RULES.sweep_from + 0.1, energy.max(), 6):
        rules = replace(RULES, threshold=float(threshold), grow=float(threshold), max_objects=10000)
        passing = np.zeros(energy.shape, bool)
        for found in find_objects(energy, labels, rules).objects:
            x, y, width, height = found.box
            passing[y : y + height, x : x + width] |= found.mask
        reported = filtered >= threshold
        assert (reported <= (energy >= threshold)).all()
        # The levels of the filter are a grid: what passes between two of them is reported at the one below.
        step = (float(energy.max()) - RULES.sweep_from) / 32
        assert (passing <= (filtered >= threshold - step)).all()


def test_the_components_are_those_of_a_labelling() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(5, 80, 2)
        noise = cv2.GaussianBlur(rng.random((height, width)), (0, 0), rng.uniform(0.3, 4))
        mask = (noise > rng.uniform(0.45, 0.55)).astype(np.uint8)
        count, numbers = cv2.connectedComponents(mask, connectivity=8)
        components = finding._components(mask, 0, 0, 1)
        assert len(components) == count - 1
        for one in components:
            x, y, box_width, box_height = one.box
            column, row = one.outline[0]
            expected = numbers[y : y + box_height, x : x + box_width] == numbers[row, column]
            assert np.array_equal(one.inside, expected)


def test_the_objects_are_the_components_that_hold_a_seed() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        height, width = rng.integers(9, 300, 2)
        energy = cv2.GaussianBlur(rng.normal(size=(height, width)).astype(np.float32), (0, 0), rng.uniform(0.5, 6))
        energy = energy / energy.std()
        threshold = float(rng.uniform(0.3, 2))
        grow = threshold - float(rng.uniform(0, 1))
        rules = ObjectRules(threshold, grow, min_area=1, smoothing=0, carriers=None, max_objects=10000)
        ignore = rng.random((height, width)) < 0.02
        numbers = cv2.connectedComponents(((energy >= np.float32(grow)) & ~ignore).astype(np.uint8), connectivity=8)[1]
        seeded = np.unique(numbers[energy >= np.float32(threshold)])
        expected = {tuple(map(tuple, np.argwhere(numbers == one))) for one in seeded if one}
        found = find_objects(energy, np.zeros((height, width), np.uint8), rules, ignore).objects
        assert {tuple(map(tuple, np.argwhere(o.mask) + np.array(o.box[1::-1]))) for o in found} == expected
