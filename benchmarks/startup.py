"""What a process costs that loads a model and answers one image: seconds until the answer, and memory it then holds.

    pebal export starter starter.onnx
    python benchmarks/startup.py starter starter.onnx

Every figure is the median over fresh processes, which take turns. Resident memory is what Linux counts as VmRSS and
VmHWM after the answer: the interpreter, the libraries, the model and the buffers of one image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

PROCESS = """
import json, sys, time
started = time.perf_counter()
import numpy as np
from pebal_core.detector import AnomalyDetector
imported = time.perf_counter()
detector = AnomalyDetector.load(sys.argv[1], device="cpu")
loaded = time.perf_counter()
detector.warm_up(int(sys.argv[2]), int(sys.argv[3]))
answered = time.perf_counter()
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
megabytes = [int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")]
print(json.dumps([detector.engine_name, imported - started, loaded - imported, answered - loaded, *megabytes]))
"""


def measure(model: str, size: tuple[int, int]) -> tuple[str, list[float]]:
    """Engine, then seconds of import, load and first answer, and megabytes held and at the peak."""
    command = [sys.executable, "-c", PROCESS, model, *map(str, size)]
    engine, *figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return engine, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model files or shipped models")
    parser.add_argument("--size", default="512x1024", help="HEIGHTxWIDTH of the image")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    found: dict[str, list[list[float]]] = {model: [] for model in arguments.models}
    engines = {}
    for number in range(arguments.runs + 1):
        for model in arguments.models:
            engines[model], figures = measure(model, (height, width))
            if number:  # the first fills the file cache
                found[model].append(figures)
    print("| model | engine | imports s | load s | first answer s | together s | resident MB | peak MB |")
    print("|" + "---|" * 8)
    for model, rows in found.items():
        imports, load, answer, resident, peak = (statistics.median(column) for column in zip(*rows, strict=True))
        together = statistics.median(sum(row[:3]) for row in rows)
        print(
            f"| {model} | {engines[model]} | {imports:.2f} | {load:.2f} | {answer:.2f} | {together:.2f} | "
            f"{resident:.0f} | {peak:.0f} |"
        )


if __name__ == "__main__":
    main()
