"""The exported model on ONNX Runtime: parity, speed, and which operation runs where."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from pebal_core.engines.onnx import OnnxEngine, session_options
from pebal_core.engines.torch import TorchEngine
from pebal_core.errors import PebalError
from pebal_core.export import to_onnx
from pebal_core.model_file import onnx_with_info

from .bench import Bench, Size, Straightforward, scenes

ON_CPU = "CPUExecutionProvider"
SHAPE_BYTES = 256
"""What an operation on shapes yields at most."""


def run(bench: Bench) -> None:
    size = Size(64, 96) if bench.toy else Size(512, 1024)
    images, _ = scenes(size, 1)
    _, info = bench.load("starter")
    info.input_size, info.smoothing = [*size], True
    labels, energy = TorchEngine(*bench.load("starter"), "cpu", "fp32")(images)
    plain = Straightforward(*bench.load("starter"), bench.device, half=False)
    before = 1e3 * bench.seconds(lambda: plain(images), 3 if bench.toy else 10)
    for precision in ("fp32",) if bench.toy else ("fp16",) if bench.quick else ("fp32", "fp16"):
        info.export = {"precision": precision}
        content = onnx_with_info(to_onnx(bench.load("starter")[0], info, precision), info)
        for device in ("cpu",) if bench.toy else ("cuda", "tensorrt"):
            title = f"starter {size}, ONNX Runtime {device}, {precision}"
            try:
                engine = OnnxEngine(content, device)
                answer = engine(images)
                milliseconds = 1e3 * bench.seconds(lambda e=engine: e(images), 3 if bench.toy else 20)  # type: ignore[misc]
            except PebalError as error:
                bench.row(title, reason=str(error))
                continue
            bench.row(
                title,
                ms=milliseconds,
                times_faster_than_straightforward_pytorch=before / milliseconds,
                labels_equal_percent=100 * float((answer[0] == labels).mean()),
                energy_mean_nats=float(np.abs(answer[1] - energy).mean()),
                energy_worst_nats=float(np.abs(answer[1] - energy).max()),
            )
            if device != "tensorrt":  # which would build its engine once more
                placed = placement(content, device, images)
                left = placed.get(ON_CPU, Counter())
                nodes = {provider: sum(operators.values()) for provider, operators in placed.items()}
                bench.row(
                    f"{title}: nodes",
                    **nodes,
                    on_the_cpu=dict(left),
                    **bench.goal("nothing on the CPU but arithmetic of shapes", not left),
                )


def placement(content: bytes, device: str, images: np.ndarray) -> dict[str, Counter[str]]:
    """Operations of the optimised graph by the provider that runs them, as the profile of a run has it.

    ONNX Runtime keeps arithmetic of shapes on the CPU by design: what yields no more bytes than that is apart.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        engine = OnnxEngine(content, device, options=options)
        engine(images)
        events = json.loads(Path(engine.session.end_profiling()).read_text())
    nodes = {}
    for event in events:
        if event["name"].endswith("_kernel_time"):
            about = event["args"]
            small = about["provider"] == ON_CPU and int(about["output_size"]) <= SHAPE_BYTES
            nodes[event["name"]] = "arithmetic of shapes" if small else about["provider"], about["op_name"]
    placed: dict[str, Counter[str]] = {}
    for provider, operator in nodes.values():
        placed.setdefault(provider, Counter())[operator] += 1
    return placed
