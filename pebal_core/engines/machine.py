"""What inference on the CPU needs to know of the machine, and to set in the process, whatever the runtime."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def allotted_cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use.

    OpenMP does not know of a container's share (file ``limit``: quota and period). It would start a thread for each
    core of the machine, and in every layer all would wait for those that are not let run.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota, _, period = limit.read_text().partition(" ") if limit.is_file() else ("max", "", "")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next image instead of returning it to the system.

    PyTorch allocates every activation anew. By default glibc maps large ones from the system and unmaps them, so that
    each of their pages is cleared again for every image: 45,000 page faults per image of 512×1024 with the starter.
    Without glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        trim_threshold, mmap_max = -1, -4  # from malloc.h
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)


def release_freed_memory() -> None:
    """Give back what was freed so far and `keep_freed_memory` keeps, such as the memory that loading a model took.

    Without glibc nothing happens.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
