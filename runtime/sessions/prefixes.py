"""Prompts that were computed before, as a tree of token stretches with a snapshot at each one's end.

Promises to hold at most so many bytes: what was used longest ago goes first, leaves before what they continue. A
prefix can be continued from where a snapshot is and nowhere else, so where prompts part is remembered as worth one.
Knows tokens and snapshots; not what a chat is, nor where else a snapshot may be kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .snapshot import Snapshot

Tokens = tuple[int, ...]


@dataclass
class Node:
    """A stretch of tokens after its parent's, and the snapshot of it; the root has neither."""

    tokens: Tokens
    snapshot: Snapshot | None
    parent: "Node | None"
    children: dict[Tokens, "Node"] = field(default_factory=dict)
    used: int = 0

    @property
    def path(self) -> list["Node"]:
        """The nodes from below the root to this one."""
        return [] if self.parent is None else [*self.parent.path, self]

    @property
    def position(self) -> int:
        """Tokens up to its end."""
        return sum(len(node.tokens) for node in self.path)


@dataclass(frozen=True)
class Known:
    """What is known of a prompt: the deepest node that it continues, and where it parts from what came before.

    `parts` is the position of the longest beginning that it shares with any prompt remembered, at least the node's.
    """

    node: Node
    parts: int

    @property
    def snapshots(self) -> list[Snapshot]:
        """Those that lead to the node."""
        return [node.snapshot for node in self.node.path if node.snapshot is not None]


class Prefixes:
    """At most `limit` bytes of snapshots. `dropped` hears of every node that is forgotten."""

    def __init__(self, limit: int, dropped: Callable[[Node], None] = lambda node: None) -> None:
        self.limit = limit
        self.size = 0
        self.root = Node((), None, None)
        self._dropped = dropped
        self._clock = 0

    def find(self, tokens: Sequence[int]) -> Known:
        """What is known of a prompt, of which at least the last token is left to be computed."""
        node, position, parts = self.root, 0, 0
        while True:
            rest = tuple(tokens[position:-1])
            parts = max([parts, *(position + _shared(each, rest) for each in node.children)])
            longest = max((each for each in node.children if rest[: len(each)] == each), key=len, default=None)
            if longest is None:
                self._touch(node)
                return Known(node, max(parts, position))
            node, position = node.children[longest], position + len(longest)

    def add(self, node: Node, tokens: Sequence[int], snapshot: Snapshot) -> Node:
        """Remember a stretch after `node`, whose snapshots lead to it; returns the node of its end.

        One that is known, empty, or too large to be kept adds nothing; then `node`, or the known one, is returned.
        """
        key = tuple(tokens)
        known = node.children.get(key)
        if known is not None or not key or not self._make_room(snapshot.size, node):
            self._touch(known or node)
            return known or node
        new = node.children[key] = Node(key, snapshot, node)
        self.size += snapshot.size
        self._touch(new)
        return new

    def _touch(self, node: Node) -> None:
        """It was used now, and so was what leads to it."""
        self._clock += 1
        for each in node.path:
            each.used = self._clock

    def _make_room(self, size: int, keep: Node) -> bool:
        """Forget leaves, oldest first, until `size` more bytes fit; False if they never will beside `keep`'s path."""
        kept = {id(node) for node in keep.path}
        while self.size + size > self.limit:
            leaves = [node for node in self._leaves(self.root) if id(node) not in kept]
            if not leaves:
                return False
            self._drop(min(leaves, key=lambda node: node.used))
        return True

    def _drop(self, node: Node) -> None:
        assert node.parent is not None
        assert node.snapshot is not None
        del node.parent.children[node.tokens]
        self.size -= node.snapshot.size
        self._dropped(node)

    def _leaves(self, node: Node) -> Iterator[Node]:
        if not node.children and node.parent is not None:
            yield node
        for child in node.children.values():
            yield from self._leaves(child)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    both = zip(one, other, strict=False)
    return next((index for index, (left, right) in enumerate(both) if left != right), min(len(one), len(other)))
