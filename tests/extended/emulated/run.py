"""`make emulated`: the kernels for arm64, run under emulation, against those of this machine: equal bit for bit.

Says in a sentence what is missing where it cannot run; nothing here says how fast an arm64 processor is.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PLACE = HERE.parents[2] / "build" / "emulated"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
ARM = ("SYSTEM_NAME=Linux", "SYSTEM_PROCESSOR=aarch64", f"CXX_COMPILER={COMPILER}", "EXE_LINKER_FLAGS=-static")
SETS = {"avx2": (), "avx512": (), "avx512vnni": (), "neon": (EMULATOR, "-cpu", "cortex-a53"), "neondot": (EMULATOR,)}


def build(name: str, *settings: str) -> Path:
    """The program that prints digests, built with CMake's `settings`."""
    options = [f"-DCMAKE_{setting}" for setting in settings]
    subprocess.run(["cmake", "-S", HERE, "-B", PLACE / name, *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", PLACE / name, "--parallel"], check=True, stdout=subprocess.DEVNULL)
    return PLACE / name / "digests"


def digests(program: Path, isa: str) -> list[str]:
    """What `program` prints with an instruction set; nothing if this machine has none such."""
    env = os.environ | {"MOEPACK_ISA": isa}
    ran = subprocess.run([*SETS[isa], program], env=env, capture_output=True, text=True)
    return ran.stdout.splitlines()[1:]


def main() -> None:
    """Compares all instruction sets; ends with 1 if any two differ."""
    if missing := [tool for tool in ("cmake", COMPILER, EMULATOR) if shutil.which(tool) is None]:
        print(f"skipped: {', '.join(missing)} is not installed")
        return
    here, arm = build("here"), build("arm", *ARM)
    found = {isa: digests(arm if emulator else here, isa) for isa, emulator in SETS.items()}
    wanted = found["avx2"]
    for isa, lines in found.items():
        unequal = [a for a, b in zip(wanted, lines, strict=False) if a != b]
        print(f"{isa}: {len(lines)} results, {len(unequal)} differ from avx2", *unequal[:5], sep="\n  ")
    sys.exit(
        any(lines not in ([], wanted) for lines in found.values())
        or not all(found[isa] for isa in ("avx2", "neon", "neondot"))
    )


if __name__ == "__main__":
    main()
