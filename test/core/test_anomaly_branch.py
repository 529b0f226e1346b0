"""The anomaly branch: what it keeps, what it costs, how it learns; and what weighs more in the objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pebal_core.class_list import cityscapes_classes
from pebal_core.commands.main import main
from pebal_core.data.coco import OutlierSet, prepare_coco
from pebal_core.data.outlier_mix import ObjectPool, RichMix
from pebal_core.errors import PebalError
from pebal_core.labels import OUTLIER, RIDERS, VOID
from pebal_core.losses import pebal_loss
from pebal_core.metrics.alarms import Alarms
from pebal_core.model_file import load_model, read_info
from pebal_core.networks import AnomalyBranch, build_network
from pebal_core.scores import free_energy
from pebal_core.training.emphasis import Emphasis, PixelWeights

from .sample_networks import network_of
from .scenes import road_scene, square, write_coco
from .training import log_of, train_options

FAMILIES: dict[str, dict[str, Any]] = {
    "espnetv2": {},
    "deeplabv3plus": {"encoder": "tu-tf_efficientnet_lite0"},
    "deeplabv3plus_wide_resnet38": {},
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(64, 96), (80, 112)])
def test_it_fits_every_family_and_costs_little(name: str, size: tuple[int, int]) -> None:
    """On PyTorch's meta device, which knows shapes alone: a network of 137 M parameters costs nothing there."""
    with torch.device("meta"):
        plain = build_network(name, **FAMILIES[name])
        branched = build_network("anomaly_branch", network=name, **FAMILIES[name])
        assert branched.eval()(torch.zeros(1, 3, *size)).shape == (1, 20, *size)
    bytes_of = [sum(v.numel() * v.element_size() for v in n.state_dict().values()) for n in (plain, branched)]
    assert bytes_of[1] <= 1.1 * bytes_of[0]


@pytest.mark.parametrize("name", ["branch on espnetv2", "branch on resnet18"])
@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_the_shift_moves_energies_and_no_class_probability(name: str, size: tuple[int, int]) -> None:
    network = network_of(name)
    assert isinstance(network, AnomalyBranch)
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        start, shifted = network.network(images), network(images)
    torch.testing.assert_close(shifted[:, :-1].softmax(1), start[:, :-1].softmax(1))
    assert (free_energy(shifted) - free_energy(start)).std() > 0.01
    assert (shifted[:, -1] - start[:, -1]).std() > 0.01


def test_a_fresh_branch_changes_nothing() -> None:
    network = build_network("espnetv2", scale=0.5).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(AnomalyBranch(network, 16).eval()(images), network(images))


def test_a_network_without_features_is_refused() -> None:
    network = build_network("espnetv2", scale=0.5)
    network.features = ()
    with pytest.raises(PebalError, match="needs the features of a trunk, and ESPNetv2 declares none"):
        AnomalyBranch(network)


BRANCH = ("--branch=true", "--branch_width=16", "--lr=0.02")


@pytest.mark.slow
def test_training_moves_the_branch_alone_and_resumes(workshop: Path, tmp_path: Path) -> None:
    known = write_coco(
        tmp_path / "coco known",
        [((240, 240), [("person", square(10, 10, 200))]), ((240, 240), [("car", square(9, 9, 99))])],
    )
    prepare_coco(known, tmp_path / "known", min_side=0, rule="known")
    more = (
        *BRANCH, f"--data.known={tmp_path / 'known'}", "--data.rich_mix.small=0.5", "--data.far_validation=true",
        "--emphasis.calm=[car]", "--emphasis.size_exponent=0.5",
    )  # fmt: skip
    assert main(train_options(workshop, tmp_path / "whole", *more)) == 0
    assert main(train_options(workshop, tmp_path / "parts", *more, "--trainer.stop_after=2")) == 0
    assert main(train_options(workshop, tmp_path / "parts", *more, "--trainer.resume=true")) == 0
    start, whole, parts = (
        load_model(p)[0]
        for p in (
            workshop / "model.safetensors",
            tmp_path / "whole/last.safetensors",
            tmp_path / "parts/last.safetensors",
        )
    )
    frozen, kept = start.state_dict(), whole.network.state_dict()
    assert all(torch.equal(frozen[key], kept[key]) for key in frozen)
    learned, resumed = whole.branch.state_dict(), parts.branch.state_dict()
    assert all(torch.equal(learned[key], resumed[key]) for key in learned)
    assert learned["out.1.weight"].abs().sum() > 0
    assert learned["projections.0.1.num_batches_tracked"] == 8, "its statistics come from 32 samples, in fours"
    info = read_info(tmp_path / "whole/last.safetensors")
    assert info.network == "anomaly_branch" and info.network_args["network"] == "deeplabv3plus"
    miou = log_of(tmp_path / "whole", "val_miou")
    assert miou == [miou[0]] * len(miou)
    assert 0 <= log_of(tmp_path / "whole", "alarms/road")[-1] <= 1
    assert len(log_of(tmp_path / "whole", "far/ap")) == len(miou)
    assert info.training["validation"]["alarms/road"] == log_of(tmp_path / "whole", "alarms/road")[-1]
    again = train_options(
        workshop, tmp_path / "again", f"--model={tmp_path / 'whole/last.safetensors'}", "--branch=true"
    )
    assert main(again) == 0, "a branch can learn on"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((*BRANCH, "--keep_classes=true"), "the network next to the branch stays frozen"),
        ((*BRANCH, "--trainable=[encoder.*]"), "the network next to the branch stays frozen"),
        (("--emphasis.calm=[person, rider]",), "no pixel of it was found in 40 samples of CamVid train (3)"),
        (("--emphasis.calm=[pedestrian]",), "there is no class 'pedestrian'"),
        (("--emphasis.size_exponent=2",), "size_exponent must lie between 0 and 1"),
        (("--data.known=OUTLIERS",), "which is not a known class"),
    ],
)
def test_what_cannot_be_used_is_named(
    workshop: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = tuple(option.replace("OUTLIERS", str(workshop / "outliers")) for option in more)
    assert main(train_options(workshop, tmp_path, *more)) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_weights_of_pixels() -> None:
    target = torch.zeros(1, 40, 60, dtype=torch.int64)
    target[0, :5, :5], target[0, 5:7, :5], target[0, 10:20, :10], target[0, 30:32, :2] = 11, RIDERS, OUTLIER, OUTLIER
    emphasis = Emphasis(calm=["person", "rider", "motorcycle", "bicycle"], calm_weight=7, size_exponent=0.5)
    weights = PixelWeights(emphasis, cityscapes_classes()).of(target)
    assert weights is not None
    assert (weights[0, :7, :5] == 7).all() and weights[0, 39, 59] == 1
    torch.testing.assert_close(weights[0, 10, 0], torch.tensor(10.0).sqrt())
    torch.testing.assert_close(weights[0, 30, 0], torch.tensor(250.0).sqrt())
    assert PixelWeights(Emphasis(), cityscapes_classes()).of(target) is None


def test_a_weight_counts_as_so_many_pixels() -> None:
    """A pixel of weight 2 is worth two pixels: each mean equals that of a batch that holds it twice."""
    torch.manual_seed(0)
    row = torch.randn(1, 20, 1, 8, dtype=torch.float64).repeat(1, 1, 8, 1) * 3
    labels = torch.tensor([0, 3, 11, 11, OUTLIER, VOID, 7, OUTLIER]).repeat(1, 8, 1)
    twice = torch.cat([row, row[..., 2:3].repeat(1, 1, 1, 8)], dim=3)
    terms = pebal_loss(row, labels, weights=torch.where(torch.arange(8) == 2, 9.0, 1.0).expand(1, 8, 8))
    more = pebal_loss(twice, torch.cat([labels, labels[..., 2:3].repeat(1, 1, 8)], dim=2))
    torch.testing.assert_close(terms.mean_inlier_energy, more.mean_inlier_energy)
    torch.testing.assert_close(terms.energy - terms.smoothness, more.energy - more.smoothness)
    assert not torch.allclose(terms.energy, pebal_loss(row, labels).energy)


def test_alarms_by_class_and_recall_by_size() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (200, 100))
    energy = rng.normal(-10, 1, labels.shape) + 2 * (labels == 1)
    outlier = np.zeros(labels.shape, bool)
    outlier[10:19, 10:20] = outlier[50:90, 50:60] = True
    labels[outlier] = OUTLIER
    labels[0, :] = VOID
    energy[outlier] = -20
    energy[10:13, 10:20] = 0  # a third of the smaller outlier
    halves = Alarms(["a", "b", "c", "d"]), Alarms(["a", "b", "c", "d"])
    halves[0].update(energy[:100], labels[:100], outlier[:100])
    halves[1].update(energy[100:], labels[100:], outlier[100:])
    halves[0].merge(Alarms.from_state(halves[1].state_dict()))
    alarms = halves[0]
    threshold = alarms.threshold(0.01)
    known = labels < 4
    assert abs((energy[known] > threshold).mean() - 0.01) < 2e-3
    assert threshold == pytest.approx(np.quantile(energy[known], 0.99), abs=0.03)
    by_class = alarms.by_class(threshold)
    assert set(by_class) == {"a", "b", "c"} and by_class["b"] > 0.02 > 0.005 > by_class["a"]
    assert alarms.recall(threshold) == {"8-11": 1.0, "32+": 0.0}


def test_small_outliers_stand_far_away(tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco", [((240, 240), [("dog", square(10, 20, 100))])])
    objects = ObjectPool(prepare_coco(coco, tmp_path / "out", min_side=0))
    mix = RichMix(count=[1, 1], small=1.0, shapes=0.0, height=[0.15, 1.0], small_height=[8, 20])
    scene = road_scene(400, 600)
    for seed in range(30):
        (_, labels), _ = mix.outliers(scene, 48, objects, np.random.default_rng(seed))
        rows = np.flatnonzero((labels == OUTLIER).any(1))
        assert 4 <= rows.size <= 26
        assert rows[-1] - 48 <= 20 / 0.15 + 4, "its foot is where an object of its size belongs"


def test_known_things_are_pasted_with_their_labels(tmp_path: Path) -> None:
    coco = write_coco(
        tmp_path / "coco", [((240, 240), [("person", square(10, 20, 100)), ("dog", square(120, 120, 90))])]
    )
    known: OutlierSet = prepare_coco(coco, tmp_path / "known", min_side=0, rule="known")
    assert {i.category for image in known.images for i in image.instances} == {"person"}
    mix = RichMix(known=3.0)
    seen: set[int] = set()
    for seed in range(10):
        _, labels = mix.add_known(
            road_scene(), 48, ObjectPool(known, labels={"person": 11}), np.random.default_rng(seed)
        )
        seen |= set(np.unique(labels).tolist())
    assert seen == {0, 2, 11}


@pytest.mark.slow
def test_a_model_of_two_networks_says_how_to_move_on(workshop: Path, tmp_path: Path) -> None:
    assert main(train_options(workshop, tmp_path, "--keep_classes=true", "--trainer.steps=2")) == 0
    with pytest.warns(UserWarning, match="runs two networks side by side. To keep the classes"):
        load_model(tmp_path / "last.safetensors")


def test_infinite_energies_count_as_the_highest_and_the_lowest() -> None:
    alarms = Alarms(["road"])
    energy = np.array([[np.inf, -np.inf, 0.0, np.nan]], np.float32)
    alarms.update(energy, np.zeros((1, 4), np.uint8), np.zeros((1, 4), bool))
    assert alarms.by_class(1.0)["road"] == pytest.approx(1 / 4)
    assert alarms.by_class(-1.0)["road"] == pytest.approx(2 / 4)
