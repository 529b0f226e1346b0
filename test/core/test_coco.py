"""COCO → outlier masks, on a small set in the official form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pebal_core.commands.main import main
from pebal_core.data.coco import EXCLUDED_CATEGORIES, OutlierSet, prepare_coco
from pebal_core.errors import PebalError

from .scenes import square, write_coco


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(
        tmp_path / "coco",
        [
            (
                (500, 500),
                [("dog", square(10, 20, 100)), ("cup", square(50, 60, 20)), ("train", square(300, 300, 50))],
            ),
            ((500, 500), [("laptop", square(100, 100, 50)), ("person", square(200, 200, 50))]),
            ((300, 500), [("dog", square(0, 0, 40))]),
            ((480, 480), [("laptop", square(5, 5, 30))]),
            ((480, 480), []),
        ],
    )


def test_the_rule_of_the_reference(coco: Path, tmp_path: Path) -> None:
    """No image with a road user, none under 480 pixels; all that is annotated in the rest, trains included."""
    outliers = prepare_coco(coco, tmp_path / "out")
    assert [image.image_path.name for image in outliers.images] == ["000000000006.jpg", "000000000009.jpg"], "sorted"
    assert [[i.category for i in image.instances] for image in outliers.images] == [
        ["laptop"],
        ["dog", "train", "cup"],
    ]
    image, numbers = outliers.images[1].load()
    assert image.shape == (500, 500, 3)
    union = np.zeros((500, 500), bool)
    union[20:120, 10:110] = union[300:350, 300:350] = True
    assert (union != (numbers > 0)).mean() < 0.002, "the union of the masks, up to the polygons' edges"
    assert numbers[70, 60] == 3, "the smaller instance lies on top"


def test_by_instances_road_users_are_dropped_alone(coco: Path, tmp_path: Path) -> None:
    outliers = prepare_coco(coco, tmp_path / "out", rule="instances", min_side=200)
    categories = sorted(i.category for image in outliers.images for i in image.instances)
    assert categories == ["cup", "dog", "dog", "laptop", "laptop"]
    with_person = next(image for image in outliers.images if image.image_path.name == "000000000008.jpg")
    assert with_person.load()[1][225, 225] == 0, "a person is no outlier"


def test_category_filter(coco: Path, tmp_path: Path) -> None:
    assert main(["prepare-coco", str(coco), str(tmp_path / "out"), "--only", "laptop"]) == 0
    outliers = OutlierSet.open(tmp_path / "out")
    assert [[i.category for i in image.instances] for image in outliers.images] == [["laptop"]]


def test_held_back_categories_share_no_image_with_training(coco: Path, tmp_path: Path) -> None:
    train, held = prepare_coco(coco, tmp_path / "out").hold_back(["cup"])
    assert [i.category for image in train.images for i in image.instances] == ["laptop"]
    assert [i.category for image in held.images for i in image.instances] == ["cup"]
    assert set(np.unique(held.images[0].load()[1])) == {0, 3}, "of the held-back image the cup alone"


def test_what_is_missing_is_named(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PebalError, match="No outlier image is left of the 5"):
        prepare_coco(coco, tmp_path / "out", min_side=2000)
    with pytest.raises(PebalError, match="no category 'unicorn'"):
        prepare_coco(coco, tmp_path / "out", only=["unicorn"])
    with pytest.raises(PebalError, match=r"instances_train2017\.json is missing"):
        prepare_coco(tmp_path, tmp_path / "out")
    with pytest.raises(PebalError, match="Run 'pebal prepare-coco"):
        OutlierSet.open(tmp_path / "nothing")
    (coco / "train2017" / "000000000006.jpg").unlink()
    assert main(["prepare-coco", str(coco), str(tmp_path / "out")]) == 1
    assert "000000000006.jpg is missing" in capsys.readouterr().err
    (coco / "annotations" / "instances_train2017.json").write_text('{"images": [')
    with pytest.raises(PebalError, match="is not a file of COCO's instance annotations"):
        prepare_coco(coco, tmp_path / "out")


def test_real_coco_images(shared_dir: Path, tmp_path: Path) -> None:
    """128 real images; the counts were taken from the annotations with a few lines of plain Python."""
    reference = prepare_coco(shared_dir / "data/coco128", tmp_path / "a", min_side=480)
    assert len(reference) == 30
    assert not {i.category for image in reference.images for i in image.instances} & set(EXCLUDED_CATEGORIES)
    every = prepare_coco(shared_dir / "data/coco128", tmp_path / "b", min_side=0, rule="instances")
    assert 570 <= sum(len(image.instances) for image in every.images) <= 580
