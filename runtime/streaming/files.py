"""The layer files of a pack, opened for streaming: through the system's page cache, or around it.

One cache, not two. Direct reads (O_DIRECT; F_NOCACHE on macOS) leave the expert slots as the only cache. Buffered
reads fill the page cache too: it is meant to be the cache where the pack is small beside the free memory, and there
a second run starts warm; elsewhere the pages of a record are dropped once it is in its slot.
"""

import errno
import os
import stat
import sys
from contextlib import ExitStack
from mmap import mmap
from typing import Literal, TypeAlias

from ...layout.reader import Pack
from ...manifests.errors import StorageError

Access: TypeAlias = Literal["buffered", "direct"]

PROBE_BYTES = 16 * 1024  # what every record is a multiple of
F_NOCACHE = 48  # fcntl's, on macOS; nothing ran there


class LayerFiles:
    """Descriptors of all layer files. Where the system refuses direct reads, `access` says that they are buffered."""

    def __init__(self, pack: Pack, access: Access) -> None:
        """Raises StorageError if a file was replaced, or cannot be opened, since the pack was opened."""
        self.access: Access = "buffered"
        self._descriptors = [pack.address(layer, 0).fd for layer in range(pack.model.num_layers)]
        self._resources = ExitStack()
        if access == "direct":
            self._open_direct(pack)

    def descriptor(self, layer: int) -> int:
        """The open file of a layer."""
        return self._descriptors[layer]

    def close(self) -> None:
        """Close what was opened here; the pack's own descriptors stay."""
        self._resources.close()

    def _open_direct(self, pack: Pack) -> None:
        with ExitStack() as opened:
            descriptors = []
            for layer, buffered in enumerate(self._descriptors):
                descriptor = _open_direct(str(pack.path / pack.manifest.layers[layer].file), buffered)
                if descriptor is None:
                    return
                opened.callback(os.close, descriptor)
                descriptors.append(descriptor)
            self.access, self._descriptors = "direct", descriptors
            self._resources = opened.pop_all()


def _open_direct(path: str, buffered: int) -> int | None:
    """A descriptor for direct reads of the very file that `buffered` reads; None where there is no such thing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | getattr(os, "O_DIRECT", 0))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise StorageError(f"{path} cannot be opened again: {error.strerror}; leave a pack in place in use") from error
    try:
        _require_same(path, buffered, descriptor)
        direct = _turn_direct(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    if not direct:
        os.close(descriptor)
    return descriptor if direct else None


def _require_same(path: str, first: int, second: int) -> None:
    if not os.path.samestat(os.fstat(first), os.fstat(second)) or not stat.S_ISREG(os.fstat(second).st_mode):
        raise StorageError(f"{path} was replaced while it was in use; open the pack again")


def _turn_direct(descriptor: int) -> bool:
    """Whether reads of the descriptor go around the page cache, tried with one where opening proves nothing."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, F_NOCACHE, 1)
        return True
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        with mmap(-1, PROBE_BYTES) as page:
            os.preadv(descriptor, [page], 0)
    except OSError as error:
        return error.errno != errno.EINVAL  # any other failure is for the read that needs the bytes to report
    return True
