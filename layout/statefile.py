"""The state of a verification, in a file outside the pack: a run that was interrupted is gone on with.

The file is replaced whole after each file of the pack, never changed in place. It belongs to one pack and one scope;
what it says of a file that has been written since is not believed. Two runs with one file do some work twice.
"""

import os
import threading
from pathlib import Path

import msgspec

from ..manifests.errors import CorruptInputError, StorageError, UsageError
from ..manifests.files import read_small
from ..manifests.ledger import Done
from .atomic import Reporting, remove, replace, sync_directory

MAX_STATE_BYTES = 256 * 1024 * 1024


class _State(msgspec.Struct, forbid_unknown_fields=True):
    pack_digest: str
    scope: str
    done: dict[str, Done]


class StateFile:
    """The ledger of a verification of the pack `pack_digest` by `scope`, kept at `path`; begun if there is none."""

    def __init__(self, path: Path, pack_digest: str, scope: str) -> None:
        """Raises UsageError if there is something else at `path`, or the state of another pack or scope.

        Raises StorageError if its folder may not be written into.
        """
        _require_writable(path.parent)
        self.path = path
        self._state = _read(path) if path.exists() or path.is_symlink() else _State(pack_digest, scope, {})
        self._lock = threading.Lock()
        if self._state.pack_digest != pack_digest:
            raise UsageError(f"{path} is of another pack, or of this one before it was changed; remove it")
        if self._state.scope != scope:
            raise UsageError(f"{path} is of a check of {self._state.scope}, not of {scope}; remove it or ask for that")

    @property
    def begun(self) -> bool:
        """Whether an earlier run has done something."""
        return bool(self._state.done)

    def known(self, file: str) -> Done | None:
        """What is kept of `file`."""
        return self._state.done.get(file)

    def keep(self, file: str, done: Done) -> None:
        """`file` is done; durable when this returns. Raises StorageError if the disk fails."""
        with self._lock:
            self._state.done[file] = done
            content = msgspec.json.encode(self._state)
            replace(self.path, content)

    def remove(self) -> None:
        """The work is finished."""
        with Reporting(self.path):
            remove(self.path)
            sync_directory(self.path.parent)


def _require_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"{folder} may not be written into; keep the state elsewhere, with --state FILE")


def _read(path: Path) -> _State:
    try:
        return msgspec.json.decode(read_small(path, MAX_STATE_BYTES), type=_State)
    except (msgspec.DecodeError, CorruptInputError) as error:
        raise UsageError(f"{path} is not the state of a verification ({error}); remove it or name another") from error
