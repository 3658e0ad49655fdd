"""Expert kernels by format, part of `make bench`: the 397B model's expert, on one instruction set.

Formats take turns in one process, each on the next few of its records, which together exceed the caches; what is shown
are medians, and the median of the ratios to affine2-g64 of the same round. MOEPACK_ISA picks the instruction set.
"""

import statistics
import time
from dataclasses import dataclass, field

import numpy as np
from packs import random_record
from rich.console import Console
from rich.table import Table

from moepack.layout.formats import GRID_FORMATS, AffineFormat, Format
from moepack.layout.record import PROJECTIONS, ExpertShape, RecordLayout
from moepack.runtime.backends.cpu import CpuBackend

EXPERT = ExpertShape(hidden=4096, intermediate=1024)
WEIGHTS = 3 * EXPERT.hidden * EXPERT.intermediate
FORMATS: tuple[Format, ...] = (AffineFormat(2, 64), AffineFormat(3, 64), AffineFormat(4, 64), *GRID_FORMATS)
RECORDS = 12  # of each format
ROUNDS = 15
CASES = ((1, 1, 3), (2, 1, 3), (2, 8, 1), (2, 64, 1))  # threads, tokens, records a turn
out = Console(highlight=False, width=120)


@dataclass
class Contender:
    """A format, its records, and the seconds per record of each turn."""

    layout: RecordLayout
    records: list[np.ndarray]
    seconds: list[float] = field(default_factory=list)
    turns: int = 0

    @classmethod
    def of(cls, format_: Format) -> "Contender":
        """Random records of a format."""
        layout = RecordLayout.of(EXPERT, dict.fromkeys(PROJECTIONS, format_))
        first = random_record(np.random.default_rng(0), layout)
        return cls(layout, [first.copy() for _ in range(RECORDS)])

    def turn(self, cpu: CpuBackend, x: np.ndarray, records: int) -> None:
        """Compute with the next `records` records."""
        view, to = cpu.layout(self.layout), np.zeros_like(x)
        tokens, shares = np.arange(len(x), dtype=np.int32), np.full(len(x), 0.1, np.float32)
        start = time.perf_counter()
        for _ in range(records):
            cpu.expert(to, x, self.records[self.turns % RECORDS], view, tokens, shares)
            self.turns += 1
        self.seconds.append((time.perf_counter() - start) / records)

    def figures(self, base: "Contender", tokens: int) -> tuple[str, str, str]:
        """Weights and bytes per second, and the time beside `base`'s."""
        seconds = statistics.median(self.seconds)
        ratio = statistics.median(a / b for a, b in zip(self.seconds, base.seconds, strict=True))
        rates = WEIGHTS * tokens / seconds / 1e9, self.layout.size / seconds / 1e9
        return f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{ratio:.2f}"


def run(contenders: list[Contender], threads: int, tokens: int, records: int) -> None:
    """ROUNDS turns of each contender after an uncounted one."""
    cpu = CpuBackend(threads)
    x = np.random.default_rng(1).normal(size=(tokens, EXPERT.hidden)).astype(np.float32)
    for round_ in range(ROUNDS + 1):
        for contender in contenders:
            if round_ == 1:
                contender.seconds.clear()
            contender.turn(cpu, x, records)


def main() -> None:
    """Run every case and print a table for each."""
    contenders = [Contender.of(format_) for format_ in FORMATS]
    for threads, tokens, records in CASES:
        run(contenders, threads, tokens, records)
        title = f"{CpuBackend(1).name}: {threads} threads, {tokens} tokens an expert"
        table = Table("format", "10^9 weights/s", "GB/s", "time / affine2-g64", title=title)
        for format_, contender in zip(FORMATS, contenders, strict=True):
            table.add_row(format_.name, *contender.figures(contenders[0], tokens))
            contender.turns = 0
        out.print(table)


if __name__ == "__main__":
    main()
