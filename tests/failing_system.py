"""An operating system that loses power at a chosen call, and with it everything that was not made durable."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CALLS = ("mkdir", "open", "write", "fchmod", "fsync", "rename", "unlink", "ftruncate")
real_open, real_write, real_ftruncate, real_link, real_rename, real_unlink = (
    os.open, os.write, os.ftruncate, os.link, os.rename, os.unlink,
)  # fmt: skip


class Crash(BaseException):
    """The process is gone: nothing catches this, and no system call works any more."""


@dataclass(frozen=True)
class NameChange:
    """A name that came or went in a directory, of which the disk has not heard; `kept` is where the file is."""

    directory: int  # a descriptor, since the directory itself may be renamed
    inode: int  # the directory's
    name: str
    kept: Path | None  # None when the name is new

    def undo(self) -> None:
        if self.kept is not None:
            if os.access(self.name, os.F_OK, dir_fd=self.directory):
                real_unlink(self.name, dir_fd=self.directory)  # it replaced what was there
            (real_rename if self.kept.is_dir() else real_link)(self.kept, self.name, dst_dir_fd=self.directory)
        elif os.access(self.name, os.F_OK, dir_fd=self.directory):
            real_unlink(self.name, dir_fd=self.directory)


class FailingSystem:
    """Counts the calls that change the disk, and loses power at the `crash_at`-th.

    Then half of a write under way has happened; files have the length of their last fsync; names that came and went
    by rename and unlink are as they were at the last fsync of their directory. What was created stays.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, crash_at: int, stash: Path) -> None:
        self.calls, self.crash_at, self._stash = 0, crash_at, stash
        self._files: dict[int, tuple[int, int]] = {}  # by inode: a descriptor and the durable length
        self._changes: list[NameChange] = []
        self._descriptors: list[int] = []
        monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)  # macOS too shall sync by os.fsync here
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def lose_power(self) -> None:
        """Undo all that was not made durable."""
        for descriptor, length in self._files.values():
            real_ftruncate(descriptor, length)
        for change in reversed(self._changes):
            change.undo()

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls >= self.crash_at:
                self._crash(name, *args)
            if name in ("rename", "unlink"):
                self._note_names(*args)
            result = call(*args, **kwargs)
            if name in ("write", "fsync"):
                self._note_length(name, args[0], result)
            return result

        return wrapper

    def _crash(self, name: str, *args: Any) -> None:
        if self.calls == self.crash_at:
            self.lose_power()
            if name == "write":
                real_write(args[0], args[1][: len(args[1]) // 2])
        raise Crash

    def _note_length(self, name: str, descriptor: int, written: int | None) -> None:
        status = os.fstat(descriptor)
        if name == "fsync":
            self._changes = [change for change in self._changes if change.inode != status.st_ino]
            if status.st_ino in self._files:
                self._files[status.st_ino] = self._files[status.st_ino][0], status.st_size
        elif status.st_ino not in self._files:
            assert written is not None
            self._files[status.st_ino] = self._own(os.dup(descriptor)), status.st_size - written

    def _note_names(self, source: Any, target: Any = None) -> None:
        if not os.path.lexists(source):
            return
        kept = self._stash / str(len(self._descriptors))
        if Path(source).is_dir():
            kept = Path(target)
        else:
            real_link(source, kept)
        names = [(source, kept)] if target is None else [(target, self._replaced(target)), (source, kept)]
        if kept == target:
            names = names[1:]  # renaming a directory back takes its new name away
        for path, where in names:
            directory = self._own(real_open(Path(path).parent, os.O_RDONLY))
            self._changes.append(NameChange(directory, os.fstat(directory).st_ino, Path(path).name, where))

    def _replaced(self, target: Any) -> Path | None:
        """The file that a rename is about to replace, kept; None if there is none."""
        if not Path(target).is_file():
            return None
        kept = self._stash / f"{len(self._descriptors)}.replaced"
        real_link(target, kept)
        return kept

    def _own(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor


@contextmanager
def failing_system(stash: Path, crash_at: int = 10**9) -> Iterator[FailingSystem]:
    """The system for the length of a block; `stash` is a folder on the same disk, outside of what is tested."""
    stash.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        system = FailingSystem(monkeypatch, crash_at, stash)
        try:
            yield system
        finally:
            monkeypatch.undo()
            system.close()
            for path in stash.iterdir():
                path.unlink()
