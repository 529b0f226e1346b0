"""The network alone in four ways: eager, as a CUDA graph, compiled by PyTorch, and both. Compiling takes a minute."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from pebal_core.engines.cuda import Graphed, agree, sentence
from pebal_core.engines.torch import TorchEngine

from .bench import Bench, Size


def run(bench: Bench) -> None:
    size = Size(64, 96) if bench.toy else Size(512, 1024)
    for name in ("starter",) if bench.toy or bench.quick else ("starter", "espnetv2"):
        network = TorchEngine(*bench.load(name), str(bench.device), "auto", accelerate=False).network
        dtype = next(network.parameters()).dtype
        batch = torch.randn(1, 3, *size, device=bench.device, dtype=dtype).to(memory_format=torch.channels_last)

        def eager(x: Tensor, network: torch.nn.Module = network) -> tuple[Tensor, ...]:
            return (network.head(network.trunk(x)),)  # type: ignore[operator]

        # Without a GPU, only what is common to all of PyTorch's compilers is tried: the rest takes a minute there, too.
        compiled = torch.compile(eager, backend="aot_eager" if bench.toy else "inductor")
        ways: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {"eager": eager, "compiled": compiled}
        if not bench.toy:
            ways |= {"graph": Graphed("the network", eager), "compiled, graph": Graphed("the network", compiled)}
        with torch.inference_mode():
            expected = eager(batch)
            for way, call in ways.items():
                started = time.perf_counter()
                try:
                    right = agree(call(batch), expected)
                    bench.wait()
                    first = time.perf_counter() - started
                    milliseconds = 1e3 * bench.seconds(lambda: call(batch), 3 if bench.toy else 30)  # noqa: B023
                except Exception as error:  # a compiler that is missing, among others
                    bench.row(f"{name} {size}, {way}", reason=sentence(error))
                    continue
                figures = {"ms": milliseconds, "first_call_s": first, "agrees": right}
                bench.row(f"{name} {size}, {way}", **figures, notes=call.reason if isinstance(call, Graphed) else "")
