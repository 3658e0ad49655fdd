"""Products of one input with matrices that lie apart or differ in type: grouped into launches, never mixed up."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from checkpoints import CheckpointMaker
from matrices import floats
from metal.stored import random_matrix
from metal.whole import Packs, backend_of, on_metal
from oracle import dense

from moepack.layout.formats import parse
from moepack.layout.matrix import StoredMatrix
from moepack.runtime.arena import Packing
from moepack.runtime.backends.base import Memory

COLS = 192


@pytest.fixture(scope="module")
def packs(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Packs(tmp_path_factory.mktemp("together"), make_checkpoint)


def placed(memory: Memory, *matrices: StoredMatrix) -> list[StoredMatrix]:
    """The same matrices, side by side in a piece of memory of their own."""
    packing = Packing.of([[part.nbytes for part in stored.parts] for stored in matrices], memory.most)
    piece, starts = memory.reserve(packing.sizes[0]), iter(packing.places)
    return [_moved(stored, piece, starts) for stored in matrices]


def _moved(stored: StoredMatrix, piece: np.ndarray, starts: Iterator[tuple[int, int]]) -> StoredMatrix:
    parts = {}
    for name in ("weight", "grids", "scales", "biases"):
        if (part := getattr(stored, name)) is not None:
            start = next(starts)[1]
            parts[name] = piece[start : start + part.nbytes].view(part.dtype).reshape(part.shape)
            parts[name][:] = part
    return StoredMatrix(**parts, format=stored.format)


@pytest.mark.parametrize("tokens", [1, 3, 9])
@pytest.mark.parametrize("where", ["apart", "together"])
def test_each_product_is_its_own(fake: ModuleType, packs: dict[str, Path], tokens: int, where: str) -> None:
    fake.configure(mode="lazy", order=5)
    random = np.random.default_rng(tokens)
    kinds = [("affine4-g64", "bf16"), (None, "f32"), ("affine4-g64", "bf16"), ("affine8-g32", "bf16"), (None, "f32")]
    stored = [
        random_matrix(random, rows, COLS, parse(name) if name else None, dtype)
        for rows, (name, dtype) in zip((40, 7, 64, 33, 1), kinds, strict=True)
    ]
    x = floats(random, tokens, COLS)
    with on_metal(packs["odd"]) as engine:
        backend = backend_of(engine)
        pieces = [stored] if where == "together" else [[each] for each in stored]
        matrices = [backend.matrix(each) for piece in pieces for each in placed(backend.memory, *piece)]
        assert len({id(matrix.buffer) for matrix in matrices}) == len(pieces)
        given = backend.vector(x)
        with backend.forward():
            found = [backend.to_host(each) for each in backend._products(given, *matrices)]
            again = backend.matrix(placed(backend.memory, stored[0])[0])
            gated = backend.to_host(backend.swiglu(given, matrices[0], again))
    for each, matrix in zip(found, stored, strict=True):
        wanted = x.astype(float) @ dense(matrix).astype(float).T
        assert np.abs(each - wanted).max() < 1e-4 * max(1.0, np.abs(wanted).max())
    product = x.astype(float) @ dense(stored[0]).astype(float).T
    wanted = product / (1 + np.exp(-product)) * product
    assert np.abs(gated - wanted).max() < 1e-4 * max(1.0, np.abs(wanted).max())


def test_a_matrix_whose_parts_lie_apart_or_nowhere_is_refused(fake: ModuleType, packs: dict[str, Path]) -> None:
    stored = random_matrix(np.random.default_rng(0), 8, COLS, parse("affine4-g64"), "bf16")
    with on_metal(packs["odd"]) as engine:
        backend = backend_of(engine)
        with pytest.raises(ValueError, match="lie in no memory of the device's"):
            backend.matrix(stored)
        (here,), (there,) = (placed(backend.memory, stored) for _ in range(2))
        apart = StoredMatrix(here.weight, there.scales, here.biases, format=stored.format)
        with pytest.raises(ValueError, match="the parts of a matrix lie in several buffers"):
            backend.matrix(apart)
