"""The function that makes a model calm on one camera: it moves no label, raises no energy, and learns from footage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pebal_core.commands.main import main
from pebal_core.errors import PebalError
from pebal_core.model_file import load_model, save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import EnergyShift
from pebal_core.scores import free_energy
from pebal_core.training.finetune import FinetuneConfig, finetune
from pebal_core.training.samples import DataConfig
from pebal_core.training.shift import FEWEST, OutlierStatistics, Pixels, add_function, fit_function

from .sample_networks import NETWORKS, network_of


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_stay_and_no_energy_rises(name: str) -> None:
    network, images = network_of(name), torch.randn(2, 3, 64, 96)
    shifted = EnergyShift(network).eval()
    with torch.inference_mode():
        start = network(images)
        assert torch.equal(shifted(images), start), "until it is fitted"
        shifted.set_last(torch.randn(sum(shifted.channels)), 20.0)
        after = shifted(images)
    torch.testing.assert_close(after[:, :-1].softmax(1), start[:, :-1].softmax(1), atol=1e-5, rtol=1e-4)
    fallen = free_energy(start) - free_energy(after)
    assert fallen.min() > -1e-4 and fallen.std() > 0.01
    assert torch.equal(after[:, -1], start[:, -1])


def test_the_function_is_linear_in_what_inputs_gives() -> None:
    network, images = EnergyShift(network_of("resnet18")).eval(), torch.randn(1, 3, 64, 96)
    weight = torch.randn(sum(network.channels))
    with torch.inference_mode():
        features = network.trunk(images)
        before = free_energy(network.head(features))
        phi = torch.cat(network.inputs(features), dim=1)
        network.set_last(weight, -0.25)
        expected = before - (torch.einsum("bchw,c->bhw", phi, weight) - 0.25).relu()
        torch.testing.assert_close(free_energy(network.head(features)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "two espnetv2", "branch on espnetv2"])
def test_each_adaptation_adds_a_function(name: str, tmp_path: Path) -> None:
    network, images = network_of(name), torch.randn(1, 3, 64, 96)
    kind, arguments, _ = NETWORKS[name]
    first, info = add_function(network, ModelInfo(kind, arguments))
    first.set_last(torch.randn(sum(first.channels)), 0.5)
    second, info = add_function(first, info)
    with torch.inference_mode():
        torch.testing.assert_close(second(images), first(images))
        second.set_last(torch.randn(sum(first.channels)), 0.5)
        both = second(images)
    assert free_energy(both).mean() < free_energy(first(images)).mean()
    save_model(tmp_path / "model.safetensors", second, info)
    loaded, read = load_model(tmp_path / "model.safetensors")
    assert isinstance(loaded, EnergyShift) and loaded.functions == read.network_args["functions"] == 2
    with torch.inference_mode():
        assert torch.equal(loaded(images), both)


def test_an_adapted_model_is_not_trained(tmp_path: Path) -> None:
    kind, arguments, _ = NETWORKS["resnet18"]
    save_model(tmp_path / "model.safetensors", *add_function(network_of("resnet18"), ModelInfo(kind, arguments)))
    config = FinetuneConfig(str(tmp_path / "model.safetensors"), DataConfig([], [], "outliers"), out=str(tmp_path))
    with pytest.raises(PebalError, match="has a function that lowers its energies"):
        finetune(config)


def test_info_does_not_print_the_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "starter"]) == 0
    said = capsys.readouterr().out
    assert "stored, 102 KB" in said and len(said) < 20000


def draw(known: int, outliers: int) -> Pixels:
    """Known pixels that alarm and outliers, which differ in the first of four features."""
    features = torch.randn(known + outliers, 4, generator=torch.Generator().manual_seed(0))
    features[:known, 0] += 6
    outlier = torch.arange(known + outliers) >= known
    return Pixels(features, torch.full((known + outliers,), -1.0), outlier, torch.zeros_like(outlier))


def test_known_pixels_are_calmed_and_outliers_are_not() -> None:
    pixels = draw(2000, 1000)
    weight, bias = fit_function(pixels, threshold=-3.0)
    shift = (pixels.features @ weight + bias).relu()
    energy = pixels.energy - shift
    assert (energy[~pixels.outlier] < -3).float().mean() > 0.95
    assert (energy[pixels.outlier] > -3).float().mean() > 0.95
    again = fit_function(pixels, threshold=-3.0)
    assert torch.equal(again[0], weight) and again[1] == bias


def test_few_pixels_that_must_not_alarm_weigh_as_much_as_all_others() -> None:
    """They differ from outliers in the second feature alone, and are too few to matter by their number."""
    pixels = draw(2000, 1000)
    must = torch.arange(3000) < 40
    pixels.features[must] += torch.tensor([-6.0, 3.0, 0.0, 0.0])
    alarming = []
    for calm in (torch.zeros(3000, dtype=torch.bool), must):
        weight, bias = fit_function(pixels._replace(calm=calm), threshold=-3.0)
        energy = pixels.energy - (pixels.features @ weight + bias).relu()
        alarming.append(float((energy[must] > -3).float().mean()))
    assert alarming[0] > 0.9 and alarming[1] < 0.5


def test_outliers_of_the_training_are_left_alone() -> None:
    """They lie where the known pixels of the footage lie, apart from the second feature."""
    pixels, others = draw(2000, 1000), draw(1000, 1000)
    others.features[:1000, 1] += 6
    trained = OutlierStatistics.of(others._replace(outlier=~others.outlier))
    remembered = OutlierStatistics.decode(trained.encode(), 4)
    shifts = []
    for known in (None, remembered):
        weight, bias = fit_function(pixels, -3.0, known)
        shifts.append(
            [(part @ weight + bias).relu().mean() for part in (pixels.features[:2000], others.features[:1000])]
        )
    assert shifts[0][1] > 1.5, "without a memory they are calmed as well"
    assert shifts[1][1] < 0.3 < shifts[1][0]
    for text, features in (("AAA", 4), (trained.encode(), 5)):
        with pytest.raises(PebalError, match="outlier statistics .* damaged or those of another network"):
            OutlierStatistics.decode(text, features)


@pytest.mark.parametrize(("known", "outliers", "what"), [(FEWEST - 1, 900, "known"), (900, FEWEST - 1, "outliers")])
def test_too_few_pixels_are_refused(known: int, outliers: int, what: str) -> None:
    with pytest.raises(PebalError, match=f"fewer than {FEWEST} .*{what}"):
        fit_function(draw(known, outliers), threshold=-3.0)
