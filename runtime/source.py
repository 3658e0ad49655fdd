"""What a forward pass reads: a model's trunk tensor by tensor, and its experts in the order asked for.

A pack is one such source; a checkpoint presents itself as another (convert/reference.py). Neither has to fit in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ..layout.matrix import Array, ExpertMatrices, expert_matrices
from ..layout.reader import Pack
from ..manifests import schema
from .experts import ExpertStream
from .trunk import check_trunk
from .weights import Tensors, trunk_formats

SLOTS = 8  # expert records read ahead; reads of one layer are 8 wide at most


class Source(Tensors, Protocol):
    """Weights of one model, under FORMAT.md's canonical names: its trunk's tensors, freshly read, and its experts."""

    def experts(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, ExpertMatrices]]:
        """Yield (expert, its matrices) in the order of `experts`; the matrices are valid until the next are asked for.

        Each is read once per call. Raises StorageError, MismatchError or CorruptInputError where reading fails.
        """


class PackSource:
    """An opened pack, which must stay open; a context manager that ends the threads reading it."""

    def __init__(self, pack: Pack, *, check_digests: bool = True) -> None:
        """Raises MismatchError if the trunk is not the manifest's; records are checked as they are read."""
        if check_digests:
            check_trunk(pack)
        self.pack = pack
        self.model: schema.Model = pack.model
        self.where = str(pack.path)
        self.formats = trunk_formats(pack)
        self._stream = ExpertStream(pack, SLOTS, check_digests=check_digests)

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator["PackSource"]:
        """The pack in the directory `path`, opened for a block. Raises as Pack.open does too."""
        with Pack.open(path) as pack, cls(pack) as source:
            yield source

    def tensor(self, name: str) -> Array | None:
        """See Tensors.tensor."""
        return self.pack.trunk.read(name) if name in self.pack.trunk.entries else None

    def experts(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, ExpertMatrices]]:
        """See Source.experts; the following records are read while one is computed with."""
        layout = self.pack.records[layer]
        for expert, record in self._stream.records(layer, experts):
            yield expert, expert_matrices(record, layout)

    def close(self) -> None:
        """End the threads; nothing more can be read."""
        self._stream.close()

    def __enter__(self) -> "PackSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Replace = Callable[[int, int, ExpertMatrices], ExpertMatrices]


class Replaced:
    """A source whose experts pass through `replace(layer, expert, matrices)`: variants made as they are read."""

    def __init__(self, source: Source, replace: Replace) -> None:
        self.model = source.model
        self.where = source.where
        self.formats = source.formats
        self.tensor = source.tensor
        self._source = source
        self._replace = replace

    def experts(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, ExpertMatrices]]:
        """See Source.experts."""
        for expert, matrices in self._source.experts(layer, experts):
            yield expert, self._replace(layer, expert, matrices)


class ExpertsFrom:
    """The trunk of one source with the experts of another of the same geometry."""

    def __init__(self, trunk: Source, experts: Source) -> None:
        self.model = trunk.model
        self.where = f"{trunk.where} with experts of {experts.where}"
        self.formats = trunk.formats
        self.tensor = trunk.tensor
        self.experts = experts.experts
