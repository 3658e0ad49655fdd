"""What of a verification is done already: told by whoever keeps it, so that long work can be interrupted."""

from typing import Protocol

from msgspec import Struct

from .report import Finding


class Done(Struct, frozen=True):
    """One file that was read as far as the scope asks: what was found, how many bytes and whole records that was.

    `stamp` is of the file as it was then; another one means that it has to be read again.
    """

    stamp: str
    findings: list[Finding]
    size: int
    records: int = 0


class Ledger(Protocol):
    """Keeps what is done. Called from several threads, for each file by one."""

    def known(self, file: str) -> Done | None:
        """What is kept of `file`."""

    def keep(self, file: str, done: Done) -> None:
        """`file` is done."""


class Forgetful:
    """Keeps nothing."""

    def known(self, file: str) -> Done | None:
        """Nothing."""
        return None

    def keep(self, file: str, done: Done) -> None:
        """For nothing."""
