"""Accelerations for GPUs, each of which falls back to eager PyTorch.

None of them may change a result or stop a run. One that fails, or whose result differs from the plain computation, is
switched off from then on, and its `reason` says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
"""A function of tensors on one device and of hashable values."""

MAX_GRAPHS = 4
"""Most shapes for which a graph is kept; each graph holds the memory of all activations."""
TOLERANCE = 0.02
"""Greatest difference between two results, as a share of the largest value; it allows for different rounding."""
UNEQUAL = 1e-3
"""Greatest share of integers, such as labels, that may differ."""


def agree(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Whether two results are equal up to rounding; infinities and NaN count as equal to themselves.

    Examples:
        >>> expected = torch.tensor([1.0, 2.0])
        >>> agree((expected + 0.01,), (expected,)), agree((2 * expected,), (expected,))
        (True, False)
    """
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
    """Describe an exception in one line.

    Examples:
        >>> sentence(ValueError("the image is too wide"))
        'ValueError: the image is too wide'
    """
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"


class Guarded:
    """A fast function that is compared with a plain one at the first call for each shape.

    Args:
        title: name of the acceleration, for `reason`.
        fast: the fast function, which is abandoned after its first exception or wrong result.
        plain: the reference function.
        compare: False if the fast function compares its own steps, and raises an exception if one is wrong.

    Examples:
        >>> double = Guarded("The shortcut", fast=lambda x: (x,), plain=lambda x: (x + x,))
        >>> double(torch.ones(2))
        (tensor([2., 2.]),)
        >>> double.reason
        'The shortcut is off (RuntimeError: its answer is not that of plain PyTorch).'
    """

    def __init__(self, title: str, fast: Function, plain: Function, compare: bool = True) -> None:
        self.title, self.reason, self._compare = title, "", compare
        self._fast, self._plain = fast, plain
        self._trusted: set[tuple[object, ...]] = set()

    def __call__(self, *arguments: Tensor | tuple[int, int]) -> tuple[Tensor, ...]:
        if self.reason:
            return self._plain(*arguments)
        key = tuple((tuple(a.shape), a.dtype) if isinstance(a, Tensor) else a for a in arguments)
        try:
            result = self._fast(*arguments)
            if self._compare and key not in self._trusted:
                if not agree(result, self._plain(*arguments)):
                    raise RuntimeError("its answer is not that of plain PyTorch")
                self._trusted.add(key)
            return result
        except Exception as error:  # compilers and drivers fail in many ways
            self.reason = f"{self.title} is off ({sentence(error)})."
            return self._plain(*arguments)


class Graphed:
    """A function of one tensor on a CUDA device, replayed as a CUDA graph, which needs a single launch.

    A graph belongs to one shape. It is captured when that shape first occurs, with the convolution algorithms that are
    fastest for it. After `MAX_GRAPHS` shapes, others run eagerly.

    Args:
        title: name of the function, for `reason`.
        function: the function. It must not read values from the device on the host, and the shape of its result must
            depend only on the shape of its input.

    Examples:
        >>> double = Graphed("the sum", lambda x: (x + x,))
        >>> double(torch.ones(2))  # a tensor on the CPU has no graph, so the function runs eagerly
        (tensor([2., 2.]),)
        >>> double.reason.partition(" (")[0]
        'The CUDA graph of the sum is off'
    """

    def __init__(self, title: str, function: Function) -> None:
        self.title, self.reason = title, ""
        self._function = function
        self._graphs: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Call the function; the caller owns the returned tensors."""
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
        graph, buffer, answer = self._graphs[key]
        buffer.copy_(x)
        graph.replay()
        return tuple(t.clone() for t in answer)

    def _capture(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        buffer = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
        buffer.copy_(x)
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(x.device)
        side = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        with fastest_convolutions():
            side.wait_stream(current)
            with torch.cuda.stream(side):  # capturing needs a side stream on which the function has run before
                for _ in range(2):
                    expected = self._function(buffer)
            current.wait_stream(side)
            torch.cuda.synchronize(x.device)
            # The mode allows other threads to use the device during the capture.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                answer = self._function(buffer)
        graph.replay()
        torch.cuda.synchronize(x.device)
        if not agree(answer, expected):
            raise RuntimeError("its answer is not that of plain PyTorch")
        return graph, buffer, answer


def timer() -> torch.cuda.Event:
    """Make an event that records its time.

    Examples:
        >>> start, end = timer(), timer()  # doctest: +SKIP
        >>> start.record(), end.record(), end.synchronize()  # doctest: +SKIP
        >>> milliseconds = start.elapsed_time(end)  # doctest: +SKIP
    """
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN benchmark its algorithms for each new shape and use the fastest.

    Examples:
        >>> with fastest_convolutions():
        ...     torch.backends.cudnn.benchmark
        True
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Transfers:
    """Copies between host and device through pinned memory, on their own streams.

    A copy therefore runs while the device still computes the previous frame. If memory cannot be pinned, the copies are
    synchronous.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.reason = device, ""
        self._up, self._down = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    def upload(self, values: np.ndarray) -> tuple[Tensor, torch.cuda.Event]:
        """Copy values to the device; returns the tensor, usable on the current stream, and an event at the start."""
        source, start = torch.from_numpy(values), timer()
        pinned = self._pinned(source)
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._up):
            start.record(self._up)
            copied = (source if pinned is None else pinned.copy_(source)).to(self.device, non_blocking=True)
        current.wait_stream(self._up)
        copied.record_stream(current)
        return copied, start

    def download(self, values: tuple[Tensor, ...]) -> tuple[list[Tensor], torch.cuda.Event]:
        """Start copying values to the host; returns host tensors and the event after which they are valid."""
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
        """Page-locked host memory of the same shape, which PyTorch caches and reuses; None if it is unavailable."""
        if not self.reason:
            try:
                return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
            except Exception as error:  # for example a limit on locked memory
                self.reason = f"Copies do not use pinned memory ({sentence(error)})."
        return None


class Answer:
    """Pending labels and energies of a device; calling it waits for them.

    Args:
        copies: host tensors, valid after the last event.
        events: start of the work, and end of preprocessing, inference and the copy to the host.
        waited: seconds that preprocessing took on the host.
        timings: receives the seconds of the stages.
    """

    def __init__(
        self, copies: list[Tensor], events: list[torch.cuda.Event], waited: float, timings: dict[str, float]
    ) -> None:
        self._copies, self._events, self._waited, self._timings = copies, events, waited, timings

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        self._events[-1].synchronize()
        arrived = time.perf_counter()
        # Copy the results out of pinned memory, which is scarce, so that callers can keep them.
        labels, energy = (copy.clone().numpy() for copy in self._copies)
        stages = [1e-3 * a.elapsed_time(b) for a, b in zip(self._events, self._events[1:], strict=False)]
        self._timings["preprocess"] = self._waited + stages[0]
        self._timings["inference"] = stages[1]
        self._timings["postprocess"] = stages[2] + time.perf_counter() - arrived
        return labels, energy
