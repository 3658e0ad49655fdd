"""A file system that forgets: the states in which a loss of power may leave a disk, made from a log of calls.

What is certain is only what a finished fsync has covered: a file's bytes by its own, a name in a directory by that
directory's. `strict` is the state with nothing else. `survivors` draws one in which everything else survived or not,
each by itself and in any order: names made, removed and changed, the length of a file, each of its 4096-byte blocks,
which otherwise is as it was, or zeros. A rename within a directory happens or does not; one between two directories is
two changes, of which either may survive alone. Journaling file systems forget far less.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from calls import LOOK, Call

BLOCK = 4096
Tree = dict[str, bytes | None]  # by relative path; None for a directory


@dataclass(eq=False)
class File:
    content: bytes = b""
    durable: bytes = b""

    def sync(self) -> None:
        self.durable = self.content

    def survivor(self, chance: random.Random) -> bytes:
        old, new = self.durable, self.content
        if old == new:
            return new
        length = chance.choice([len(old), len(new), chance.randint(min(len(old), len(new)), max(len(old), len(new)))])
        odds = chance.choice([0.1, 0.5, 0.9, 1])
        return b"".join(
            _padded(new if chance.random() < odds else old, at, min(BLOCK, length - at))
            for at in range(0, length, BLOCK)
        )


def _padded(content: bytes, at: int, size: int) -> bytes:
    return content[at : at + size].ljust(size, b"\0")


@dataclass(frozen=True)
class Change:
    """In a directory, `gone` no longer is a name, and `name`, unless empty, is one of `node`."""

    gone: str = ""
    name: str = ""
    node: "File | Directory | None" = None

    def apply(self, names: "Names") -> None:
        names.pop(self.gone, None)
        if self.node is not None:
            names[self.name] = self.node


@dataclass(eq=False)
class Directory:
    names: "Names" = field(default_factory=dict)
    durable: "Names" = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        change.apply(self.names)
        self.pending.append(change)

    def sync(self) -> None:
        self.durable, self.pending = dict(self.names), []

    def survivor(self, chance: random.Random) -> "Names":
        names, odds = dict(self.durable), chance.choice([0.1, 0.5, 0.9, 1])
        for change in self.pending:
            if chance.random() < odds:
                change.apply(names)
        return names


Names = dict[str, File | Directory]


@dataclass
class Opened:
    """A descriptor: what it is of, and where the next write goes unless it appends."""

    node: File | Directory
    appends: bool
    at: int = 0


class ForgetfulDisk:
    """The folder `root` as the calls change it, and as it may be found afterwards; `tree` is durably there before."""

    def __init__(self, root: Path, tree: Tree | None = None) -> None:
        self.root = root
        self._top = Directory()
        self._opened: dict[int, Opened] = {}
        for name, content in (tree or {}).items():
            folder, last = self._place(root / name)
            folder.names[last] = Directory() if content is None else File(content, content)
            folder.sync()

    def apply(self, call: Call) -> None:
        """Do what a call did; one that failed did nothing."""
        if call.done:
            getattr(self, f"_{call.name}")(call)

    def strict(self) -> Tree:
        """What is there if nothing survived that was not made durable."""
        return dict(_walk(self._top, lambda file: file.durable, lambda directory: directory.durable))

    def survivors(self, chance: random.Random) -> Tree:
        """What is there if some of the rest survived."""
        return dict(_walk(self._top, lambda file: file.survivor(chance), lambda directory: directory.survivor(chance)))

    def durable_bytes(self, path: Path) -> bytes:
        """Of a file, what has been made durable, whatever its name is by now."""
        node = self._node(path)
        assert isinstance(node, File)
        return node.durable

    def _place(self, path: Path) -> tuple[Directory, str]:
        folder = self._top
        *above, name = path.relative_to(self.root).parts
        for part in above:
            inner = folder.names[part]
            assert isinstance(inner, Directory)
            folder = inner
        return folder, name

    def _node(self, path: Path) -> File | Directory:
        if path == self.root:
            return self._top
        folder, name = self._place(path)
        return folder.names[name]

    def _open(self, call: Call) -> None:
        folder, name = self._place(call.path)
        if name not in folder.names:
            folder.change(Change(name=name, node=File()))
        node = folder.names[name]
        if call.flags & os.O_TRUNC and isinstance(node, File):
            node.content = b""
        self._opened[call.descriptor] = Opened(node, bool(call.flags & os.O_APPEND))

    def _look(self, call: Call) -> None:
        if call.path == self.root or self.root in call.path.parents:
            self._opened[call.descriptor] = Opened(self._node(call.path), appends=False)

    def _write(self, call: Call) -> None:
        opened = self._opened[call.descriptor]
        file = opened.node
        assert isinstance(file, File)
        at = call.offset if call.offset >= 0 else len(file.content) if opened.appends else opened.at
        file.content = file.content[:at].ljust(at, b"\0") + call.data + file.content[at + len(call.data) :]
        if call.offset < 0:
            opened.at = at + len(call.data)

    def _ftruncate(self, call: Call) -> None:
        file = self._opened[call.descriptor].node
        assert isinstance(file, File)
        file.content = _padded(file.content, 0, call.size)

    def _fsync(self, call: Call) -> None:
        self._opened[call.descriptor].node.sync()

    _fdatasync = _fsync

    def _fchmod(self, call: Call) -> None:
        """Modes are not modelled: who resumes owns the files, and removes rather than opens what is not finished."""

    def _flock(self, call: Call) -> None:
        """Locks are gone with the power."""

    def _mkdir(self, call: Call) -> None:
        folder, name = self._place(call.path)
        folder.change(Change(name=name, node=Directory()))

    def _unlink(self, call: Call) -> None:
        folder, name = self._place(call.path)
        folder.change(Change(gone=name))

    _rmdir = _unlink

    def _rename(self, call: Call) -> None:
        (old, before), (new, after) = self._place(call.path), self._place(call.other)
        node = old.names[before]
        if old is new:
            old.change(Change(before, after, node))
        else:
            new.change(Change(name=after, node=node))
            old.change(Change(gone=before))

    def _link(self, call: Call) -> None:
        folder, name = self._place(call.other)
        folder.change(Change(name=name, node=self._node(call.path)))


def _walk(directory: Directory, content, names, above: str = "") -> Iterator[tuple[str, bytes | None]]:  # type: ignore[no-untyped-def]
    for name, node in sorted(names(directory).items()):
        path = f"{above}{name}"
        if isinstance(node, File):
            yield path, content(node)
        else:
            yield path, None
            yield from _walk(node, content, names, f"{path}/")


def read_tree(folder: Path) -> Tree:
    """The state that is there."""
    paths = sorted(folder.rglob("*"))  # a folder comes before what is in it
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in paths}


def write_tree(folder: Path, tree: Tree) -> None:
    """Make a state real."""
    folder.mkdir()
    for name, content in tree.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o444 if not name.endswith((".tmp", ".jsonl")) else 0o644)


@dataclass(frozen=True)
class State:
    """A state after call number `after`, and the journal's lines that were durable then."""

    after: int
    kind: str
    tree: Tree
    promised: tuple[bytes, ...]


def states(root: Path, calls: list[Call], draws: int, tree: Tree | None = None, seed: int = 0) -> Iterator[State]:
    """At every call: the strict state, and `draws` of those in which some of the rest survived; each state once.

    `tree` is what was durably there before the first call.
    """
    disk, chance, seen, promised = ForgetfulDisk(root, tree), random.Random(seed), set(), b""
    for call in calls:
        disk.apply(call)
        if call.name == LOOK:
            continue
        if call.name == "fsync" and call.done and call.path.name == "journal.jsonl":
            promised = disk.durable_bytes(call.path)
        for kind, tree in [("strict", disk.strict()), *(("drawn", disk.survivors(chance)) for _ in range(draws))]:
            key = kind, hash(tuple(tree.items()))
            if key not in seen:
                seen.add(key)
                yield State(call.number, kind, tree, tuple(promised.splitlines()))
