"""`make bench`: decoding and prefill beside transformers, on the same weights and threads; expert kernels by format.

Each model is a 2-bit pack; transformers gets that pack's own dequantized weights in bfloat16, so both sides compute the
same function. The sides alternate; medians and their ratio are printed. Everything fits in memory here and the page
cache is warm: what is compared is arithmetic. Streaming from a disk is what `moe-run bench PACK` measures.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from oracle import reference_model
from rich.console import Console
from rich.table import Table
from scale import MOE_PACK, ROOT
from synthetic import Width, write_checkpoint

from moepack.runtime.engine import Engine, EngineOptions

PLACE = ROOT / "build" / "bench"
THREADS = 2
PROMPT = list(range(5, 133))
DECODED = 32
ROUNDS = 5
MID = Width(layers=4, experts=32, vocab=8192)  # the 397B model's layer sizes, four layers, 32 experts
out = Console(highlight=False, width=110)


@dataclass(frozen=True)
class Rates:
    """Tokens per second of one round."""

    prefill: float
    decode: float


class Side:
    """One contender: `prefill` starts a sequence, `decode` feeds one token; both return the likeliest next token."""

    def __init__(self, prefill: Callable[[list[int]], int], decode: Callable[[int], int]) -> None:
        self._prefill, self._decode = prefill, decode

    def run(self) -> Rates:
        """One round: the prompt, then DECODED tokens greedily."""
        start = time.perf_counter()
        token = self._prefill(PROMPT)
        middle = time.perf_counter()
        for _ in range(DECODED):
            token = self._decode(token)
        return Rates(len(PROMPT) / (middle - start), DECODED / (time.perf_counter() - middle))


def ours(engine: Engine) -> Side:
    """moepack's engine."""
    session: Any = None

    def prefill(tokens: list[int]) -> int:
        nonlocal session
        session = engine.new_session()
        return int(session.extend(tokens).argmax())

    return Side(prefill, lambda token: int(session.extend([token]).argmax()))


def theirs(model: Any) -> Side:
    """transformers, with its own key-value cache."""
    cache: Any = None

    @torch.inference_mode()
    def extend(tokens: list[int]) -> int:
        nonlocal cache
        result = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = result.past_key_values
        return int(result.logits[0, -1].argmax())

    def prefill(tokens: list[int]) -> int:
        nonlocal cache
        cache = None
        return extend(tokens)

    return Side(prefill, lambda token: extend([token]))


def compare(pack: Path) -> tuple[list[Rates], list[Rates]]:
    """Rounds of both sides in turn, after one uncounted round of each."""
    model = reference_model(pack).to(torch.bfloat16)
    with Engine.open(pack, EngineOptions(threads=THREADS)) as engine:
        sides = ours(engine), theirs(model)
        rounds = [[side.run() for side in sides] for _ in range(ROUNDS + 1)][1:]
    return [pair[0] for pair in rounds], [pair[1] for pair in rounds]


def packs() -> dict[str, Path]:
    """What is measured, each built once: the shipped demo model, and a synthetic one of the 397B model's width."""
    if not (PLACE / "mid").exists():
        write_checkpoint(MID, PLACE / "mid")
    sources = {"demo": ROOT / "convert" / "demo" / "checkpoint", "full width, 4 layers, 32 experts": PLACE / "mid"}
    targets = {name: PLACE / f"{path.name}-pack" for name, path in sources.items()}
    for name, target in targets.items():
        if not target.exists():
            subprocess.run([MOE_PACK, "build", sources[name], target], check=True, stdout=subprocess.DEVNULL)
    return targets


def main() -> None:
    """Run every comparison and print the table."""
    torch.set_num_threads(THREADS)
    table = Table("model", f"phase, {THREADS} threads", "moepack 2-bit tok/s", "transformers bf16 tok/s", "ratio")
    for name, pack in packs().items():
        mine, peers = compare(pack)
        for phase in ("prefill", "decode"):
            left, right = (statistics.median(getattr(rates, phase) for rates in side) for side in (mine, peers))
            table.add_row(name, phase, f"{left:.1f}", f"{right:.1f}", f"{left / right:.1f}")
    out.print(table)
    kernels()


def kernels() -> None:
    """The expert kernels by format, on every instruction set that this machine has: one process each."""
    for name in ("avx512", "avx2", "neon", "baseline"):
        command = [sys.executable, str(Path(__file__).with_name("kernels.py"))]
        done = subprocess.run(command, env={**os.environ, "MOEPACK_ISA": name}, capture_output=True, text=True)
        if done.returncode == 0:
            print(done.stdout)
        elif "names no instruction set" not in done.stderr:
            raise RuntimeError(done.stderr)


if __name__ == "__main__":
    main()
