"""Whose turn it is, against a plain model of it: random comings, goings and turns."""

import random

import pytest

from moepack.runtime.serving.request import Request
from moepack.runtime.serving.waiting import Waiting


class Nobody:
    def begin(self, cached: int) -> None: ...

    def next(self, logits: object) -> int | None: ...

    def fail(self, error: Exception) -> None: ...


@pytest.mark.parametrize("seed", range(20))
def test_between_two_of_a_client_every_other_that_waits_has_one(seed: int) -> None:
    order, waiting, all_of_them = random.Random(seed), Waiting(12, 9), list[Request]()
    passed: dict[Request, list[str]] = {}  # since a request was its client's first: who came before it
    for _ in range(400):
        client, choice = order.choice("abcd"), order.random()
        if choice < 0.5:
            if not waiting.full(client, 1):
                all_of_them.append(Request([1], Nobody(), client=client))
                waiting.put(all_of_them[-1])
        elif choice < 0.6 and all_of_them:
            gone = all_of_them.pop(order.randrange(len(all_of_them)))
            waiting.remove(gone)
        elif all_of_them:
            firsts = {each.client: each for each in reversed(all_of_them)}
            taken = waiting.take()
            assert taken is firsts[taken.client], "not its client's first"
            all_of_them.remove(taken)
            for name, first in firsts.items():
                if name != taken.client:
                    seen = passed.setdefault(first, [])
                    assert taken.client not in seen, "twice before another's first"
                    seen.append(taken.client)
        assert len(waiting) == len(all_of_them) <= 12
        assert sorted(map(id, waiting)) == sorted(map(id, all_of_them))
        assert all(sum(each.client == name for each in all_of_them) <= 9 for name in "abcd")


def test_who_does_not_wait_cannot_leave() -> None:
    waiting, request = Waiting(2, 2), Request([1], Nobody(), client="a")
    waiting.put(Request([1], Nobody(), client="a"))
    for other in (request, Request([1], Nobody(), client="b")):
        with pytest.raises(ValueError, match="not in deque"):
            waiting.remove(other)
    assert len(waiting) == 1
