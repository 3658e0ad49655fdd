"""Which records should stay in memory: cache policies over recorded routing, as hit rates and tokens per second.

`python tests/extended/policies.py PACK TEXT [GB/s]` runs a text through a pack, records which experts every layer's
router picks, and replays the tokens against each policy with as many slots as given parts of all records, decoding
only: a miss costs one read. The routing of a large model is imitated too (512 experts, K = 10): popularity by Zipf's
law, topics that last, and tokens like the one before. The first fifth warms the cache. `clairvoyant` evicts what is
needed last (Belady): no policy can do better.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from moepack.layout.reader import Pack
from moepack.runtime.backends.base import Routes, Tensor
from moepack.runtime.backends.cpu import CpuBackend
from moepack.runtime.engine import Engine, EngineOptions, plan_run
from moepack.runtime.streaming import cache
from moepack.runtime.streaming.cache import Cache, Key

TOKENS = 1000  # replayed of each trace
PARTS = (0.15, 0.25, 0.3, 0.4, 0.5, 0.75)  # of all records, in slots
LARGE_PARTS = (5 / 512, 10 / 512, 16 / 512, 32 / 512, 64 / 512, 128 / 512)
LARGE_STRIDE = 3_932_160
out = Console(highlight=False, width=140)


@dataclass(frozen=True)
class Trace:
    """Experts [tokens, layers, K] that were picked, of `experts` in each layer; a record has `stride` bytes."""

    name: str
    picks: np.ndarray
    experts: int
    stride: int
    parts: tuple[float, ...]

    def slots(self, part: float) -> int:
        """How many slots a part of all records needs."""
        return round(part * self.experts * self.picks.shape[1])


class Policy(Protocol):
    """A cache under some policy."""

    def visit(self, token: int, keys: list[Key]) -> int:
        """A layer wants these records: how many had to be read."""


class Aged:
    """The engine's own cache (LRFU), with another half-life if one is given."""

    def __init__(self, slots: int, layers: int, half_life: float = cache.HALF_LIFE) -> None:
        self._cache = Cache([np.zeros(0, np.uint8) for _ in range(slots)], layers)
        self._half_life = half_life

    def visit(self, token: int, keys: list[Key]) -> int:
        held = self._cache
        held.pin(keys)
        missing = [key for key in keys if key not in held.records]
        for key in keys:
            held.use(key, token * cache.HALF_LIFE / self._half_life)
        for key in missing:
            slot = held.room()
            assert slot is not None
            held.put(key, slot)
        return len(missing)


class Recent:
    """Least recently used over all layers."""

    def __init__(self, slots: int, layers: int) -> None:
        self._slots = slots
        self._held: OrderedDict[Key, None] = OrderedDict()

    def visit(self, token: int, keys: list[Key]) -> int:
        missing = [key for key in keys if key not in self._held]
        for key in keys:
            self._held[key] = None
            self._held.move_to_end(key)
        while len(self._held) > self._slots:
            self._held.popitem(last=False)
        return len(missing)


class Segmented:
    """Two lists over all layers: records used once are evicted before those used again (SLRU, 60 % protected)."""

    def __init__(self, slots: int, layers: int) -> None:
        self._slots, self._most = slots, int(0.6 * slots)
        self._trial: OrderedDict[Key, None] = OrderedDict()
        self._proven: OrderedDict[Key, None] = OrderedDict()

    def visit(self, token: int, keys: list[Key]) -> int:
        missing = [key for key in keys if key not in self._trial and key not in self._proven]
        for key in keys:
            known = key not in missing
            self._trial.pop(key, None)
            self._proven.pop(key, None)
            (self._proven if known else self._trial)[key] = None
        while len(self._proven) > self._most:
            self._trial[self._proven.popitem(last=False)[0]] = None
        while len(self._trial) + len(self._proven) > self._slots:
            (self._trial or self._proven).popitem(last=False)
        return len(missing)


class Clock:
    """A hand passes over all slots and gives away the first whose record was not used since it last came by."""

    def __init__(self, slots: int, layers: int) -> None:
        self._slots, self._hand = slots, 0
        self._ring: list[Key] = []
        self._used: dict[Key, bool] = {}

    def visit(self, token: int, keys: list[Key]) -> int:
        missing = [key for key in keys if key not in self._used]
        self._used.update((key, True) for key in keys if key in self._used)
        for key in missing:
            self._admit(key)
        return len(missing)

    def _admit(self, key: Key) -> None:
        if len(self._ring) < self._slots:
            self._ring.append(key)
        else:
            while self._used[self._ring[self._hand]]:
                self._used[self._ring[self._hand]] = False
                self._hand = (self._hand + 1) % self._slots
            del self._used[self._ring[self._hand]]
            self._ring[self._hand] = key
            self._hand = (self._hand + 1) % self._slots
        self._used[key] = False


class ByLayer:
    """Each layer has its share of the slots, and a policy of its own in it."""

    def __init__(self, slots: int, layers: int, policy: Callable[[int, int], Policy] = Recent) -> None:
        self._layers = [policy(len(range(layer, slots, layers)), 1) for layer in range(layers)]

    def visit(self, token: int, keys: list[Key]) -> int:
        return self._layers[keys[0][0]].visit(token, keys)


POLICIES: dict[str, Callable[[int, int], Policy]] = {
    "LRU by layer": ByLayer,
    "LRU": Recent,
    "CLOCK": Clock,
    "SLRU": Segmented,
    **{
        f"aged frequency, {half_life:g}": lambda slots, layers, half_life=half_life: Aged(slots, layers, half_life)
        for half_life in (2, 4, 8, 16, 64, 256)
    },
}


def clairvoyant(trace: Trace, slots: int) -> float:
    """The hit rate of one who knows the future."""
    picks, (tokens, layers, k) = trace.picks, trace.picks.shape
    upcoming, due = np.zeros(picks.shape, np.int64), np.full((layers, trace.experts), tokens * layers)
    for token in range(tokens - 1, -1, -1):
        for layer in range(layers):
            upcoming[token, layer] = due[layer, picks[token, layer]]
            due[layer, picks[token, layer]] = token * layers + layer
    held: dict[Key, int] = {}
    misses = 0
    for token in range(tokens):
        for layer in range(layers):
            keys = [(layer, expert) for expert in picks[token, layer].tolist()]
            misses += sum(key not in held for key in keys) if token >= tokens // 5 else 0
            held.update(zip(keys, upcoming[token, layer].tolist(), strict=True))
            for key in sorted(held, key=held.__getitem__)[slots:]:
                del held[key]
    return 1 - misses / ((tokens - tokens // 5) * layers * k)


def hit_rate(trace: Trace, policy: Policy) -> float:
    """Of the tokens after the first fifth."""
    tokens, layers, k = trace.picks.shape
    misses = 0
    for token, picks in enumerate(trace.picks.tolist()):
        for layer, experts in enumerate(picks):
            missed = policy.visit(token, [(layer, expert) for expert in experts])
            misses += missed if token >= tokens // 5 else 0
    return 1 - misses / ((tokens - tokens // 5) * layers * k)


class Recorder(CpuBackend):
    """Remembers what the routers chose, layer after layer."""

    def __init__(self) -> None:
        super().__init__(1)
        self.picks: list[np.ndarray] = []

    def route(self, logits: Tensor, k: int) -> Routes:
        routes = super().route(logits, k)
        self.picks.append(routes.ids.copy())
        return routes


def recorded(path: Path, text: Path) -> Trace:
    """The routing of a text's first tokens; a prompt is routed as decoding routes, token for token."""
    ids = Tokenizer.from_file(str(path / "tokenizer.json")).encode(text.read_text()[: 12 * TOKENS]).ids[:TOKENS]
    options, recorder = EngineOptions(threads=1, chunk=TOKENS), Recorder()
    with Pack.open(path) as pack:
        with Engine(pack, options, plan_run(pack, options), recorder) as engine:
            engine.new_session().extend(ids)
        return Trace(text.name, np.stack(recorder.picks, 1), pack.model.num_experts, pack.records[0].stride, PARTS)


def imitated(tokens: int = 300, layers: int = 4, experts: int = 512, k: int = 10) -> Trace:
    """A large model's routing, as a made-up stream of scores: popularity + topic + something slow + noise."""
    random = np.random.default_rng(0)
    picks = np.zeros((tokens, layers, k), np.int64)
    popular = random.permuted(np.tile(-np.log(np.arange(1, experts + 1)), (layers, 1)), axis=1)
    topics, slow = 1.5 * random.normal(size=(8, layers, experts)), random.normal(size=(layers, experts))
    topic = topics[0]
    for token in range(tokens):
        topic = topics[random.integers(8)] if random.random() < 0.01 else topic
        slow = 0.9 * slow + 0.19**0.5 * random.normal(size=slow.shape)
        scores = popular + topic + 1.5 * slow + 0.7 * random.gumbel(size=slow.shape)
        picks[token] = np.argpartition(-scores, k, axis=1)[:, :k]
    return Trace("imitated 512 experts", picks, experts, LARGE_STRIDE, LARGE_PARTS)


def overlap(picks: np.ndarray) -> float:
    """Which part of a token's experts the next token picks too."""
    same = picks[:-1, :, :, None] == picks[1:, :, None, :]
    return float(same.any(axis=-1).mean())


def show(trace: Trace, speed: float) -> None:
    """One line per policy: the hit rate, and the tokens per second that reads at `speed` GB/s alone would allow."""
    layers, k = trace.picks.shape[1:]
    seconds = layers * k * trace.stride / speed / 1e9  # of a token without hits
    again = f"{overlap(trace.picks):.0%} of a token's experts are the next one's too"
    table = Table(title=f"{trace.name}: {again}; reads at {speed:g} GB/s")
    slots = [trace.slots(part) for part in trace.parts]
    for heading in ("policy", *(f"{count} slots" for count in slots)):
        table.add_column(heading)
    rows = {name: [hit_rate(trace, make(count, layers)) for count in slots] for name, make in POLICIES.items()}
    rows["clairvoyant"] = [clairvoyant(trace, count) for count in slots]
    for name, rates in rows.items():
        table.add_row(name, *(f"{rate:.3f} {1 / (seconds * max(1 - rate, 1e-9)):.3g}/s" for rate in rates))
    out.print(table)


if __name__ == "__main__":
    speed = float(sys.argv[3]) if len(sys.argv) > 3 else 1.0
    for trace in (recorded(Path(sys.argv[1]), Path(sys.argv[2])), imitated()):
        show(trace, speed)
