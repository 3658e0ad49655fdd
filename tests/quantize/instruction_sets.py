"""A test module run as a program on each instruction set of this machine, to compare what it says there."""

import os
import subprocess
import sys

from moepack.quantize import _native


def printed_on_every_set(program: str) -> set[str]:
    """What a program prints after the name of the instruction set that it ran on, over all that there are."""
    found = set()
    for name in _native.INSTRUCTION_SETS:
        environment = os.environ | {"MOEPACK_ISA": name}
        done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=True)
        used, rest = done.stdout.split()
        assert used == name
        found.add(rest)
    return found
