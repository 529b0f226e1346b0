"""`benchmarks/gpu.py` runs: without a GPU at toy size, so that its first run on one is not its first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.py"
PARTS = ("machine", "parity", "inference", "training", "node", "steps", "loading", "onnx", "compiled")


def run(out: Path, *options: str) -> dict[str, dict[str, object]]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(out.read_text())
    assert report["toy"] and report["device"] == "cpu"
    parts: dict[str, dict[str, object]] = report["parts"]
    return parts


def test_every_part_reports_figures_without_a_gpu(tmp_path: Path) -> None:
    parts = run(tmp_path / "gpu.json", "--seconds", "280")
    log = (tmp_path / "gpu.log").read_text()
    found = {name: (part["status"], part["reason"]) for name, part in parts.items()}
    assert found == dict.fromkeys(PARTS, ("done", "")), log[-3000:]
    rows = {f"{name}: {row['name']}": row for name, part in parts.items() for row in part["rows"]}  # type: ignore[attr-defined]
    assert [title for title, row in rows.items() if row.get("met") is False] == [], "on the CPU, parity holds exactly"
    assert [title for title, row in rows.items() if "reason" in row] == []
    assert sum("met" in row for row in rows.values()) >= 4, "and speed has no goal"
    for title in (
        "inference: starter 64×96, straightforward fp32",
        "inference: starter 64×96, engine fp32",
    ):
        assert rows[title]["times_faster"] > 0
    assert rows["training: times faster than straightforward, whole network, fp32"]["ours, bf16"] > 0
    node = rows["node: starter at 64×96, 3 cameras of 120×160, labels, energy, score, mask"]
    assert node["bytes_published_per_frame"] == 120 * 160 * (1 + 4 + 1 + 1)
    assert rows["onnx: starter 64×96, ONNX Runtime cpu, fp32"]["labels_equal_percent"] > 99.9
    assert rows["onnx: starter 64×96, ONNX Runtime cpu, fp32: nodes"]["on_the_cpu"]["Conv"] > 50


def test_a_part_without_time_does_not_take_the_others_along(tmp_path: Path) -> None:
    parts = run(tmp_path / "gpu.json", "--seconds", "4", "--parts", "onnx", "compiled")
    assert {name: part["status"] for name, part in parts.items()} == {
        "machine": "done",
        "onnx": "stopped",
        "compiled": "skipped",
    }
    assert parts["onnx"]["reason"] and parts["compiled"]["reason"]
