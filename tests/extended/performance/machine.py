"""The machine that `make bench` runs on, as the page describes it."""

import os
import platform
import re
import threading
import time
from pathlib import Path

import numpy as np

READ_BYTES = 512 * 2**20  # by each thread, far more than any cache
ROUNDS = 5


def description(threads: int) -> dict[str, str]:
    """Processor, cores, memory, its measured bandwidth, and the system."""
    return {
        "processor": _found("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB",
        "memory bandwidth": f"{read_bandwidth(threads):.1f} GB/s, read by {threads} threads at the last measurement",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }


def read_bandwidth(threads: int) -> float:
    """GB/s (10^9 bytes) at which threads read arrays of their own, the best of a few rounds."""
    arrays = [np.ones(READ_BYTES // 8) for _ in range(threads)]
    return max(_bandwidth(arrays) for _ in range(ROUNDS))


def _bandwidth(arrays: list[np.ndarray]) -> float:
    workers = [threading.Thread(target=array.max) for array in arrays]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(array.nbytes for array in arrays) / (time.perf_counter() - start) / 1e9


def _found(file: str, pattern: str) -> str | None:
    match = re.search(pattern, Path(file).read_text()) if Path(file).exists() else None
    return match[1] if match else None
