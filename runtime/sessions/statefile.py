"""One session in a file: its tokens, its caches, and its recurrent states at its end and where it can go back to.

Layers are written and read one by one, so that there is never a second copy of a long session in memory. Promises that
nothing of a file is believed before its digest is the expected one, and that what does not fit the session is refused
in one sentence. Whether the file is of the same pack and arithmetic is its caller's care.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...layout.atomic import PRIVATE, AtomicFile
from ...layout.tensorfile import Array, Digested, TensorFile, TensorFileWriter, TensorSpec
from ...manifests import digest
from ...manifests.errors import CorruptInputError, MismatchError
from ..backends.base import AttentionState, Backend, Tensor
from ..state import State
from .snapshot import LayerCopy, Snapshot

TOKENS, ENDS = "tokens", "ends"
MOST_ENDS = 16


@dataclass(frozen=True)
class Room:
    """Where a state is to fit: tokens of the context, and of the vocabulary."""

    context: int
    vocabulary: int


def save(path: Path, tokens: Sequence[int], state: State, ends: Sequence[Snapshot], backend: Backend) -> str:
    """Write a state that holds `tokens`, to be continued from `ends`, ascending, of which the last is the state's own.

    Returns the file's digest. Raises StorageError if the disk is full or fails.
    """
    specs = list(_specs(state, len(tokens), len(ends), backend))
    with AtomicFile(path, None, PRIVATE) as file:
        sink = Digested(file)
        writer = TensorFileWriter(sink, specs)
        writer.write_blocks(TOKENS, [np.asarray(tokens, "<i4")])
        writer.write_blocks(ENDS, [np.asarray([end.last for end in ends], "<i4")])
        for spec in specs[2:]:
            writer.write_blocks(spec.name, _blocks(spec.name, state, len(tokens), ends, backend))
        writer.finish()
    return sink.hexdigest()


def load(path: Path, expected: str, state: State, backend: Backend, room: Room) -> tuple[list[int], list[Snapshot]]:
    """Bring a state to the end of a saved one of the digest `expected`; returns its tokens and ends.

    Raises CorruptInputError for a file of another shape, MismatchError for one of another digest, before the state is
    touched; StorageError if the disk fails, after which the state is of no use.
    """
    with TensorFile.open(path) as file:
        _check_shapes(file, state, backend, room)
        if digest.of_file(path) != expected:
            raise MismatchError(
                f"{path} is not the state that was saved with the conversation; remove it, and all is computed again"
            )
        tokens, ends = file.read(TOKENS), file.read(ENDS)
        _check_values(path, tokens, ends, room)
        copies = [_restored(file, state, index, len(tokens), backend) for index in range(len(state.layers))]
    state.position = len(tokens)
    return tokens.tolist(), [_end(int(last), number, state, copies) for number, last in enumerate(ends)]


def _tensors(state: State, index: int) -> tuple[Tensor, Tensor]:
    layer = state.layers[index]
    return (layer.keys, layer.values) if isinstance(layer, AttentionState) else (layer.conv, layer.memory)


def _specs(state: State, tokens: int, ends: int, backend: Backend) -> Iterator[TensorSpec]:
    """What a file of so many tokens and ends holds."""
    yield TensorSpec(TOKENS, "I32", (tokens,))
    yield TensorSpec(ENDS, "I32", (ends,))
    for index, layer in enumerate(state.layers):
        for part, tensor in enumerate(_tensors(state, index)):
            if isinstance(layer, AttentionState):
                shape = (tokens, *backend.to_host(tensor[slice(0, 1)]).shape[1:])
            else:
                shape = (ends, *backend.to_host(tensor).shape)
            yield TensorSpec(f"{index}.{part}", "F32", shape)


def _blocks(name: str, state: State, tokens: int, ends: Sequence[Snapshot], backend: Backend) -> Iterator[Array]:
    index, part = map(int, name.split("."))
    if isinstance(state.layers[index], AttentionState):
        yield backend.to_host(_tensors(state, index)[part][slice(0, tokens)])
    else:
        yield from (end.layers[index][part][None] for end in ends)


def _check_shapes(file: TensorFile, state: State, backend: Backend, room: Room) -> None:
    tokens, ends = _length(file, TOKENS), _length(file, ENDS)
    fits = 0 < tokens <= room.context and 0 < ends <= MOST_ENDS
    if fits:
        expected = {spec.name: (spec.dtype, spec.shape) for spec in _specs(state, tokens, ends, backend)}
        fits = expected == {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()}
    if not fits:
        raise CorruptInputError(
            f"{file.path} holds no state of this pack that fits a context of {room.context} tokens; remove it, or give"
            " a larger --context"
        )


def _length(file: TensorFile, name: str) -> int:
    """Of a list that a file has; 0 where it has none."""
    shape = file.entries[name].shape if name in file.entries else ()
    return shape[0] if len(shape) == 1 else 0


def _check_values(path: Path, tokens: Array, ends: Array, room: Room) -> None:
    known = bool(((tokens >= 0) & (tokens < room.vocabulary)).all())
    if not known or int(ends[0]) < 1 or bool((np.diff(ends) < 1).any()) or int(ends[-1]) != len(tokens):
        raise CorruptInputError(f"{path} names tokens or positions that do not exist; remove it")


def _restored(file: TensorFile, state: State, index: int, tokens: int, backend: Backend) -> LayerCopy:
    """One layer brought to its end; its recurrent states at all ends, nothing for caches."""
    tensors = _tensors(state, index)
    found = [file.read(f"{index}.{part}") for part in range(2)]
    if not isinstance(state.layers[index], AttentionState):
        for tensor, values in zip(tensors, found, strict=True):
            backend.write(tensor, values[-1])
        return found[0], found[1]
    for tensor, values in zip(tensors, found, strict=True):
        backend.write(tensor[slice(0, tokens)], values)
    return found[0][:0], found[1][:0]


def _end(last: int, number: int, state: State, copies: Sequence[LayerCopy]) -> Snapshot:
    layers = [
        both if isinstance(layer, AttentionState) else (both[0][number], both[1][number])
        for layer, both in zip(state.layers, copies, strict=True)
    ]
    return Snapshot(last, last, tuple(layers))
