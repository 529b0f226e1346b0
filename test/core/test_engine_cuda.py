"""What makes a GPU faster than eager PyTorch: the kernels in Triton's interpreter, the fallbacks, and on a GPU all."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pebal_core.engines import torch as torch_engine
from pebal_core.engines.cuda import MAX_GRAPHS, Graphed, Guarded, agree
from pebal_core.engines.readout import Readout, read_plainly
from pebal_core.engines.torch import TorchEngine
from pebal_core.model_file import load_model
from pebal_core.scores import gaussian_blur

from .sample_networks import photograph

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="this machine has no GPU")


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """Run on the CPU by Triton's interpreter, which is chosen when they are defined."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.delitem(sys.modules, "pebal_core.engines.kernels", raising=False)
        yield importlib.import_module("pebal_core.engines.kernels")


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(2, 6), st.integers(1, 6), st.integers(1, 40)),
    factor=st.integers(1, 4),
    cut=st.integers(0, 2),
    last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_the_fused_readout_is_the_plain_one(
    shape: tuple[int, int, int, int],
    factor: int,
    cut: int,
    last: bool,
    dtype: torch.dtype,
    seed: int,
    kernels: ModuleType,
) -> None:
    logits = (5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)
    if last:
        logits = logits.to(memory_format=torch.channels_last)
    padded = factor * shape[2], factor * shape[3]
    size = max(1, padded[0] - cut), max(1, padded[1] - cut)
    labels, energy = kernels.read(logits, padded, size)
    expected = read_plainly(logits, padded, size)
    torch.testing.assert_close(energy, expected[1], atol=1e-4, rtol=1e-5)
    assert labels.dtype == torch.uint8 and (labels == expected[0]).float().mean() > 0.99


@pytest.mark.slow
def test_the_fused_gaussian_is_the_plain_one(kernels: ModuleType) -> None:
    energy = torch.randn(2, 9, 300)
    torch.testing.assert_close(kernels.blur(energy), gaussian_blur(energy), atol=1e-5, rtol=0)
    torch.testing.assert_close(kernels.blur(energy[:, :, :4]), gaussian_blur(energy[:, :, :4]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.01]), True),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.2]), False),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), True),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), False),
        (torch.zeros(2000, dtype=torch.uint8), (torch.arange(2000) == 7).to(torch.uint8), True),
        (torch.zeros(20, dtype=torch.uint8), (torch.arange(20) == 7).to(torch.uint8), False),
        (torch.zeros(2), torch.zeros(3), False),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float16), False),
    ],
)
def test_what_counts_as_the_same_answer(one: Tensor, other: Tensor, same: bool) -> None:
    assert agree((one,), (other,)) is same


def test_a_fast_function_is_compared_once_per_shape() -> None:
    plain_calls = []

    def plain(x: Tensor) -> tuple[Tensor, ...]:
        plain_calls.append(tuple(x.shape))
        return (2 * x,)

    guarded = Guarded("The fast way", lambda x: (x + x,), plain)
    for size in (3, 3, 4, 3):
        assert torch.equal(guarded(torch.ones(size))[0], torch.full((size,), 2.0))
    assert plain_calls == [(3,), (4,)] and guarded.reason == ""


@pytest.mark.parametrize(
    ("fast", "reason"),
    [
        (lambda x: (3 * x,), "The fast way is off (RuntimeError: its answer is not that of plain PyTorch)."),
        (lambda x: (x.no_such_thing(),), "The fast way is off (AttributeError: 'Tensor' object has no attribute"),
    ],
)
def test_a_fast_function_that_fails_is_given_up(fast: Any, reason: str) -> None:
    guarded = Guarded("The fast way", fast, lambda x: (2 * x,))
    for _ in range(2):
        assert torch.equal(guarded(torch.ones(3))[0], torch.full((3,), 2.0))
    assert guarded.reason.startswith(reason)


def test_a_graph_answers_as_its_function_or_is_given_up() -> None:
    """A machine without a GPU is one on which capturing fails."""
    graphed = Graphed("the sum", lambda x: (x.cumsum(0), x.sum()))
    for size in range(2, MAX_GRAPHS + 4):
        for start in (0.0, 1.0):
            x = torch.arange(size, device=DEVICE) + start
            for answer, expected in zip(graphed(x), (x.cumsum(0), x.sum()), strict=True):
                torch.testing.assert_close(answer, expected)
    assert bool(graphed.reason) is (DEVICE == "cpu")
    assert graphed.reason == "" or graphed.reason.startswith("The CUDA graph of the sum is off (")


def test_kernels_that_cannot_run_leave_the_plain_readout() -> None:
    """The meta device stands for one that Triton has no code for; without Triton its import fails."""
    readout = Readout()
    readout.use_kernels()
    logits = torch.zeros(1, 20, 4, 6, device="meta")
    labels, energy = readout(logits, (16, 24), (15, 22))
    assert labels.shape == energy.shape == (1, 15, 22)
    assert [part.reason[:26] for part in readout.guarded] == ["The fused readout is off (", ""]


def test_what_was_begun_is_answered_in_any_order() -> None:
    engine = TorchEngine(*load_model("starter"), device=DEVICE, precision="fp32")
    images = photograph(64, 96, 2)
    first, second = engine.start(images[:1]), engine.start(images[1:])
    for number, begun in ((1, second), (0, first)):
        labels, energy = begun()
        alone = engine(images[number : number + 1])
        np.testing.assert_allclose(energy, alone[1], atol=1e-3)
        assert (labels == alone[0]).mean() > 0.999
    assert engine.notes == []
    assert set(engine.timings) == {"preprocess", "inference", "postprocess"}


@on_a_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("input_size", [None, (64, 96)])
def test_the_accelerated_engine_is_the_eager_one(precision: str, input_size: tuple[int, int] | None) -> None:
    eager, fast = (
        TorchEngine(*load_model("starter"), "cuda", precision, input_size, accelerate=accelerate)
        for accelerate in (False, True)
    )
    for count in (1, 2, 1):
        images = photograph(122, 178, count)
        expected, answer = eager(images), fast(images)
        assert (answer[0] == expected[0]).mean() > 0.99
        assert np.abs(answer[1] - expected[1]).mean() < 0.05
    assert fast.notes == []
    assert isinstance(fast._forward, Graphed) and len(fast._forward._graphs) == 2
    assert torch_engine.find_device("auto").type == "cuda"
