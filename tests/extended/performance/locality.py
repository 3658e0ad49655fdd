"""How far experts are used again from token to token: one engine's routing, and what caches would make of it."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np

from moepack.runtime.backends.base import Routes
from moepack.runtime.engine import Engine

Trace = list[list[frozenset[int]]]  # the experts of each token, by layer


@dataclass(frozen=True)
class Locality:
    """Means over layers. `hits`: of a least-recently-used cache per layer, by slots. `overlap`: see there."""

    experts: int
    experts_per_token: int
    hits: dict[int, float]
    overlap: float

    @classmethod
    def of(cls, trace: Trace, experts: int, shares: Sequence[float]) -> "Locality":
        """Of a trace, for caches of these shares of a layer's experts; the first quarter only fills them."""
        slots = [max(1, round(share * experts)) for share in shares]
        hits = {count: fmean(hit_rate(layer, count) for layer in trace) for count in slots}
        return cls(experts, len(trace[0][0]), hits, fmean(map(overlap, trace)))


def hit_rate(tokens: Sequence[frozenset[int]], slots: int) -> float:
    """The share of experts that a least-recently-used cache holds when they are wanted."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = wanted = 0
    for index, experts in enumerate(tokens):
        if index >= len(tokens) // 4:
            hits, wanted = hits + sum(expert in cache for expert in experts), wanted + len(experts)
        for expert in sorted(experts):
            cache[expert] = None
            cache.move_to_end(expert)
        while len(cache) > slots:
            cache.popitem(last=False)
    return hits / wanted


def overlap(tokens: Sequence[frozenset[int]]) -> float:
    """The share of a token's experts that the token before it had, too."""
    return fmean(len(a & b) / len(b) for a, b in pairwise(tokens))


def trace(engine: Engine, tokens: Sequence[int]) -> Trace:
    """The experts that each of `tokens` visits, layer by layer."""
    found: Trace = [[] for _ in range(engine.model.num_layers)]
    route, calls = engine.backend.route, 0

    def watched(logits: np.ndarray, experts_per_token: int) -> Routes:
        nonlocal calls
        routes: Routes = route(logits, experts_per_token)
        layer, calls = calls % len(found), calls + 1
        found[layer] += [frozenset(map(int, row)) for row in routes.ids]
        return routes

    engine.backend.route = watched  # type: ignore[method-assign]
    engine.new_session().extend(tokens)  # many at once: nothing is routed on a guess
    return found
