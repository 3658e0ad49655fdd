"""Which record makes room, against the rule stated plainly: heat, less what waiting for the layer's turn costs."""

import random
from collections import defaultdict

import numpy as np
import pytest

from moepack.runtime.streaming.cache import FARTHEST, HALF_LIFE, Cache, Key

LAYERS, EXPERTS = 5, 12


class Plain:
    """Remembers every use and adds them up anew each time."""

    def __init__(self) -> None:
        self.uses: dict[Key, list[float]] = defaultdict(list)

    def worth(self, key: Key, here: int) -> float:
        """log2 of the heat at token 0, less up to FARTHEST."""
        turns = (key[0] - here - 1) % LAYERS + 1  # until its layer is visited
        heat = np.log2(sum(2.0 ** (token / HALF_LIFE) for token in self.uses[key])) if self.uses[key] else -np.inf
        return float(heat - FARTHEST * turns / LAYERS)


def check_choice(cache: Cache, plain: Plain, here: int, spared: list[Key], chosen: Key | None) -> None:
    may_go = [key for key in cache.records if key not in spared]
    assert (chosen is None) == (not may_go)
    if chosen is not None:
        least = min(plain.worth(key, here) for key in may_go)
        assert chosen in may_go
        assert plain.worth(chosen, here) == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("slots", [3, 8, 30])
def test_the_coldest_record_of_the_farthest_layer_makes_room(slots: int, seed: int) -> None:
    order, plain = random.Random(seed), Plain()
    cache = Cache([np.zeros(1, np.uint8) for _ in range(slots)], LAYERS)
    for token in range(12):
        for layer in range(LAYERS):
            keys = [(layer, expert) for expert in order.sample(range(EXPERTS), 3)]
            guessed = [((layer + 1) % LAYERS, expert) for expert in order.sample(range(EXPERTS), 2)]
            cache.pin(keys)
            for key in keys:
                cache.use(key, token)
                plain.uses[key].append(token)
            check_choice(cache, plain, guessed[0][0], keys + guessed, cache.coldest(guessed, here=guessed[0][0]))
            for key in keys:
                if key not in cache.records:
                    if not cache.free:
                        check_choice(cache, plain, layer, keys, cache.coldest())
                    if (slot := cache.room()) is not None:
                        cache.put(key, slot)
            if order.random() < 0.1:
                cache.recover()
