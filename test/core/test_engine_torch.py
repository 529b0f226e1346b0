"""The PyTorch engine says what the network itself says: folding, readout, and both together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pebal_core.engines.machine import allotted_cores
from pebal_core.engines.readout import Readout
from pebal_core.engines.torch import TorchEngine
from pebal_core.model_file import load_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import SegmentationNetwork, upsample
from pebal_core.networks.folding import fold, round_kernels
from pebal_core.networks.winograd import WinogradConv2d, is_suited
from pebal_core.scores import free_energy, gaussian_blur

from .sample_networks import NETWORKS, network_of, photograph

pytestmark = pytest.mark.slow


def expected(
    network: SegmentationNetwork, info: ModelInfo, images: np.ndarray, smoothing: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The definition: full-resolution logits of the plain network, argmax, energy, Gaussian."""
    pixels = (torch.from_numpy(images) / 255 - torch.tensor(info.mean)) / torch.tensor(info.std)
    with torch.inference_mode():
        logits = network(pixels.movedim(-1, 1))
        energy = free_energy(logits)
        return logits[:, :-1].argmax(1).numpy(), (gaussian_blur(energy) if smoothing else energy).numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_keeps_the_output(name: str) -> None:
    """At sizes other than the one at which the network is watched, too."""
    network = network_of(name)
    images = torch.from_numpy(photograph(96, 160)).movedim(-1, 1) / 100 - 1
    with torch.inference_mode():
        before = network(images)
        after = fold(network)(images)
    assert (after - before).abs().max() <= 1e-4 * before.std() + 1e-5
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == NETWORKS[name][2]


class SharedConvolution(SegmentationNetwork):
    """Its convolution feeds a BatchNorm and something else; the other runs twice: neither may be folded."""

    num_outputs, stride, head_prefixes = 4, 1, ()

    def __init__(self) -> None:
        super().__init__()
        self.branching, self.repeated = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def trunk(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.branching(images)
        return (x + self.norms[0](x),)

    def head(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.norms[2](self.repeated(self.norms[1](self.repeated(features[0]))))


def test_only_a_convolution_that_nothing_else_uses_is_folded() -> None:
    network = SharedConvolution().eval()
    for norm in network.norms:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
        norm.running_mean.fill_(0.7)
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        before = network(images)
        torch.testing.assert_close(fold(network)(images), before)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31), scale=st.sampled_from([0.01, 1.0, 10.0, 1000.0]))
def test_readout_is_upsampling_energy_and_argmax(data: st.DataObject, seed: int, scale: float) -> None:
    side = st.integers(1, 40)
    rows, columns = data.draw(side), data.draw(side)
    padded = data.draw(st.integers(rows, 5 * rows)), data.draw(st.integers(columns, 5 * columns))
    size = data.draw(st.integers(1, padded[0])), data.draw(st.integers(1, padded[1]))
    shape = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 20)), rows, columns
    logits = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    labels, energy = Readout()(logits, padded, size)
    full = upsample(logits.double(), padded)[..., : size[0], : size[1]]
    torch.testing.assert_close(energy.double(), free_energy(full), atol=2e-5 * scale + 2e-5, rtol=0)
    assert labels.dtype == torch.uint8 and labels.shape == (shape[0], *size)
    chosen = full[:, :-1].gather(1, labels[:, None].long())[:, 0]
    assert (full[:, :-1].amax(1) - chosen <= 2e-5 * scale).all()


def test_readout_in_many_bands_and_again() -> None:
    """Larger than a band, and a second call, which reuses the buffers, leaves the first answer alone."""
    logits = torch.randn(2, 20, 64, 128) * 5
    readout = Readout()
    labels, energy = readout(logits, (256, 512), (251, 509))
    kept = labels.clone(), energy.clone()
    readout(-logits, (256, 512), (251, 509))
    assert torch.equal(labels, kept[0]) and torch.equal(energy, kept[1])
    full = upsample(logits, (256, 512))[..., :251, :509]
    torch.testing.assert_close(energy, free_energy(full), atol=1e-4, rtol=0)
    assert (labels == full[:, :-1].argmax(1)).float().mean() > 0.9999


def test_of_equal_logits_the_first_is_the_label() -> None:
    labels, energy = Readout()(torch.zeros(1, 20, 3, 3), (5, 5), (5, 5))
    assert (labels == 0).all()
    torch.testing.assert_close(energy, torch.full((1, 5, 5), -float(np.log(19))))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 3), height=st.integers(4, 40), width=st.integers(4, 40), seed=st.integers(0, 2**31))
def test_both_gaussians_are_one(count: int, height: int, width: int, seed: int) -> None:
    energy = 5 * torch.randn(count, height, width, generator=torch.Generator().manual_seed(seed)) - 10
    torch.testing.assert_close(Readout().smooth(energy), gaussian_blur(energy), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "size", "count", "smoothing"),
    [
        ("efficientnet_lite0", (96, 160), 1, True),
        ("efficientnet_lite0", (97, 131), 3, False),
        ("espnetv2", (96, 160), 1, False),
        ("espnetv2", (97, 131), 3, True),
        ("two espnetv2", (97, 131), 2, True),
        ("wide_resnet38", (49, 70), 2, True),
    ],
)
def test_the_engine_answers_as_the_network(name: str, size: tuple[int, int], count: int, smoothing: bool) -> None:
    info, network, images = ModelInfo("any"), network_of(name), photograph(*size, count)
    labels, energy = expected(network, info, images, smoothing)
    engine = TorchEngine(network, info, device="cpu", smoothing=smoothing)
    for _ in range(2):
        answer = engine(images)
        np.testing.assert_allclose(answer[1], energy, atol=1e-3)
        assert (answer[0] == labels).mean() >= 0.995


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_of_the_shipped_model(precision: str) -> None:
    """Parts of a strange picture are hard, so some labels go; energies move far less than outliers stand apart."""
    network, info = load_model("starter")
    images = photograph(256, 320, 2)
    labels, energy = expected(network, info, images, smoothing=True)
    answer = TorchEngine(network, info, device="cpu", precision=precision)(images)
    assert answer[1].dtype == np.float32
    assert (answer[0] == labels).mean() >= 0.95
    assert np.abs(answer[1] - energy).mean() <= 0.2


def test_shrinking_sees_every_pixel() -> None:
    """Stripes of two pixels look alike to the network wherever they start, once it sees a quarter of the size."""
    network, info = load_model("starter_pretrained")
    engine = TorchEngine(network, info, device="cpu", input_size=(64, 96))
    stripes = np.tile(np.repeat(np.array([0, 255], np.uint8), 2), 96)[None, :, None].repeat(256, 0).repeat(3, 2)
    one, other = (engine(np.ascontiguousarray(np.roll(stripes, shift, 1))[None])[1] for shift in (0, 2))
    grey = engine(np.full_like(stripes, 127)[None])[1]
    assert np.abs(one - other).max() < 0.5 and np.abs(one - grey).mean() < 0.5


def test_logits_at_another_size_than_the_engine_s() -> None:
    """A sliding window is seen at its own size, whatever size the model has for whole images."""
    engine = TorchEngine(network_of("resnet18"), ModelInfo("deeplabv3plus"), "cpu", input_size=(32, 64))
    image = photograph(48, 80)
    assert engine.logits(image, None)[1:] == ((48, 80), (48, 80))
    assert engine.logits(image, engine.input_size)[1:] == ((32, 64), (32, 64))


def test_a_longer_side_limits_the_size_and_keeps_the_aspect_ratio() -> None:
    engine = TorchEngine(network_of("resnet18"), ModelInfo("deeplabv3plus"), "cpu", input_size=(64,))
    seen = {size: engine.logits(photograph(*size), engine.input_size).seen for size in ((90, 160), (40, 60), (96, 48))}
    assert seen == {(90, 160): (36, 64), (40, 60): (40, 60), (96, 48): (64, 32)}
    labels, energy = engine(photograph(90, 160))
    assert labels.shape == energy.shape == (1, 90, 160)
    same = TorchEngine(network_of("resnet18"), ModelInfo("deeplabv3plus"), "cpu", input_size=(36, 64))
    np.testing.assert_array_equal(energy, same(photograph(90, 160))[1])


@pytest.mark.parametrize(("text", "cores"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1)])
def test_a_container_s_share_of_the_cores_counts(text: str, cores: int | None, tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    unlimited = allotted_cores(limit)
    limit.write_text(text + "\n")
    assert allotted_cores(limit) == (cores or unlimited)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_kernels_keep_the_sum_of_their_taps(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 16, 3)
    before = convolution.weight.detach().clone()
    round_kernels(nn.Sequential(convolution), dtype)
    after = convolution.weight.detach()
    assert torch.equal(after, after.to(dtype).float())
    step = torch.finfo(dtype).eps * before.abs().amax((2, 3))
    assert ((after - before).sum((2, 3)).abs() <= step).all()
    by_itself = (before.to(dtype).float() - before).sum((2, 3)).abs().mean()
    assert (after - before).sum((2, 3)).abs().mean() < 0.6 * by_itself


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    dilation=st.integers(1, 4),
    bias=st.booleans(),
    band=st.sampled_from((1, 32_000_000)),
)
def test_winograd_is_the_convolution(
    batch: int, height: int, width: int, channels: tuple[int, int], dilation: int, bias: bool, band: int
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(*channels, 3, padding=dilation, dilation=dilation, bias=bias)
    image = torch.randn(batch, channels[0], height, width).to(memory_format=torch.channels_last)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pebal_core.networks.winograd.BAND_BYTES", band)
        torch.testing.assert_close(WinogradConv2d(plain)(image), plain(image), rtol=0, atol=2e-5)


def test_what_winograd_is_for() -> None:
    def suited(width: int = 256, kernel: int = 3, **options: Any) -> bool:
        return is_suited(nn.Conv2d(width, 256, kernel, **({"padding": 1} | options)))

    assert suited() and suited(padding=4, dilation=4) and suited(width=128)
    assert not suited(width=64), "there it is faster directly"
    assert not suited(kernel=1, padding=0)
    assert not suited(padding=0)
    assert not suited(stride=2)
    assert not suited(groups=2)
    assert not suited(padding=12, dilation=12)
    assert not suited(padding_mode="reflect")
