"""Process settings and machine properties that inference on the CPU needs with any runtime."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def allotted_cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Number of cores that this process may use.

    OpenMP ignores a container's CPU quota. It would start a thread for each core of the machine, and in every layer all
    threads would wait for those that the quota keeps from running.

    Args:
        limit: file with the quota and the period of the container's control group.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     limit = Path(folder) / "cpu.max"
        ...     _ = limit.write_text("100000 100000")  # as much time as one core has
        ...     allotted_cores(limit)
        1
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota, _, period = limit.read_text().partition(" ") if limit.is_file() else ("max", "", "")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next image instead of returning it to the system.

    PyTorch allocates memory for every activation of every image. By default glibc maps and unmaps large allocations, so
    that the system clears each of their pages again for every image. With the starter that causes 45,000 page faults
    per image of 512×1024 pixels. Without glibc this function does nothing.

    Examples:
        >>> keep_freed_memory()  # once per process, before the first image
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        trim_threshold, mmap_max = -1, -4  # from malloc.h
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)


def release_freed_memory() -> None:
    """Return the freed memory that `keep_freed_memory` retains to the system, for example after loading a model.

    Without glibc this function does nothing.

    Examples:
        >>> keep_freed_memory()
        >>> weights = bytes(1_000_000)
        >>> del weights
        >>> release_freed_memory()
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
