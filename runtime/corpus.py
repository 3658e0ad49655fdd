"""Many token sequences side by side, and their residual stream on its way through the layers.

The stream is one float32 row per token. It lies in memory up to a bound and in an unlinked temporary file above it,
whose pages the system may write out: the arithmetic is the same, bit for bit.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..manifests.errors import StorageError, UsageError
from .backends.base import Floats, Ids
from .quantities import megabytes
from .state import FLOAT_BYTES

MEMORY = 2 * 1024**3  # bytes of one array over all tokens that may be in memory
ZEROS = bytes(4 * 1024 * 1024)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Sequences of tokens, joined: sequence s is `tokens[starts[s]:starts[s + 1]]`, and none is empty."""

    tokens: Ids
    starts: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int] | Ids]) -> "Corpus":
        """Join sequences. Raises UsageError if there is none or one is empty."""
        if not sequences or not all(map(len, sequences)):
            raise UsageError("there are no tokens to compute with; give a text of at least one token")
        starts = np.cumsum([0, *map(len, sequences)]).tolist()
        return cls(np.concatenate([np.asarray(sequence, np.int32) for sequence in sequences]), tuple(starts))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sequences(self) -> int:
        """How many sequences there are."""
        return len(self.starts) - 1

    def bounds(self) -> Iterator[tuple[int, int]]:
        """(first row, row after the last) of each sequence."""
        yield from zip(self.starts, self.starts[1:], strict=False)

    def require_known(self, vocab_size: int) -> None:
        """Raise UsageError if a token is outside a vocabulary."""
        unknown = self.tokens[(self.tokens < 0) | (self.tokens >= vocab_size)]
        if len(unknown):
            raise UsageError(f"token {unknown[0]} is outside the model's vocabulary of {vocab_size}")


@dataclass(frozen=True)
class Room:
    """Where arrays over all tokens go: at most `memory` bytes each in memory, larger ones into files of `folder`.

    Raises UsageError for a folder that is none or may not be written into.
    """

    memory: int = MEMORY
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.folder is not None and not (self.folder.is_dir() and os.access(self.folder, os.W_OK | os.X_OK)):
            raise UsageError(f"{self.folder} is not a folder to write hidden states into; make it or choose another")

    def array(self, rows: int, width: int) -> Floats:
        """A float32 array of zeros [rows, width]. Raises StorageError if a file of that size cannot be had."""
        if rows * width * FLOAT_BYTES <= self.memory:
            return np.zeros((rows, width), np.float32)
        size = rows * width * FLOAT_BYTES
        try:
            with tempfile.TemporaryFile(dir=self.folder, prefix="moepack-") as file:
                _reserve(file.fileno(), size)
                return np.frombuffer(mmap.mmap(file.fileno(), size), np.float32).reshape(rows, width)
        except OSError as error:
            where = self.folder or tempfile.gettempdir()
            what = f"has no room for {megabytes(size)} of hidden states ({error.strerror})"
            raise StorageError(f"{where} {what}; choose another folder") from error


def _reserve(descriptor: int, size: int) -> None:
    """Give the file its blocks now: a full disk is an error here and would be a fatal signal later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for offset in range(0, size, len(ZEROS)):
        os.pwrite(descriptor, ZEROS[: min(len(ZEROS), size - offset)], offset)


@dataclass(frozen=True, eq=False)
class Stream:
    """The residual stream of a corpus: `rows` float32 [tokens, hidden], before the next layer that it is given to."""

    corpus: Corpus
    rows: Floats
    room: Room

    def copy(self) -> "Stream":
        """One that goes its own way from here."""
        rows = self.room.array(*self.rows.shape)
        rows[:] = self.rows
        return Stream(self.corpus, rows, self.room)
