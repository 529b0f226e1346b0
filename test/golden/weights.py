"""The rule from which the weights behind the reference values follow: they are drawn, and not stored."""

from __future__ import annotations

import zlib

import numpy as np


def drawn(seed: int, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of this name: normal numbers from the file's seed and the name's checksum, scaled by their kind."""
    x = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape, dtype=np.float32)
    kind = key.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_var":
        return 0.5 + np.abs(x)
    if kind == "running_mean" or (len(shape) == 1 and kind != "weight"):
        return 0.1 * x
    if len(shape) == 1:
        return 1 + 0.1 * x
    x *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
    return x * np.float32(0.01) if key.endswith("final.6.weight") else x
