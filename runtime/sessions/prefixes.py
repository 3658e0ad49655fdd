"""Prompts that were computed before, as a tree of token stretches with a snapshot at each one's end.

Promises to hold at most so many bytes in memory: what was used longest ago goes first, leaves before what they
continue; what a store keeps on disk is only let go of, and read again when it is asked for. A prefix can be continued
from where a snapshot is and nowhere else, so where prompts part is told, as worth one. A tree may be as deep as memory
allows: nothing here calls itself. Knows tokens, but no chat.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from ...manifests.errors import MoepackError
from .snapshot import Snapshot
from .store import ROOT, Store, after, key_of

Tokens = tuple[int, ...]
_NO_TOKEN = -1


@dataclass(eq=False, repr=False)
class Node:
    """A stretch of tokens after its parent's; `snapshot` is None while only the store has it. The root has none."""

    key: bytes
    tokens: Tokens
    parent: "Node | None"
    snapshot: Snapshot | None = None
    children: dict[Tokens, "Node"] = field(default_factory=dict)
    used: int = 0

    @property
    def path(self) -> list["Node"]:
        """The nodes from below the root to this one."""
        found, node = list[Node](), self
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    @property
    def position(self) -> int:
        """Tokens up to its end."""
        return sum(len(node.tokens) for node in self.path)

    @property
    def all_tokens(self) -> Tokens:
        """Those tokens."""
        return tuple(token for node in self.path for token in node.tokens)


@dataclass(frozen=True)
class Known:
    """What is known of a prompt: the deepest node that it continues, and where it parts from what came before.

    `snapshots` lead to the node. `parts` is the length of the longest beginning that the prompt shares with any other
    that is remembered, at least the node's position.
    """

    node: Node
    snapshots: tuple[Snapshot, ...]
    parts: int


class Prefixes:
    """At most `limit` bytes of snapshots in memory, more in a `store` if there is one.

    `identity`: everything besides tokens that a state depends on; snapshots of a store with another are not seen.
    """

    def __init__(self, limit: int, identity: bytes = b"", store: Store | None = None) -> None:
        self.limit = limit
        self.size = 0
        self.root = Node(ROOT, (), None)
        self._identity, self._store = identity, store
        self._clock = 0
        if store is not None:
            self._attach(store)

    def find(self, tokens: Sequence[int]) -> Known:
        """What is known of a prompt, of which at least the last token is left to be computed."""
        while True:
            node, parts = self._deepest(tokens)
            self._touch(node)
            snapshots = self._loaded(node)
            if snapshots is not None:
                return Known(node, snapshots, parts)

    def deepest(self, tokens: Sequence[int]) -> Node:
        """The node after which something of these tokens, all of them computed, is left to be remembered."""
        return self._deepest([*tokens, _NO_TOKEN])[0]

    def takes(self, node: Node, size: int) -> bool:
        """Whether a stretch after `node` with a snapshot of so many bytes would be remembered; makes room for it."""
        return self._make_room(size, node) or (self._store is not None and self._store.takes(size))

    def add(self, node: Node, tokens: Sequence[int], snapshot: Snapshot) -> Node:
        """Remember a stretch after `node`; returns the node of its end.

        If there is room in neither memory nor store nothing is added, and `node` is returned.
        """
        stretch = tuple(tokens)
        if not stretch or stretch in node.children:
            known = node.children.get(stretch, node)
            self._touch(known)
            return known
        new = Node(key_of(self._identity, (*node.all_tokens, *stretch)), stretch, node)
        if self._make_room(snapshot.size, node):
            new.snapshot = snapshot
            self.size += snapshot.size
            node.children[stretch] = new
            self._touch(new)
        if self._store is not None and (node is self.root or node.key in self._store.kept):
            saved = self._store.save(new.key, node.key, stretch, snapshot)
            if saved:
                node.children[stretch] = new
            self._prune(self._store)
        return new if node.children.get(stretch) is new else node

    def _deepest(self, tokens: Sequence[int]) -> tuple[Node, int]:
        """The deepest node that a prompt continues, and where it parts from what came before."""
        node, position, parts = self.root, 0, 0
        while True:
            rest = tuple(tokens[position:-1])
            parts = max([parts, position, *(position + _shared(each, rest) for each in node.children)])
            longest = max((each for each in node.children if rest[: len(each)] == each), key=len, default=None)
            if longest is None:
                return node, parts
            node, position = node.children[longest], position + len(longest)

    def _loaded(self, node: Node) -> tuple[Snapshot, ...] | None:
        """The snapshots that lead to a node; None if one of them turned out to be of no use, and is forgotten now."""
        found: list[Snapshot] = []
        for each in node.path:
            snapshot = each.snapshot or self._load(each, found[-1].last if found else 0, node)
            if snapshot is None:
                self._forget(each)
                return None
            found.append(snapshot)
        return tuple(found)

    def _load(self, node: Node, first: int, keep: Node) -> Snapshot | None:
        """From the store, into memory if it has room for it beside all that leads to `keep`."""
        assert self._store is not None
        try:
            snapshot = self._store.load(node.key, first)
        except (MoepackError, OSError):
            return None
        self._store.touch(node.key)
        if self._make_room(snapshot.size, keep):
            node.snapshot = snapshot
            self.size += snapshot.size
        return snapshot

    def _touch(self, node: Node) -> None:
        """It was used now, and so was what leads to it."""
        self._clock += 1
        for each in node.path:
            each.used = self._clock

    def _make_room(self, size: int, keep: Node) -> bool:
        """Let go of leaves, oldest first, until `size` more bytes fit; False if they never do beside `keep`'s path."""
        kept = set(keep.path)
        while self.size + size > self.limit:
            leaves = [node for node in _leaves_in_memory(self.root) if node not in kept]
            if not leaves:
                return False
            self._let_go(min(leaves, key=lambda node: node.used))
        return True

    def _let_go(self, node: Node) -> None:
        """Of its snapshot; of all of it if no store has it."""
        assert node.snapshot is not None
        self.size -= node.snapshot.size
        node.snapshot = None
        if self._store is None or node.key not in self._store.kept:
            self._forget(node)

    def _forget(self, node: Node) -> None:
        """A node and what continues it, here and in the store."""
        assert node.parent is not None
        del node.parent.children[node.tokens]
        for each in _all(node):
            if each.snapshot is not None:
                self.size -= each.snapshot.size
            if self._store is not None and each.key in self._store.kept:
                self._store.forget(each.key)  # and what continues it, at once

    def _prune(self, store: Store) -> None:
        """Nodes that only the store had, and has no more."""
        kept = store.kept
        for node in reversed(_all(self.root)[1:]):
            if node.snapshot is None and node.key not in kept:
                self._forget(node)

    def _attach(self, store: Store) -> None:
        """What the store keeps, if it is of this identity."""
        kept, below = store.kept, store.below()
        begun = [(self.root, blake3(self._identity))]
        while begun:
            node, hasher = begun.pop()
            for key in below.get(node.key, ()):
                tokens = kept[key].tokens
                further = after(hasher, tokens)
                if tokens and key == further.digest():
                    child = node.children[tokens] = Node(key, tokens, node)
                    begun.append((child, further))


def _all(node: Node) -> list[Node]:
    """A node and all that continues it, each after what it continues."""
    found = [node]
    for each in found:  # which grows meanwhile
        found += each.children.values()
    return found


def _leaves_in_memory(root: Node) -> Iterator[Node]:
    """Nodes with a snapshot that no other with one continues."""
    continued = set[Node | None]()
    for node in reversed(_all(root)):
        if node in continued:
            continued.add(node.parent)
        elif node.snapshot is not None:
            continued.add(node.parent)
            yield node


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    both = zip(one, other, strict=False)
    return next((index for index, (left, right) in enumerate(both) if left != right), min(len(one), len(other)))
