"""The log that the injector writes: every call that changes the disk, in order, with its data."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ENTRY = struct.Struct("<6i3q")  # struct entry of inject.c
LOOK = "look"  # a directory was opened, which changes nothing and is not counted


@dataclass(frozen=True)
class Call:
    """One call: what was asked of which path (and `other`, of a rename or link), and what came of it.

    `number` counts from 1 as the injector does. `size` is a new length or a created file's mode; `offset` is negative
    for a write at the file's own place.
    """

    number: int
    name: str
    path: Path
    other: Path
    descriptor: int
    flags: int
    error: int
    result: int
    size: int
    offset: int
    data: bytes

    @property
    def done(self) -> bool:
        return self.error == 0

    @property
    def creates(self) -> bool:
        return self.name == "open" and bool(self.flags & os.O_CREAT)

    def __str__(self) -> str:
        return f"{self.number} {self.name} {self.path.name}" + (f" -> {self.other.name}" if self.other.name else "")


def read_log(path: Path) -> list[Call]:
    """Every logged call, `look`s included, which have the number of the call before them."""
    return list(_calls(path.read_bytes()))


def _calls(content: bytes) -> Iterator[Call]:
    at = number = 0
    while at + ENTRY.size <= len(content):
        *lengths, descriptor, flags, error, result, size, offset = ENTRY.unpack_from(content, at)
        at += ENTRY.size
        texts = []
        for length in lengths:
            texts.append(content[at : at + length].decode())
            at += length
        name, first, second = texts
        data = content[at : at + max(result, 0)] if name == "write" else b""
        at += len(data)
        number += name != LOOK
        yield Call(number, name, Path(first), Path(second), descriptor, flags, error, result, size, offset, data)


def changes(calls: list[Call]) -> list[Call]:
    """Those that are counted."""
    return [call for call in calls if call.name != LOOK]
