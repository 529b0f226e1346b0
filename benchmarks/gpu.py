"""Everything about the GPU in one run: does it say what the CPU says, and how fast are inference, training and node.

    python benchmarks/gpu.py --out gpu.json              # below 6 minutes on an H100
    python benchmarks/gpu.py --out gpu.json --quick      # below 3
    python benchmarks/gpu.py --out gpu.json --parts inference node

It needs no data set and no ROS. Without a GPU it runs at toy size on the CPU, to try it out. Each part is a process of
its own with a budget of time: whatever a part does, the others run, and the file holds all rows that were reported so
far, with the reason why a part ended early. Every figure stands beside that of a straightforward way in PyTorch.
Medians after a warm-up, by clocks that wait for the device; stages by the device's own events.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from gpu_parts.bench import Bench

from pebal_core.files import write_atomically

BUDGETS = {
    # seconds of a whole run, and of a quick one
    "machine": (20, 15),
    "parity": (75, 45),
    "inference": (140, 70),
    "training": (50, 25),
    "node": (60, 40),
    "steps": (45, 35),
    "loading": (75, 35),
    "onnx": (45, 30),
    "compiled": (60, 30),
}
"""The parts in their order."""
REQUIRED = ("machine",)
FORK = multiprocessing.get_context("fork")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="where the figures go, as JSON")
    parser.add_argument("--quick", action="store_true", help="fewer networks, sizes and turns")
    parser.add_argument("--parts", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help="cpu: at toy size")
    parser.add_argument(
        "--seconds", type=float, help="budget of the whole run; 350, or 180 with --quick; more is shared by the parts"
    )
    arguments = parser.parse_args()
    usual = 180 if arguments.quick else 350
    allowed = arguments.seconds if arguments.seconds is not None else usual
    end = time.monotonic() + allowed
    device = find_device() if arguments.device == "auto" else arguments.device
    report: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "device": device,
        "toy": device == "cpu",
        "parts": {},
    }
    log = arguments.out.with_suffix(".log")
    log.write_text("")
    for name in BUDGETS:
        if name in (*REQUIRED, *arguments.parts):
            budget = min(BUDGETS[name][arguments.quick] * max(1, allowed / usual), end - time.monotonic())
            report["parts"][name] = part = run_part(name, device, arguments.quick, budget, log)
            content = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
            write_atomically(arguments.out, content.encode())
            show(name, part)
    goals = [(name, row) for name, part in report["parts"].items() for row in part["rows"] if "goal" in row]
    print("\n### Goals\n\n| part | what | goal | met |\n|---|---|---|---|")
    for name, row in goals:
        print(f"| {name} | {row['name']} | {row['goal']} | {'yes' if row['met'] else 'NO'} |")
    print(f"\n{arguments.out} contains all of this, and {log} contains the output of the parts.")


def find_device() -> str:
    """Looked for in another process: CUDA must not start in this one, from which the parts are forked."""
    process = FORK.Process(target=lambda: sys.exit(0 if torch.cuda.is_available() else 1))
    process.start()
    process.join()
    return "cpu" if process.exitcode else "cuda"


def run_part(name: str, device: str, quick: bool, budget: float, log: Path) -> dict[str, Any]:
    """Status, reason, seconds and rows of a part, which runs in a process of its own."""
    if budget <= 1:
        return {
            "status": "skipped",
            "reason": "the time budget of the whole run is used up",
            "seconds": 0.0,
            "rows": [],
        }
    with tempfile.TemporaryDirectory() as folder:
        rows, problem = Path(folder) / "rows", Path(folder) / "problem"
        started = time.monotonic()
        process = FORK.Process(target=work, args=(name, device, quick, rows, problem, log))
        process.start()
        process.join(budget)
        status, reason = "done", ""
        if process.is_alive():
            status, reason = "stopped", f"its budget of {budget:.0f} s was used up"
        elif problem.is_file():
            status, reason = "failed", problem.read_text()
        elif process.exitcode:
            status, reason = "failed", f"its process ended with exit code {process.exitcode}"
        stop(process)
        lines = rows.read_text().splitlines() if rows.is_file() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return {"status": status, "reason": reason, "seconds": round(time.monotonic() - started, 1), "rows": found}


def work(name: str, device: str, quick: bool, rows: Path, problem: Path, log: Path) -> None:
    """In the process of a part."""
    os.setsid()  # so that it can be ended with all its workers
    with log.open("a") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    print(f"### {name}", flush=True)
    bench = Bench(device, quick, rows)
    try:
        if name == "machine":
            machine(bench)
        else:
            importlib.import_module(f"gpu_parts.{name}").run(bench)
    except BaseException as error:
        traceback.print_exc()
        first = next(iter(str(error).splitlines()), "no reason given")
        problem.write_text(f"{type(error).__name__}: {first}")
    # Threads of CUDA and of data loaders do not hold up the end.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if problem.is_file() else 0)


def stop(process: multiprocessing.process.BaseProcess) -> None:
    """End a part and whatever it started."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def machine(bench: Bench) -> None:
    """Device, driver and versions, and how fast the device multiplies and copies."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    versions["opencv"] = cv2.__version__
    for package in ("triton", "onnxruntime", "onnxruntime-gpu", "lightning"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "none"
    bench.row("versions", **versions)
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    bench.row("processor", model=cpu.partition(": ")[2], cores=len(os.sched_getaffinity(0)))
    side, kind = (256, torch.float32) if bench.toy else (8192, torch.bfloat16)
    if not bench.toy:
        properties = torch.cuda.get_device_properties(bench.device)
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            driver = f"unknown ({error})"
        bench.row(
            "device",
            model=properties.name,
            memory_gb=properties.total_memory / 1e9,
            capability=f"{properties.major}.{properties.minor}",
            driver_power_clock=driver,
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        )
    one, other = (torch.randn(side, side, device=bench.device, dtype=kind) for _ in range(2))
    seconds = bench.seconds(lambda: one @ other, 10)
    bench.row(f"product of {side}×{side} matrices, {kind}", tflops=2 * side**3 / seconds / 1e12)
    seconds = bench.seconds(one.clone, 10)
    bench.row("copy on the device", gb_per_second=2 * one.nbytes / seconds / 1e9)


def show(name: str, part: dict[str, Any]) -> None:
    """A part as a table."""
    reason = f": {part['reason']}" if part["reason"] else ""
    print(f"\n### {name} ({part['status']}{reason}; {part['seconds']} s)\n\n| | |\n|---|---|")
    for row in part["rows"]:
        figures = [f"{key} {value}" for key, value in row.items() if key != "name" and value not in ([], None)]
        print(f"| {row['name']} | {', '.join(figures)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
