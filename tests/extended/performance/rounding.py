"""What it costs that products see activations rounded to fifteen bits: KL to the same pack computed in float32.

The scorer of `moe-pack quality`, on the same windows with the same weights; only the backend's arithmetic differs.
"""

from dataclasses import dataclass
from pathlib import Path

from moepack.manifests.progress import Silent
from moepack.runtime.backends.cpu import CpuBackend
from moepack.runtime.corpus import Room
from moepack.runtime.packfiles import PackFiles
from moepack.runtime.quality.score import compare_streams, passed
from moepack.runtime.quality.summary import Summary
from moepack.runtime.quality.windows import read_text
from moepack.runtime.source import PackSource
from moepack.runtime.sweep import Sweep
from moepack.runtime.tokenizer import Tokenizer

WINDOW, POSITIONS = 512, 10_000


@dataclass(frozen=True)
class Cost:
    """Mean KL in nats, its standard error by document, and the share of positions with the same likeliest token."""

    divergence: float
    error: float
    agreement: float
    positions: int


def cost(pack: Path, text: Path, *, threads: int, positions: int = POSITIONS) -> Cost:
    """Score a pack's rounded arithmetic against its exact one on about `positions` tokens from all over a text."""
    with PackSource.open(pack) as source:
        tokenizer = Tokenizer.open(PackFiles.of(source.pack), source.model.vocab_size)
        windows = read_text(text, tokenizer, window=WINDOW, limit=positions)
        both = [Sweep(source, CpuBackend(threads, exact=exact)) for exact in (True, False)]
        with Silent().task("", 2 * source.model.num_layers) as task:
            exact, rounded = (passed(sweep, windows, Room(), task) for sweep in both)
        found = Summary.of(compare_streams(exact, rounded, windows), windows.clusters())
    return Cost(found.divergence.mean, found.divergence.error, found.agreement.mean, found.positions)
