"""The file system that forgets does forget: what was not synced is gone, and what was stays."""

import os
import random
from pathlib import Path

from calls import Call
from forgetful import BLOCK, ForgetfulDisk

ROOT = Path("/disk")


class Script:
    """Calls as the injector logs them, made by hand."""

    def __init__(self) -> None:
        self.disk = ForgetfulDisk(ROOT)

    def call(self, name: str, path: str = "", other: str = "", fd: int = 3, data: bytes = b"", flags: int = 0) -> None:
        first, second = ROOT / path if path else ROOT, ROOT / other if other else Path()
        self.disk.apply(Call(1, name, first, second, fd, flags, 0, len(data), 0, -1, data))

    def file(self, name: str, data: bytes) -> None:
        self.call("open", name, flags=os.O_CREAT | os.O_WRONLY)
        self.call("write", name, data=data)

    def sync_root(self) -> None:
        self.call("look", fd=9)
        self.call("fsync", fd=9)


def test_a_name_is_lost_until_its_directory_is_synced() -> None:
    script = Script()
    script.file("a", b"x")
    script.call("fsync", "a")
    assert script.disk.strict() == {}
    script.sync_root()
    assert script.disk.strict() == {"a": b"x"}


def test_bytes_are_lost_until_their_file_is_synced() -> None:
    script = Script()
    script.file("a", b"x")
    script.sync_root()
    assert script.disk.strict() == {"a": b""}
    script.call("fsync", "a")
    script.call("write", "a", data=b"y")
    assert script.disk.strict() == {"a": b"x"}


def test_a_rename_is_undone_until_its_directory_is_synced() -> None:
    script = Script()
    script.file("a", b"x")
    script.call("fsync", "a")
    script.sync_root()
    script.call("rename", "a", "b")
    assert script.disk.strict() == {"a": b"x"}
    script.sync_root()
    assert script.disk.strict() == {"b": b"x"}


def test_a_directory_that_is_not_durable_loses_what_is_in_it() -> None:
    script = Script()
    script.call("mkdir", "d")
    script.file("d/a", b"x")
    script.call("fsync", "d/a")
    script.call("look", "d", fd=4)
    script.call("fsync", "d", fd=4)
    assert script.disk.strict() == {}


def test_any_of_what_was_not_synced_may_survive() -> None:
    script = Script()
    script.file("a", b"old!" * BLOCK)
    script.call("fsync", "a")
    script.sync_root()
    script.call("open", "a", flags=os.O_WRONLY)
    script.call("write", "a", data=b"new!" * (2 * BLOCK))
    script.call("rename", "a", "b")
    chance = random.Random(0)
    drawn = [script.disk.survivors(chance) for _ in range(300)]
    assert {name for tree in drawn for name in tree} == {"a", "b"}
    contents = [content for tree in drawn for content in tree.values() if content is not None]
    assert {len(content) for content in contents} > {4 * BLOCK, 8 * BLOCK}
    assert any(b"old!" in content and b"new!" in content for content in contents)
    assert any(b"\0" * BLOCK in content for content in contents)
