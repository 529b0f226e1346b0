"""What makes a GPU faster than eager PyTorch, each with eager PyTorch to fall back on.

Nothing here may change an answer or stop a run: whatever fails, or answers otherwise than the plain way does, is left
out from then on, and its `reason` says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
"""Of tensors on one device, and of values that can be hashed."""

MAX_GRAPHS = 4
"""Shapes of which a graph is kept: each holds the memory of all activations."""
TOLERANCE = 0.02
"""Greatest difference of two answers, as a share of the largest value: other kernels round otherwise."""
UNEQUAL = 1e-3
"""Greatest share of integers, such as labels, that differ."""


def agree(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Whether two answers are the same but for rounding; infinities and NaN count as equal to themselves."""
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not a.is_floating_point():
            if (a != b).float().mean() > UNEQUAL:
                return False
            continue
        a, b = torch.nan_to_num(a.float()), torch.nan_to_num(b.float())
        if (a - b).abs().max() > TOLERANCE * (1 + b.abs().max()):
            return False
    return True


def sentence(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"


class Guarded:
    """A fast function that is compared with the plain one at the first call of each shape.

    Args:
        title: what it is, for `reason`.
        fast: given up at its first exception or wrong answer.
        plain: what it has to agree with.
    """

    def __init__(self, title: str, fast: Function, plain: Function) -> None:
        self.title, self.reason = title, ""
        self._fast, self._plain = fast, plain
        self._trusted: set[tuple[object, ...]] = set()

    def __call__(self, *arguments: Tensor | tuple[int, int]) -> tuple[Tensor, ...]:
        if self.reason:
            return self._plain(*arguments)
        key = tuple((tuple(a.shape), a.dtype) if isinstance(a, Tensor) else a for a in arguments)
        try:
            result = self._fast(*arguments)
            if key not in self._trusted:
                if not agree(result, self._plain(*arguments)):
                    raise RuntimeError("its answer is not that of plain PyTorch")
                self._trusted.add(key)
            return result
        except Exception as error:  # compilers and drivers fail in many ways
            self.reason = f"{self.title} is off ({sentence(error)})."
            return self._plain(*arguments)


class Graphed:
    """A function of one tensor on a CUDA device, replayed as a CUDA graph: one launch in place of one per kernel.

    A graph belongs to one shape and is captured when that comes first, with the convolution algorithms that are fastest
    there. After `MAX_GRAPHS` shapes, others run eagerly.

    Args:
        title: what it is, for `reason`.
        function: needs no value from the device on the host, and always answers a shape in the same shape.
    """

    def __init__(self, title: str, function: Function) -> None:
        self.title, self.reason = title, ""
        self._function = function
        self._graphs: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The function's answer, in tensors of the caller's own."""
        key = (tuple(x.shape), x.stride(), x.dtype)
        if key not in self._graphs:
            if not self.reason and len(self._graphs) < MAX_GRAPHS:
                try:
                    self._graphs[key] = self._capture(x)
                except Exception as error:  # drivers fail in many ways, and memory may not suffice
                    self.reason = f"The CUDA graph of {self.title} is off ({sentence(error)})."
                    with suppress(Exception):
                        torch.cuda.empty_cache()
            if key not in self._graphs:
                return self._function(x)
        graph, place, answer = self._graphs[key]
        place.copy_(x)
        graph.replay()
        return tuple(t.clone() for t in answer)

    def _capture(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        place = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
        place.copy_(x)
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(x.device)
        side = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        with fastest_convolutions():
            side.wait_stream(here)
            with torch.cuda.stream(side):  # capturing needs another stream, on which everything ran before
                for _ in range(2):
                    expected = self._function(place)
            here.wait_stream(side)
            torch.cuda.synchronize(x.device)
            # Other threads may use the device in the meantime.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                answer = self._function(place)
        graph.replay()
        torch.cuda.synchronize(x.device)
        if not agree(answer, expected):
            raise RuntimeError("its answer is not that of plain PyTorch")
        return graph, place, answer


def timer() -> torch.cuda.Event:
    """An event that knows when it came."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN try its algorithms for each new shape and take the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Transfers:
    """Copies between host and device through pinned memory, on streams beside that of the computation.

    So a copy runs while the device computes what came before. Where memory cannot be pinned, copies are plain.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.reason = device, ""
        self._up, self._down = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    def upload(self, values: np.ndarray) -> tuple[Tensor, torch.cuda.Event]:
        """The values on the device, for the current stream, and an event at the beginning of the copy."""
        source, start = torch.from_numpy(values), timer()
        pinned = self._pinned(source)
        here = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._up):
            start.record(self._up)
            copied = (source if pinned is None else pinned.copy_(source)).to(self.device, non_blocking=True)
        here.wait_stream(self._up)
        copied.record_stream(here)
        return copied, start

    def download(self, values: tuple[Tensor, ...]) -> tuple[list[Tensor], torch.cuda.Event]:
        """What is going to be the values on the host, and the event after which it is."""
        end = timer()
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        copies = []
        with torch.cuda.stream(self._down):
            for value in values:
                value.record_stream(self._down)
                pinned = self._pinned(value)
                copies.append(value.cpu() if pinned is None else pinned.copy_(value, non_blocking=True))
            end.record(self._down)
        return copies, end

    def _pinned(self, like: Tensor) -> Tensor | None:
        """Page-locked memory on the host of the same shape: PyTorch keeps and reuses it."""
        if not self.reason:
            try:
                return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
            except Exception as error:  # a limit on locked memory
                self.reason = f"Copies are not pinned ({sentence(error)})."
        return None


class Answer:
    """Labels and energies that a device is about to have computed: call it to wait for them.

    Args:
        copies: on the host, valid after the last of the events.
        events: beginning, preprocessed, inferred, copied.
        waited: seconds of the host's own part of preprocessing.
        timings: gets the seconds of the stages.
    """

    def __init__(
        self, copies: list[Tensor], events: list[torch.cuda.Event], waited: float, timings: dict[str, float]
    ) -> None:
        self._copies, self._events, self._waited, self._timings = copies, events, waited, timings

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        self._events[-1].synchronize()
        arrived = time.perf_counter()
        # Out of pinned memory, of which a machine has little, so that answers can be kept.
        labels, energy = (copy.numpy().copy() for copy in self._copies)
        stages = [1e-3 * a.elapsed_time(b) for a, b in zip(self._events, self._events[1:], strict=False)]
        self._timings["preprocess"] = self._waited + stages[0]
        self._timings["inference"] = stages[1]
        self._timings["postprocess"] = stages[2] + time.perf_counter() - arrived
        return labels, energy
