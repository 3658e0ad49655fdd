"""A published checkpoint on disk: config.json, its safetensors files, and exact reads from them.

An opened `Checkpoint` is whole: every shard that the index names is there, of full length, and holds exactly the
tensors that the index says. What the tensors mean is the dialects' affair.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..layout.plan import BLANK
from ..layout.tensorfile import TensorEntry, TensorFile
from ..manifests import canonical
from ..manifests.errors import CorruptInputError, UsageError
from ..manifests.files import open_regular, pieces, read_small
from ..manifests.members import PIECE_BYTES, members
from ..manifests.schema import SourceFile
from . import hub

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
COPIED = (CONFIG, TOKENIZER, "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
WEIGHT_MAP = "weight_map"
MAX_INDEX_BYTES = 64 * 1024 * 1024
MAX_SHARDS = 4096
MAX_TENSORS = 400_000  # some 400 bytes of memory each; Qwen3.5-397B has 370,000 as GPTQ, experts one by one
MAX_FACTS = 1000  # members of the index beside its map
_SHARD = re.compile(r"[\w][\w.-]{0,240}\.safetensors", re.ASCII)


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint was found. `repository` and `revision` are None for a plain directory."""

    directory: Path
    repository: str | None = None
    revision: str | None = None


class Checkpoint:
    """An opened checkpoint; a context manager. Reads are thread-safe."""

    def __init__(self, origin: Origin, config: Mapping[str, Any], files: tuple[TensorFile, ...]) -> None:
        self.origin = origin
        self.config = config
        self.files = files
        self.entries: dict[str, TensorEntry] = {}
        self._home: dict[str, TensorFile] = {}
        for file in files:
            self.entries.update(file.entries)
            self._home.update(dict.fromkeys(file.entries, file))

    @classmethod
    def open(cls, source: str) -> "Checkpoint":
        """Open a local directory, or `org/name[@revision]` from the Hugging Face Hub (downloaded to its cache).

        Raises UsageError if there is no such thing, StorageError if it cannot be fetched or read, CorruptInputError
        if it is incomplete or malformed.
        """
        origin = _find(source)
        directory = origin.directory
        config = read_json(directory / CONFIG)
        with ExitStack() as opened:
            if (directory / INDEX).exists():
                files = _open_shards(directory, opened)
            else:
                files = (opened.enter_context(_open(directory / SINGLE, f"and there is no {INDEX} either")),)
            opened.pop_all()
        return cls(origin, config, files)

    @property
    def copied(self) -> tuple[Path, ...]:
        """The files that a pack takes over byte for byte: configuration, tokenizer, chat template."""
        return tuple(path for name in COPIED if (path := self.origin.directory / name).is_file())

    @property
    def source_files(self) -> list[SourceFile]:
        """What a manifest records of each weight file, as far as it is known before the file is read."""
        return [SourceFile(file.path.name, file.size, file.header_blake3, BLANK) for file in self.files]

    def home(self, name: str) -> Path:
        """The file in which a tensor lies."""
        return self._home[name].path

    def read_into(self, name: str, out: np.ndarray, first: int | None = None) -> None:
        """Fill `out` with the whole tensor, or with as many rows from `first` on as it holds: one `pread`."""
        self._home[name].read_into(name, out, first)

    def read_columns_into(self, name: str, out: np.ndarray, first: int) -> None:
        """Fill `out` [rows, n] with columns `first` to `first + n` of the matrix `name`: one `pread` of each row."""
        self._home[name].read_columns_into(name, out, first)

    def close(self) -> None:
        """Close every file."""
        for file in self.files:
            file.__exit__(None, None, None)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _find(source: str) -> Origin:
    if source and Path(source).is_dir():
        return Origin(Path(source))
    if not hub.is_repository_name(source):
        raise UsageError(f"{source} is neither a directory nor a repository name such as org/name or org/name@revision")
    repository, _, revision = source.partition("@")
    directory = hub.download(repository, revision or None, [*COPIED, INDEX], _weight_files)
    return Origin(directory, repository, directory.name)


def _weight_files(directory: Path) -> list[str]:
    index = directory / INDEX
    return list(_shards(index)) if index.exists() else [SINGLE]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint. Raises CorruptInputError if there is none."""
    if not path.exists():
        raise CorruptInputError(f"{path} is missing; a checkpoint needs it")
    value = canonical.decode(read_small(path, canonical.FOREIGN.size, follow_links=True), str(path))
    if not isinstance(value, dict):
        raise CorruptInputError(f"{path} is not a JSON object; fetch it again")
    return value


@dataclass
class _Shard:
    """What the index says of a file: how many tensors it holds, and the sum of their names' hashes."""

    tensors: int = 0
    names: int = 0

    def add(self, tensor: str) -> None:
        self.tensors += 1
        self.names += hash(tensor)

    @classmethod
    def of(cls, tensors: Iterable[str]) -> "_Shard":
        """Of a file that holds `tensors`."""
        shard = cls()
        for tensor in tensors:
            shard.add(tensor)
        return shard


def _weight_map(index: Path) -> Iterator[tuple[str, str]]:
    """(tensor, file) as the index says, one by one: the whole map of a large model takes hundreds of megabytes."""
    descriptor = open_regular(index, follow_links=True)
    try:
        size = os.fstat(descriptor).st_size
        if size > MAX_INDEX_BYTES:
            raise CorruptInputError(f"{index} has {size} bytes; at most {MAX_INDEX_BYTES} are allowed")
        content = pieces(descriptor, 0, size, index, PIECE_BYTES)
        facts, tensors = 0, 0
        for outer, tensor, name in members(content, str(index), inside={WEIGHT_MAP}):
            facts, tensors = facts + (not outer), tensors + bool(outer)
            if facts > MAX_FACTS or tensors > MAX_TENSORS:
                raise CorruptInputError(f"{index} has more than {MAX_TENSORS} tensors, or {MAX_FACTS} facts about them")
            if outer:
                yield tensor, _shard_name(index, name)
    finally:
        os.close(descriptor)


def _shards(index: Path) -> dict[str, _Shard]:
    """The files that the index names, sorted, and what it says of each."""
    found: dict[str, _Shard] = {}
    for tensor, name in _weight_map(index):
        found.setdefault(name, _Shard()).add(tensor)
        if len(found) > MAX_SHARDS:
            raise CorruptInputError(f"{index} names more than {MAX_SHARDS} files")
    if not found:
        raise CorruptInputError(f"{index} has no weight_map; fetch it again")
    return dict(sorted(found.items()))


def _shard_name(index: Path, name: Any) -> str:
    if not isinstance(name, str) or not _SHARD.fullmatch(name):
        raise CorruptInputError(f"{index} names {name!r:.100}, which is not a safetensors file beside it")
    return name


def _open_shards(directory: Path, opened: ExitStack) -> tuple[TensorFile, ...]:
    index = directory / INDEX
    files, tensors = [], 0
    for name, shard in _shards(index).items():
        file = opened.enter_context(_open(directory / name, f"though {INDEX} names it; fetch it again"))
        if _Shard.of(file.entries) != shard:
            raise _disagreement(file, {tensor for tensor, home in _weight_map(index) if home == name})
        tensors += len(file.entries)
        if tensors > MAX_TENSORS:
            raise CorruptInputError(f"{directory} has more than {MAX_TENSORS} tensors; it cannot be a checkpoint")
        files.append(file)
    return tuple(files)


def _open(path: Path, otherwise: str) -> TensorFile:
    if not path.exists():
        raise CorruptInputError(f"{path} is missing, {otherwise}")
    return TensorFile.open(path)


def _disagreement(file: TensorFile, expected: set[str]) -> CorruptInputError:
    if missing := sorted(expected - file.entries.keys()):
        return CorruptInputError(
            f"{file.path} lacks tensor {missing[0]!r:.200}, which {INDEX} places in it; fetch it again"
        )
    if extra := sorted(file.entries.keys() - expected):
        return CorruptInputError(
            f"{file.path} holds tensor {extra[0]!r:.200}, which {INDEX} does not place in it; fetch both again"
        )
    return CorruptInputError(f"{file.path.parent / INDEX} places a tensor in {file.path.name} twice; fetch it again")
