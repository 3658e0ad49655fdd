"""A pack's trunk on its way into memory: every byte read once, into its place, and hashed while the next ones arrive.

Promises that the digest is of exactly the bytes that are returned, that no tensor exists twice, and that no copy of the
file stays behind in the page cache, where it would count against a limit of this process's control group. The memory is
anonymous, so that no file read evicts it, and locked where the system allows.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from blake3 import blake3

from ..layout.reader import Pack
from ..layout.tensorfile import ARRAY_DTYPES, Array, TensorEntry, byte_view
from ..manifests.errors import MismatchError
from . import host
from .arena import HOST, Packing, occupied
from .backends.base import Memory

PIECE_BYTES = 16 * 1024 * 1024
READERS = 4  # large reads under way at once come close to any drive's peak
FLOAT_BYTES = 4


@dataclass(frozen=True)
class _Piece:
    """Whole rows of a tensor, from `first` on, and where they go; all of a tensor without rows."""

    name: str
    first: int | None
    to: Array


def read_trunk(pack: Pack, *, check_digest: bool, memory: Memory = HOST) -> dict[str, Array]:
    """Every tensor of the trunk, in its own dtype, side by side in as few pieces of `memory` as it allows.

    The parts of a matrix lie in one piece. Raises MismatchError if the bytes are not the manifest's, StorageError if
    the device fails.
    """
    groups = _matrices(pack)
    packing = _packing(groups, memory.most)
    pieces = [memory.reserve(size) for size in packing.sizes]
    entries = [entry for group in groups for entry in group]
    places = {entry.name: place for entry, place in zip(entries, packing.places, strict=True)}
    tensors = {entry.name: _view(entry, pieces, *places[entry.name]) for entry in _in_file_order(pack)}
    hasher = _begun(pack)
    for piece in _arriving(pack, [piece for name, tensor in tensors.items() for piece in _pieces(name, tensor)]):
        if check_digest:
            hasher.update(byte_view(piece.to))
    if check_digest:
        _require_digest(pack, hasher.hexdigest())
    for each in pieces:
        host.lock(each)
    return tensors


def check_trunk(pack: Pack) -> None:
    """Raise MismatchError unless the trunk's bytes are the manifest's; holds one tensor at a time."""
    hasher = _begun(pack)
    for entry in _in_file_order(pack):
        hasher.update(byte_view(pack.trunk.read(entry.name)))
    _require_digest(pack, hasher.hexdigest())


def trunk_bytes(pack: Pack, most: int = HOST.most) -> int:
    """Memory that the trunk takes in pieces of at most `most`, and float32 copies of the small weights."""
    return sum(map(occupied, _packing(_matrices(pack), most).sizes)) + sum(small_weights(pack))


def small_weights(pack: Pack) -> list[int]:
    """Bytes of each of the weights that backends keep as float32."""
    small = [e for e in pack.trunk.entries.values() if len(e.shape) < 2 or e.name.endswith("conv1d.weight")]
    return [FLOAT_BYTES * math.prod(entry.shape) for entry in small]


def _arriving(pack: Pack, pieces: list[_Piece]) -> Iterator[_Piece]:
    """The pieces in order, each once it was read; those after it are being read meanwhile."""
    with ThreadPoolExecutor(READERS, "moepack-trunk") as readers:
        arrivals = [readers.submit(_reading(pack, piece)) for piece in pieces]
        try:
            for piece, arrival in zip(pieces, arrivals, strict=True):
                arrival.result()
                yield piece
        finally:
            readers.shutdown(cancel_futures=True)


def _reading(pack: Pack, piece: _Piece) -> Callable[[], None]:
    return lambda: pack.trunk.read_into(piece.name, piece.to, piece.first, keep_cached=False)


def _pieces(name: str, tensor: Array) -> Iterator[_Piece]:
    """A tensor in pieces of whole rows: as many as PIECE_BYTES hold, at least one."""
    if tensor.nbytes <= PIECE_BYTES:
        yield _Piece(name, None, tensor)
        return
    rows = max(1, PIECE_BYTES * len(tensor) // tensor.nbytes)
    for first in range(0, len(tensor), rows):
        yield _Piece(name, first, tensor[first : first + rows])


def _view(entry: TensorEntry, pieces: list[Array], piece: int, start: int) -> Array:
    """The place of a tensor, as an array of its dtype and shape."""
    view: Array = pieces[piece][start : start + entry.size].view(ARRAY_DTYPES[entry.dtype])
    return view.reshape(entry.shape)


def _matrices(pack: Pack) -> list[list[TensorEntry]]:
    """The entries in groups of one stem: what a matrix consists of."""
    groups: dict[str, list[TensorEntry]] = {}
    for entry in _in_file_order(pack):
        groups.setdefault(entry.name.rpartition(".")[0] or entry.name, []).append(entry)
    return list(groups.values())


def _packing(groups: list[list[TensorEntry]], most: int) -> Packing:
    return Packing.of([[entry.size for entry in group] for group in groups], most)


def _in_file_order(pack: Pack) -> list[TensorEntry]:
    return sorted(pack.trunk.entries.values(), key=lambda entry: entry.offset)


def _begun(pack: Pack) -> blake3:
    """A hasher that has seen the file up to its first tensor."""
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update(pack.trunk.prefix())
    return hasher


def _require_digest(pack: Pack, found: str) -> None:
    listed = next(file for file in pack.manifest.files if file.name == pack.manifest.trunk.file)
    if found != listed.blake3:
        raise MismatchError(
            f"{pack.trunk.path} is damaged: its bytes differ from the manifest's digest; fetch or build the pack again"
        )
