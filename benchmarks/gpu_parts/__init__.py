"""The parts of `benchmarks/gpu.py`, one module each."""
