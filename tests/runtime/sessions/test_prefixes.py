"""What is remembered of prompts: bounded, the longest that can be continued is found, and nothing else."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from moepack.manifests.errors import MismatchError
from moepack.runtime.sessions.prefixes import Node, Prefixes
from moepack.runtime.sessions.snapshot import Snapshot

LIMIT = 40
DEEP = 3000


@dataclass(frozen=True)
class Sized(Snapshot):
    """A snapshot of nothing that takes so many bytes."""

    bytes: int = 0

    @property
    def size(self) -> int:
        return self.bytes


def remember(prefixes: Prefixes, tokens: tuple[int, ...], size: int) -> Node:
    known = prefixes.find((*tokens, -1))
    position = known.node.position
    return prefixes.add(known.node, tokens[position:], Sized(position, len(tokens), (), size))


def nodes(node: Node) -> list[Node]:
    return [each for child in node.children.values() for each in (child, *nodes(child))]


def test_the_longest_prefix_is_continued_and_one_token_is_left_to_compute() -> None:
    prefixes = Prefixes(LIMIT)
    remember(prefixes, (1, 2, 3), 1)
    remember(prefixes, (1, 2, 3, 4, 5), 1)
    assert prefixes.find((1, 2, 3, 4, 5, 6)).node.position == 5
    assert prefixes.find((1, 2, 3, 4, 5)).node.position == 3
    assert prefixes.find((1, 2, 3, 9, 9)).node.position == 3
    assert prefixes.find((1, 2, 3)).node.position == 0
    assert prefixes.find((2, 2, 3, 4)).node.position == 0


def test_where_prompts_part_is_known() -> None:
    prefixes = Prefixes(LIMIT)
    remember(prefixes, (1, 2, 3, 4), 1)
    known = prefixes.find((1, 2, 3, 9, 9))
    assert (known.node.position, known.parts) == (0, 3)
    remember(prefixes, (1, 2, 3), 1)
    assert prefixes.find((1, 2, 3, 8, 8)).node.position == 3


def test_a_known_stretch_is_not_added_twice() -> None:
    prefixes = Prefixes(LIMIT)
    node = remember(prefixes, (1, 2), 5)
    assert prefixes.add(prefixes.root, (1, 2), Sized(0, 2, (), 5)) is node
    assert prefixes.size == 5


def test_what_is_too_large_is_not_kept_and_takes_nothing_else_along() -> None:
    prefixes = Prefixes(LIMIT)
    node = remember(prefixes, (1, 2), 30)
    assert prefixes.add(node, (3,), Sized(2, 3, (), 11)) is node
    assert prefixes.find((1, 2, 9)).node is node


def test_the_oldest_leaf_goes_first() -> None:
    prefixes = Prefixes(LIMIT)
    for first in (1, 2, 3):
        remember(prefixes, (first, first), 12)
    prefixes.find((1, 1, 5))
    remember(prefixes, (4, 4), 12)
    assert sorted(prefixes.root.children) == [(1, 1), (3, 3), (4, 4)]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 25)), max_size=40))
def test_never_more_than_the_limit_and_always_the_truth(steps: list[tuple[list[int], int]]) -> None:
    prefixes = Prefixes(LIMIT)
    for prompt, size in steps:
        tokens = tuple(prompt)
        remember(prefixes, tokens, size)
        kept = nodes(prefixes.root)
        assert prefixes.size == sum(node.snapshot.size for node in kept if node.snapshot) <= LIMIT
        paths = {each.all_tokens for each in kept}
        known = prefixes.find((*tokens, 9))
        usable = [path for path in paths if tokens[: len(path)] == path]
        assert known.node.position == max(map(len, usable), default=0)
        assert known.node.position <= known.parts <= len(tokens)
        firsts = [snapshot.first for snapshot in known.snapshots]
        assert firsts == [0, *(snapshot.last for snapshot in known.snapshots[:-1])][: len(firsts)]


def test_snapshots_lead_from_the_beginning_to_the_node() -> None:
    prefixes = Prefixes(LIMIT)
    remember(prefixes, (1, 2), 1)
    remember(prefixes, (1, 2, 3), 1)
    known = prefixes.find((1, 2, 3, 4))
    assert [(each.first, each.last) for each in known.snapshots] == [(0, 2), (2, 3)]
    assert prefixes.find((7, 7)).snapshots == ()


def test_a_conversation_may_be_as_long_as_memory_allows() -> None:
    prefixes = Prefixes(DEEP)
    node = prefixes.root
    for token in range(DEEP):
        node = prefixes.add(node, (token,), Sized(token, token + 1, (), 1))
    assert prefixes.size == DEEP
    assert prefixes.find((*range(DEEP), 1)).node is node
    assert (node.position, node.all_tokens) == (DEEP, tuple(range(DEEP)))
    prefixes.add(prefixes.root, (-1,), Sized(0, 1, (), 1))
    assert prefixes.find((*range(DEEP), 1)).node is node.parent  # its leaf went first


class Shelf:
    """A store that keeps what it `wants`."""

    def __init__(self) -> None:
        self.kept = dict[bytes, Snapshot]()
        self.wants = True

    def below(self) -> dict[bytes, list[bytes]]:
        return {}

    def takes(self, size: int) -> bool:
        return self.wants

    def save(self, key: bytes, parent: bytes, tokens: tuple[int, ...], snapshot: Snapshot) -> bool:
        if self.wants:
            self.kept[key] = snapshot
        return self.wants

    def load(self, key: bytes, first: int) -> Snapshot:
        if key not in self.kept:
            raise MismatchError("there is no such snapshot")
        return self.kept[key]

    def touch(self, key: bytes) -> None:
        pass

    def forget(self, key: bytes) -> None:
        del self.kept[key]


def test_what_is_read_again_drives_out_nothing_that_continues_it_on_the_way() -> None:
    shelf = Shelf()
    prefixes = Prefixes(10, b"", shelf)  # type: ignore[arg-type]
    parent = remember(prefixes, (1, 2), 8)
    remember(prefixes, (9, 9), 9)
    assert parent.snapshot is None
    shelf.wants = False
    child = prefixes.add(parent, (3, 4), Sized(2, 4, (), 5))
    known = prefixes.find((1, 2, 3, 4, 5))
    assert known.node is child
    assert [each.last for each in known.snapshots] == [2, 4]
    assert prefixes.size == 5
