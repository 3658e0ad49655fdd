"""`make scale`: pack and verify one layer of the 397B model's full width, and say what it cost.

Synthesises the layer as MLX 4-bit (3.6 GB), copies its experts with cp, builds the pack by `minmax`, by pass-through,
by `mse` and as moe-pack does when told nothing, verifies each, makes 32 experts of each again, and compares records
with a plain numpy rendering of the reference rule. Every timing starts with the source out of the page cache and ends
with the result on the disk. Ends with an error if a build passes 2 GiB, if minmax or pass-through falls below half of
cp's rate, or if a quantizer falls below 40 million weights per second of CPU time. All is kept under build/scale.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from extended.performance.limited import forget
from oracle import dequantize
from packs import reference_record
from rich.console import Console
from rich.table import Table
from synthetic import FORMAT, Width, write_checkpoint

from moepack.layout.formats import AffineFormat
from moepack.layout.reader import Pack
from moepack.layout.record import PROJECTIONS
from moepack.layout.tensorfile import TensorFile

ROOT = Path(__file__).parent.parent.parent
PLACE = ROOT / "build" / "scale"
CHECKPOINT = PLACE / "checkpoint"
SHARD = CHECKPOINT / "layer-00.safetensors"
WIDTH = Width()
MOE_PACK = Path(sys.executable).parent / "moe-pack"
MOST_RESIDENT = 2 * 2**30
LEAST_WEIGHTS_PER_CPU_SECOND = 40e6
LEAST_OF_CP = {"minmax": 0.5, "pass-through": 0.5}
CHECKED_EXPERTS = (0, 1, 137, 255, 256, 400, 510, 511)
RECIPES = {
    "minmax": ("--method", "minmax", "--expert-format", "affine2-g64"),
    "pass-through": ("--expert-format", "affine4-g64"),
    "mse": ("--method", "mse", "--expert-format", "affine2-g64"),
    "default": (),
}
out = Console(highlight=False, width=110)


@dataclass(frozen=True)
class Cost:
    """Wall seconds, CPU seconds and peak resident bytes of one command."""

    wall: float
    cpu: float
    peak: int


def measure(*command: str | Path) -> Cost:
    """Run a command to its end and account for it; a failure ends the program with what the command said."""
    start = time.monotonic()
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    peak = 0
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        peak = max(peak, resident_peak(child.pid))
        time.sleep(0.02)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command} ended with {child.returncode}")
    return Cost(time.monotonic() - start, usage.ru_utime + usage.ru_stime, peak or usage.ru_maxrss)


def resident_peak(process: int) -> int:
    """Peak resident bytes so far, 0 where /proc does not tell; ru_maxrss would count what was forked from, too."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def copy() -> Cost:
    """cp of the layer's shard, to the disk and not only to the page cache."""
    target = PLACE / "copy"
    forget(CHECKPOINT)
    cost = measure("sh", "-c", f"cp '{SHARD}' '{target}' && sync '{target}'")
    target.unlink()
    return cost


def build(name: str) -> Cost:
    """Build the pack called `name` from scratch."""
    shutil.rmtree(PLACE / name, ignore_errors=True)
    forget(CHECKPOINT)
    return measure(MOE_PACK, "build", CHECKPOINT, PLACE / name, *RECIPES[name])


def verify(name: str) -> Cost:
    """Verify the pack called `name`, read from the disk."""
    forget(PLACE / name)
    return measure(MOE_PACK, "verify", PLACE / name)


def reproduce(name: str) -> Cost:
    """Make a sample of the pack called `name` again, which must come out the same; both are read from the disk."""
    forget(CHECKPOINT)
    forget(PLACE / name)
    return measure(MOE_PACK, "reproduce", PLACE / name, "--source", CHECKPOINT)


def rule_record(file: TensorFile, expert: int) -> bytes:
    """One expert by the reference system's 2-bit rule, in plain numpy."""
    matrices = (dequantize(*source_parts(file, projection, expert), FORMAT) for projection in PROJECTIONS)
    return reference_record(*matrices, AffineFormat.parse("affine2-g64"))


def source_parts(file: TensorFile, projection: str, expert: int) -> list[np.ndarray]:
    """Codes, scales and biases of one expert's matrix, as the checkpoint stores them."""
    stem = f"language_model.model.layers.0.mlp.switch_mlp.{projection}_proj"
    return [file.read_row(f"{stem}.{part}", expert) for part in ("weight", "scales", "biases")]


def compare_records() -> None:
    """Hold records of the minmax pack against the numpy rendering, byte for byte."""
    with Pack.open(PLACE / "minmax") as pack, TensorFile.open(SHARD) as file:
        for expert in CHECKED_EXPERTS:
            if pack.read_record(0, expert).tobytes() != rule_record(file, expert):
                sys.exit(f"expert {expert} differs from the reference rule")
        record = pack.records[0]
    out.print(f"{len(CHECKED_EXPERTS)} records of {record.stride:,} bytes equal the reference rule, byte for byte")


def compare_pass_through() -> None:
    """Hold records of the pass-through pack against the checkpoint's own bytes."""
    with Pack.open(PLACE / "pass-through") as pack, TensorFile.open(SHARD) as file:
        for expert in CHECKED_EXPERTS:
            parts = [part for name in PROJECTIONS for part in source_parts(file, name, expert)]
            if pack.read_record(0, expert).tobytes() != b"".join(part.tobytes() for part in parts):
                sys.exit(f"expert {expert} differs from the checkpoint")
    out.print(f"{len(CHECKED_EXPERTS)} pass-through records equal the checkpoint, byte for byte")


def shortfalls(name: str, built: Cost, copied: Cost) -> list[str]:
    """What a build promised and did not keep."""
    found = []
    if built.peak > MOST_RESIDENT:
        found.append(f"{name} held {built.peak / 2**30:.1f} GiB")
    if copied.wall / built.wall < LEAST_OF_CP.get(name, 0):
        found.append(f"{name} ran at {copied.wall / built.wall:.2f} of cp's rate")
    if WIDTH.expert_weights / built.cpu < LEAST_WEIGHTS_PER_CPU_SECOND:
        found.append(f"{name} quantized {WIDTH.expert_weights / built.cpu / 1e6:.0f} million weights per CPU second")
    return found


def main() -> None:
    """Run everything and print the table."""
    if not CHECKPOINT.exists():
        out.print(f"synthesising {CHECKPOINT}")
        write_checkpoint(WIDTH, CHECKPOINT)
    size = SHARD.stat().st_size
    table = Table("step", "seconds", "source GB/s", "of cp", "M weights/s", "per core", "peak MiB")
    missed = []
    for name in RECIPES:
        copied = copy()  # beside each build, because this disk's speed drifts
        built = build(name)
        rate = WIDTH.expert_weights / 1e6
        row = [f"{built.wall:.1f}", f"{size / built.wall / 1e9:.2f}", f"{copied.wall / built.wall:.2f}"]
        row += [f"{rate / built.wall:.0f}", f"{rate / built.cpu:.0f}", f"{built.peak / 2**20:.0f}"]
        table.add_row("cp", f"{copied.wall:.1f}", f"{size / copied.wall / 1e9:.2f}", "1.00", "", "", "")
        table.add_row(f"build {name}", *row)
        missed += shortfalls(name, built, copied)
        checked = verify(name)
        pack_size = sum(path.stat().st_size for path in (PLACE / name).rglob("*") if path.is_file())
        table.add_row(
            f"verify {name}",
            f"{checked.wall:.1f}",
            f"{pack_size / checked.wall / 1e9:.2f}",
            "",
            "",
            "",
            f"{checked.peak / 2**20:.0f}",
        )
        sampled = reproduce(name)
        peak = f"{sampled.peak / 2**20:.0f}"
        table.add_row(f"reproduce 32 of {name}", f"{sampled.wall:.1f}", "", "", "", "", peak)
    out.print(table)
    compare_records()
    compare_pass_through()
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main()
