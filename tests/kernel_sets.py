"""A program run on each set of the engine's kernels that this machine has, to compare what it computes there.

MOEPACK_ISA picks a set; which ones a machine has shows only when a kernel is asked for.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

KERNEL_SETS = ("baseline", "avx2", "avx512", "avx512vnni", "neon", "neondot")
TESTS = Path(__file__).parent


def run_on(name: str, *command: str) -> "subprocess.CompletedProcess[str]":
    """Python with these arguments, forced to a set of kernels."""
    environment = {**os.environ, "MOEPACK_ISA": name}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)


def saved_on_every_set(program: str, folder: Path, **given: np.ndarray) -> dict[str, list[np.ndarray]]:
    """The arrays that a program saves with np.savez to sys.argv[1], where it finds what is `given`, by set of kernels.

    It prints the name of the set that it ran on, and finds the modules of the tests and of the runtime's tests.
    """
    found = {}
    for name in KERNEL_SETS:
        file = folder / f"{name}.npz"
        np.savez(file, **given)
        paths = f"import sys\nsys.path[:0] = {[str(TESTS / 'runtime'), str(TESTS)]!r}\n"
        done = run_on(name, "-c", paths + program, str(file))
        if done.returncode:
            assert "names no instruction set that this machine runs" in done.stderr
            continue
        assert done.stdout.strip() == name
        found[name] = list(np.load(file).values())
    return found


def agree(results: dict[str, list[np.ndarray]]) -> bool:
    """Whether all sets with a fused multiply-add gave the same bits."""
    fused = [arrays for name, arrays in results.items() if name != "baseline"]
    return len({b"".join(array.tobytes() for array in arrays) for arrays in fused}) <= 1
